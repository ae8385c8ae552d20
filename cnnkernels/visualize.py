"""Pictures of what a network computes; matplotlib draws them, into files.

The suffix of a path tells the format; its folder is made if need be. Every function raises
MissingExtra where matplotlib is absent. Images are (C, H, W), in [0, 1], C = 1 or 3.
"""

import copy
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import cnnkernels
from cnnkernels.data import import_extra
from cnnkernels.inspection import fixed_filters

CHANNELS = 16  # as many as fit in a row
_COLUMNS = 8  # of a grid

# How maps are coloured: with zero in the middle, or from zero on; and what is right or wrong.
_SIGNED, _POSITIVE = "RdBu_r", "magma"
_RIGHT, _WRONG, _PLAIN = "#2a9d5c", "#d1495b", "#4878a8"


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


def save_feature_maps(
    model: nn.Module,
    image: Tensor,
    path: Path,
    title: str = "",
    prepare: Callable[[Tensor], Tensor] = lambda image: image,
) -> None:
    """Draws an image and the first layer's maps of it, one row a stage.

    `prepare` makes of the image what the model takes.
    """
    stages = first_layer(model, prepare(image))
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


def save_filters(model: nn.Module, path: Path, title: str = "") -> None:
    """Draws the weights of a model's first convolution, up to 64 filters.

    Those of three channels are colours, with grey for 0; of others the first channel is drawn.

    Raises:
        ValueError: the model has no Conv2d.
    """
    weight = next((m.weight for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if weight is None:
        raise ValueError(f"{type(model).__name__} has no Conv2d")
    weight = weight.detach()[: 8 * _COLUMNS]
    limit = weight.abs().max()
    picture, panels = _grid(len(weight), title)
    for axes, kernel in zip(panels, weight, strict=False):
        if len(kernel) == 3:
            _draw_image(axes, 0.5 + kernel / (2 * limit))
        else:
            axes.imshow(kernel[0].numpy(), cmap=_SIGNED, vmin=-limit, vmax=limit)
    _save(picture, path)


def save_fixed_filters(filters: dict[str, Tensor], image: Tensor, path: Path) -> None:
    """Draws filters, each (R, S), and an image's grey convolved by them, before and after ReLU.

    Raises:
        ValueError: they are not matrices of one shape, or larger than the image.
    """
    grey = image.mean(0, keepdim=True)
    kernels = list(filters.values())
    convolution = fixed_filters(kernels)
    if any(k > s for k, s in zip(kernels[0].shape, grey.shape[1:], strict=True)):
        raise ValueError("a filter is larger than the image")
    with torch.inference_mode():
        maps = convolution(grey.unsqueeze(0))[0]
    reach, limit = maps.abs().max().item(), torch.stack(kernels).abs().max().item()
    picture = _figure(figsize=(2 * (len(filters) + 1), 6.6))
    panels = picture.subplots(3, len(filters) + 1, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    _draw_image(panels[1, 0], grey, "image")
    for column, (name, kernel), found in zip(panels.T[1:], filters.items(), maps, strict=True):
        column[0].imshow(kernel.numpy(), cmap=_SIGNED, vmin=-limit, vmax=limit)
        column[0].set_title(name, fontsize=10)
        for (i, j), value in zip(
            torch.cartesian_prod(*map(torch.arange, kernel.shape)).tolist(),
            kernel.flatten().tolist(),
            strict=True,
        ):
            ink = "white" if abs(value) > 0.6 * limit else "black"
            column[0].text(j, i, f"{value:.3g}", ha="center", va="center", fontsize=6, color=ink)
        column[1].imshow(found.numpy(), cmap=_SIGNED, vmin=-reach, vmax=reach)
        column[2].imshow(found.relu().numpy(), cmap=_POSITIVE, vmin=0, vmax=reach)
    for axes, text in zip(panels[:, 1], ("filter", "convolution", "ReLU"), strict=True):
        axes.text(-0.08, 0.5, text, rotation=90, ha="right", va="center", transform=axes.transAxes)
    _save(picture, path)


def save_images(images: Tensor, titles: Sequence[str], path: Path, title: str = "") -> None:
    """Draws images, (N, C, H, W), each under its title."""
    picture, panels = _grid(len(images), title, room=0.25)
    for axes, image, text in zip(panels, images, titles, strict=False):
        _draw_image(axes, image, text, size=7)
    _save(picture, path)


def save_heat(image: Tensor, heat: Tensor, path: Path, title: str = "") -> None:
    """Draws an image, a map of its pixels, (H, W), and the one over the other."""
    signed = bool((heat < 0).any())
    limit = heat.abs().max().clamp(min=torch.finfo(heat.dtype).tiny).item()
    colours = {"cmap": _SIGNED if signed else _POSITIVE, "vmax": limit}
    colours["vmin"] = -limit if signed else 0
    picture = _figure(figsize=(9, 3.4))
    picture.suptitle(title, fontsize=11)
    alone, middle, over = picture.subplots(1, 3)
    _draw_image(alone, image)
    drawn = middle.imshow(heat.numpy(), **colours)
    _draw_image(over, image.mean(0, keepdim=True))
    over.imshow(heat.numpy(), **colours, alpha=(0.85 * heat.abs() / limit).numpy())
    for axes in (middle, over):
        axes.set_axis_off()
    picture.colorbar(drawn, ax=over, fraction=0.046).ax.tick_params(labelsize=7)
    _save(picture, path)


def save_scores(
    image: Tensor, scores: Tensor, classes: Sequence[str], path: Path, label: int | None = None
) -> None:
    """Draws an image and its classes' probabilities as bars, the ten largest, largest first.

    Where the right label is known, its bar is green, and a wrong one above it is red.
    """
    values, indices = scores.topk(min(10, len(classes)))
    colours = [_RIGHT if i == label else _PLAIN for i in indices.tolist()]
    if label is not None and indices[0] != label:
        colours[0] = _WRONG
    picture = _figure(figsize=(7.5, 3.2))
    left, right = picture.subplots(1, 2, width_ratios=(1, 1.6))
    _draw_image(left, image, "" if label is None else f"label: {classes[label]}")
    bars = right.barh([classes[i] for i in indices.tolist()], values.tolist(), color=colours)
    right.bar_label(bars, [f"{100 * v:.1f} %" for v in values.tolist()], padding=4, fontsize=8)
    right.invert_yaxis()
    right.set(xlim=(0, 1.18), xticks=[], xlabel="probability")
    right.spines[["top", "right", "bottom"]].set_visible(False)
    right.tick_params(left=False, labelsize=9)
    _save(picture, path)


def save_confusion(confusion: Tensor, classes: Sequence[str], path: Path, title: str = "") -> None:
    """Draws a confusion matrix, images by [label, answer].

    Colours are shares of a label's images, so that rare classes are seen, too; what is wrong is
    in another colour than what is right.
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


def _grid(count: int, title: str, room: float = 0.0):
    """A figure and at least so many panels, without axes; `room` is for their titles."""
    rows = math.ceil(count / _COLUMNS)
    columns = math.ceil(count / rows)
    picture = _figure(figsize=(1.1 * columns + 0.4, (1.1 + room) * rows + 0.5))
    picture.suptitle(title, fontsize=11)
    panels = picture.subplots(rows, columns, squeeze=False).flatten()
    for axes in panels:
        axes.set_axis_off()
    return picture, panels


def _save(picture, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=150)


def _draw_image(axes, image: Tensor, title: str = "", size: int = 10) -> None:
    grey = len(image) == 1
    pixels = image[0] if grey else image.permute(1, 2, 0)
    axes.imshow(pixels.numpy(), cmap="gray" if grey else None, vmin=0, vmax=1)
    axes.set_title(title, fontsize=size)
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
