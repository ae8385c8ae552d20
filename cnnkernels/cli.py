"""The command line: `cnnkernels train`, `demo`, `bench` and `info`."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import cnnkernels
from cnnkernels import bench, demo
from cnnkernels.checkpoint import CheckpointError
from cnnkernels.data import DataError, Dataset, load
from cnnkernels.train import (
    BACKENDS,
    DEVICES,
    HYPERPARAMETERS,
    ConfigError,
    EpochReport,
    TrainConfig,
    train,
)

DESCRIPTION = "Hand-written convolution and pooling kernels for PyTorch: train, compare, inspect."


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status: 2 after an error that the user can mend."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except (DataError, ConfigError, CheckpointError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cnnkernels", description=DESCRIPTION)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    with_data = argparse.ArgumentParser(add_help=False)
    with_data.add_argument(
        "--data",
        default="auto",
        metavar="SET",
        help="auto (default), mnist, fashion-mnist, digits, or a folder with IDX files or "
        "CIFAR-10's binary files; mnist and fashion-mnist are downloaded if need be; auto is the "
        "first of the three that is there",
    )
    with_data.add_argument("--no-progress", action="store_true", help="show no progress bar")

    command = commands.add_parser("train", parents=[with_data], help="train a network")
    command.add_argument("--model", choices=HYPERPARAMETERS, default="a")
    command.add_argument("--device", choices=DEVICES, default="cpu")
    command.add_argument("--backend", choices=BACKENDS, default="cnnkernels")
    command.add_argument("--epochs", type=int, metavar="N")
    command.add_argument("--seed", type=int, default=0, metavar="S")
    command.add_argument("--lr", type=float, metavar="X", help="learning rate")
    command.add_argument("--steps", type=int, metavar="N", help="stop after N steps")
    command.add_argument(
        "--log", type=Path, metavar="DIR", help="log loss and accuracies for TensorBoard"
    )
    command.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="save the run after each whole epoch"
    )
    command.add_argument(
        "--resume", type=Path, metavar="FILE", help="go on from a checkpoint of the same run"
    )
    command.set_defaults(run=_train)

    command = commands.add_parser(
        "demo",
        parents=[with_data],
        help="train, then compare results and speed with torch's, and draw feature maps",
    )
    command.add_argument("--quick", action="store_true", help="fewer images and rounds")
    command.set_defaults(run=_demo)

    command = commands.add_parser(
        "bench", help="time these kernels beside torch's own, case by case"
    )
    command.add_argument("--suite", choices=(*bench.SUITES, "all"), default="all")
    command.add_argument("--quick", action="store_true", help="few small cases, few rounds")
    command.add_argument("--threads", type=int, metavar="N", help="torch's number by default")
    command.add_argument("--device", choices=DEVICES, default="cpu")
    command.add_argument("--json", type=Path, metavar="FILE", help="write the times as JSON")
    command.add_argument("--plot", type=Path, metavar="FILE", help="draw them")
    command.set_defaults(run=_bench)

    command = commands.add_parser("info", help="what was built, for which devices")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=_info)
    return parser


def _train(options: argparse.Namespace) -> int:
    config = TrainConfig(
        data=_load(options.data),
        model=options.model,
        backend=options.backend,
        device=options.device,
        seed=options.seed,
        epochs=options.epochs,
        learning_rate=options.lr,
        max_steps=options.steps,
        progress=not options.no_progress,
        log=options.log,
        checkpoint=options.checkpoint,
        resume=options.resume,
    )
    print(
        f"model {config.model}, backend {config.backend}, device {config.device}, "
        f"{torch.get_num_threads()} threads, seed {config.seed}"
    )
    result = train(config, _show_epoch)
    print(f"test accuracy {100 * result.accuracy:.2f} %")
    return 0


def _demo(options: argparse.Namespace) -> int:
    return demo.run(_load(options.data), options.quick, not options.no_progress)


def _bench(options: argparse.Namespace) -> int:
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no GPU here")
    if options.threads is not None:
        if options.threads < 1:
            raise ConfigError(f"--threads {options.threads}: at least one")
        torch.set_num_threads(options.threads)
    return bench.run(options.suite, options.quick, options.device, options.json, options.plot)


def _info(options: argparse.Namespace) -> int:
    info = cnnkernels.info()
    print(json.dumps(info, indent=2) if options.json else "\n".join(_lines(info)))
    return 0


def _load(spec: str) -> Dataset:
    data = load(spec)
    print(
        f"data: {data.name}, {len(data.train_labels):,} training and "
        f"{len(data.test_labels):,} test images"
    )
    return data


def _show_epoch(report: EpochReport) -> None:
    validation = report.validation
    held_out = "" if validation is None else f"validation accuracy {100 * validation:.2f} %   "
    print(
        f"epoch {report.epoch:2}   loss {report.loss:.4f}   {held_out}"
        f"test accuracy {100 * report.accuracy:.2f} %   {report.seconds:.1f} s",
        flush=True,
    )


def _lines(info: dict[str, Any], indent: str = "") -> Iterator[str]:
    """A nested dict as indented lines, `key: value`."""
    for key, value in info.items():
        if isinstance(value, dict):
            yield f"{indent}{key}:"
            yield from _lines(value, indent + "  ")
        elif isinstance(value, list):
            yield f"{indent}{key}: {', '.join(map(str, value)) or 'none'}"
        else:
            yield f"{indent}{key}: {'none' if value is None else value}"
