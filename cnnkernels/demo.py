"""The demo: trains a network by our kernels, then sets them beside torch's own."""

import copy
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

import cnnkernels
from cnnkernels import compare
from cnnkernels.config import HYPERPARAMETERS, TrainConfig
from cnnkernels.data import Dataset, MissingExtra
from cnnkernels.models import build_model
from cnnkernels.train import EpochReport, train
from cnnkernels.visualize import save_feature_maps

MODEL = "a"
BATCH = 100
PARITY_IMAGES = 500
MIN_STEPS = 300  # until small sets are learnt, too
MIN_EPOCHS = 3
ROUNDS = 25
QUICK_ROUNDS = 7
QUICK_IMAGES = 10_000
PICTURE = Path("runs/feature_maps.png")  # in the current folder


def run(data: Dataset, quick: bool = False, progress: bool = True) -> int:
    """Runs the demo and prints what it finds.

    Returns:
        0 if each comparison holds, else 1.
    """
    if quick:
        data = _subset(data, QUICK_IMAGES)
    trained = _show_training(data, progress)
    model = build_model(MODEL)
    model.load_state_dict(trained.state_dict())
    images, labels = data.test_images[:BATCH], data.test_labels[:BATCH]
    all_ours = _show_coverage(model, images, labels)
    exact = _show_parity(model, data.test_images[:PARITY_IMAGES], data.test_labels[:PARITY_IMAGES])
    if not (all_ours and exact):
        print("\nA comparison does not hold: no timings.")
        return 1
    _show_timings(model, images, labels, QUICK_ROUNDS if quick else ROUNDS)
    _show_picture(model, data)
    return 0


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: bool = False) -> str:
    """Lays out a table: the first column to the left, the others, unless `left`, to the right."""
    justify = str.ljust if left else str.rjust
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]
    rule = ["-" * width for width in widths]
    return "\n".join(
        ("  " + "   ".join([row[0].ljust(widths[0]), *map(justify, row[1:], widths[1:])])).rstrip()
        for row in (header, rule, *rows)
    )


def _subset(data: Dataset, count: int) -> Dataset:
    return dataclasses.replace(
        data,
        train_images=data.train_images[:count],
        train_labels=data.train_labels[:count],
        test_images=data.test_images[:count],
        test_labels=data.test_labels[:count],
    )


def _show_training(data: Dataset, progress: bool) -> nn.Module:
    steps = math.ceil(len(data.train_labels) / HYPERPARAMETERS[MODEL].batch_size)
    epochs = max(MIN_EPOCHS, math.ceil(MIN_STEPS / steps))
    print(
        f"\n1. Training of Model {MODEL.upper()} on {len(data.train_labels):,} images, "
        f"{torch.get_num_threads()} threads, tested on {len(data.test_labels):,} others\n"
    )

    def show(report: EpochReport) -> None:
        print(
            f"  epoch {report.epoch:2} of {epochs}   loss {report.loss:.3f}   "
            f"test accuracy {100 * report.accuracy:6.2f} %   {report.seconds:5.1f} s",
            flush=True,
        )

    config = TrainConfig(data, model=MODEL, epochs=epochs, progress=progress)
    return train(config, show).model


def _show_coverage(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> bool:
    converted = cnnkernels.convert(copy.deepcopy(model))
    calls = compare.aten_calls(converted, images, labels)
    print(
        "\n  torch's own convolution, ReLU and pooling calls in one forward and backward pass: "
        + (", ".join(sorted(calls)) or "none")
    )
    return not calls


def _show_parity(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> bool:
    found = compare.parity(model, zip(images.split(BATCH), labels.split(BATCH), strict=True))
    print("\n2. Exactness: ||y - ref|| / ||ref||, where ref is torch.nn in float64\n")
    print(
        table(
            ("", "ours", "torch float32", "bound", "verdict"),
            [
                (
                    row.name,
                    f"{row.ours:.2e}",
                    f"{row.torch:.2e}",
                    f"{row.bound:.2e}",
                    "ok" if row.holds else "WRONG",
                )
                for row in found.rows
            ],
        )
    )
    print(
        f"\n  Same trained weights, {len(images)} test images. On all three sides no gradient "
        f"passes the {found.left_out:.1e}\n"
        "  of the ReLUs and maxima that rounding may turn over: see cnnkernels.compare.parity.\n"
        "  Verdict: ours <= bound = max(2 * torch, 4 * eps)."
    )
    return found.holds


def _show_timings(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, rounds: int
) -> None:
    rows = compare.timings(model, images, labels, rounds)
    print(f"\n3. Speed: batch {len(images)}, float32\n")
    print(
        table(
            ("", "ours", "torch eager", "torch / ours"),
            [
                (
                    row.name,
                    f"{row.ours * 1e3:.2f} ms",
                    f"{row.torch * 1e3:.2f} ms",
                    f"{row.speedup:.2f} x",
                )
                for row in rows
            ],
        )
    )
    print(
        f"\n  Median of {rounds} rounds in turns, outputs checked equal first, "
        f"{torch.get_num_threads()} threads each,\n  {compare.cpu_name()}."
    )


def _show_picture(model: nn.Module, data: Dataset) -> None:
    title = data.classes[data.test_labels[0]]
    try:
        save_feature_maps(model, data.test_images[0], PICTURE, f"{data.name}: {title}")
    except MissingExtra as error:
        print(f"\n4. No picture of the first layer: {error}")
    else:
        print(f"\n4. Picture of the first layer's feature maps: {PICTURE}")
