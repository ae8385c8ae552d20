"""Pictures of what a network computes; matplotlib draws them, into files."""

import copy
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import cnnkernels
from cnnkernels.data import import_extra

CHANNELS = 16  # as many as fit in a row

# How the maps of a stage are coloured: with zero in the middle, or from zero on.
_SIGNED, _POSITIVE = "RdBu_r", "magma"


def first_layer(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """What the first convolution of a model gives, and the ReLU and the pooling right after it.

    Our kernels compute them from the image, (C, H, W), each stage in the modules that `convert`
    makes of the model's own up to there. The model, of torch.nn's modules, stays as it is.

    Returns:
        (K, P, Q) by the name of the stage, in order.

    Raises:
        ValueError: the model has no Conv2d.
    """
    leaves = [module for module in model.modules() if not any(module.children())]
    starts = [i for i, module in enumerate(leaves) if isinstance(module, nn.Conv2d)]
    if not starts:
        raise ValueError(f"{type(model).__name__} has no Conv2d")
    followers = {nn.ReLU: "ReLU", nn.MaxPool2d: "max pooling", nn.AvgPool2d: "average pooling"}
    stages, maps = {nn.Conv2d: "convolution"} | followers, {}
    row: list[nn.Module] = []
    for module in leaves[starts[0] :]:
        if row and type(module) not in followers:
            break
        row.append(module)
        ours = cnnkernels.convert(nn.Sequential(*copy.deepcopy(row)).eval())
        with torch.inference_mode():
            maps[stages[type(module)]] = ours(image.unsqueeze(0)).squeeze(0)
    return maps


def save_feature_maps(model: nn.Module, image: Tensor, path: Path, title: str = "") -> None:
    """Draws an image, (C, H, W), and the first layer's maps of it, one row a stage, into a file.

    The suffix of `path` tells the format; its folder is made if need be.

    Raises:
        MissingExtra: matplotlib is absent.
    """
    stages = first_layer(model, image)
    shown = min(CHANNELS, *(len(maps) for maps in stages.values()))
    picture = _figure(figsize=(0.8 * (shown + 4), len(stages) + 0.6))
    left, right = picture.subfigures(1, 2, width_ratios=(3.2, shown))
    _draw_image(left.subplots(), image, title)
    for row, (stage, maps) in zip(
        right.subfigures(len(stages), 1, squeeze=False)[:, 0], stages.items(), strict=True
    ):
        row.suptitle(f"{stage}: {' x '.join(map(str, maps.shape))}", fontsize=9)
        _draw_maps(row, maps[:shown])
    _save(picture, path)


def _draw_image(axes, image: Tensor, title: str) -> None:
    grey = len(image) == 1
    pixels = image[0] if grey else image.permute(1, 2, 0)
    axes.imshow(pixels.numpy(), cmap="gray" if grey else None)
    axes.set_title(title, fontsize=10)
    axes.set_axis_off()


def _draw_maps(row, maps: Tensor) -> None:
    """One panel a channel, all on one scale, beside which it stands."""
    signed, limit = bool((maps < 0).any()), maps.abs().max().item()
    panels = row.subplots(1, len(maps), squeeze=False)[0]
    for axes, channel in zip(panels, maps, strict=True):
        drawn = axes.imshow(
            channel.numpy(),
            cmap=_SIGNED if signed else _POSITIVE,
            vmin=-limit if signed else 0,
            vmax=limit,
        )
        axes.set_axis_off()
    scale = row.colorbar(drawn, ax=panels, pad=0.01, aspect=8)
    scale.ax.tick_params(labelsize=6)


def save_confusion(confusion: Tensor, classes: Sequence[str], path: Path, title: str = "") -> None:
    """Draws a confusion matrix, images by [label, answer], into a file.

    Colours are shares of a label's images, so that rare classes are seen, too; what is wrong is
    in another colour than what is right.

    Raises:
        MissingExtra: matplotlib is absent.
    """
    shares = confusion / confusion.sum(1, keepdim=True).clamp(min=1)
    right = torch.eye(len(classes), dtype=torch.bool)
    size = 2.5 + 0.45 * len(classes)
    picture = _figure(figsize=(size, size))
    axes = picture.subplots()
    for part, colours in ((right, "Greens"), (~right, "Reds")):
        axes.imshow(shares.where(part, math.nan).numpy(), cmap=colours, vmin=0, vmax=1)
    for i, j in confusion.nonzero().tolist():
        ink = "white" if shares[i, j] > 0.6 else "black"
        axes.text(j, i, f"{confusion[i, j]}", ha="center", va="center", color=ink, fontsize=7)
    ticks = range(len(classes))
    axes.set_xticks(ticks, classes, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(ticks, classes, fontsize=8)
    axes.set(xlabel="answer", ylabel="label", title=title)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    _save(picture, path)


def _figure(**settings):
    """A matplotlib figure that no display knows of."""
    module = import_extra("matplotlib.figure", "matplotlib", extra="viz")
    return module.Figure(layout="constrained", **settings)


def _save(picture, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=150)
