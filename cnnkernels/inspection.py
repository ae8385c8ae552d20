"""What moves a network: pictures that excite a filter, and the pixels that an answer rests on."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnkernels.nn import Conv2d

_STEP = 0.05  # of gradient ascent, in units of the image's range
_DECAY = 0.01  # pulls a pixel that excites nothing to the middle
_JITTER = 2  # pixels by which the image moves before each step: suppresses noise

_EDGE = torch.tensor([[-1.0, -1.0, 1.0, 1.0]]).expand(4, 4)
_SOBEL = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])

# Sets of filters of one channel, by name. Sobel and Feldman, "A 3x3 isotropic gradient operator",
# 1968; an edge filter subtracts the mean of one half of its window from that of the other.
FILTERS: dict[str, dict[str, Tensor]] = {
    "edges": {
        "left to right": _EDGE / 8,
        "right to left": -_EDGE / 8,
        "top to bottom": _EDGE.T / 8,
        "bottom to top": -_EDGE.T / 8,
    },
    "sobel": {"horizontal": _SOBEL / 4, "vertical": _SOBEL.T / 4},
}


def fixed_filters(filters: Sequence[Tensor] | Tensor) -> Conv2d:
    """A convolution, by our kernels, of one channel by given filters, each (R, S); not trained.

    Raises:
        ValueError: there are none, or they are not matrices of one shape.
    """
    shapes = {tuple(kernel.shape) for kernel in filters}
    if len(shapes) != 1 or len(shape := shapes.pop()) != 2 or 0 in shape:
        raise ValueError("filters must be matrices of one shape, and one at least")
    convolution = Conv2d(1, len(filters), shape, bias=False)
    convolution.weight = nn.Parameter(
        torch.stack([*filters]).unsqueeze(1).float(), requires_grad=False
    )
    return convolution


def saliency(model: Callable[[Tensor], Tensor], image: Tensor, label: int) -> Tensor:
    """How much each pixel moves a logit: the gradient's largest magnitude over channels, (H, W).

    Simonyan, Vedaldi and Zisserman, "Deep inside convolutional networks", 2014, section 3.

    Args:
        model: images, (N, C, H, W), to logits.
        image: (C, H, W).
        label: the logit's index.
    """
    image = image.detach().unsqueeze(0).requires_grad_()
    (gradient,) = torch.autograd.grad(model(image)[0, label], image)
    return gradient[0].abs().amax(0)


def occlusion(
    model: Callable[[Tensor], Tensor],
    image: Tensor,
    label: int,
    size: int | None = None,
    stride: int = 1,
    batch_size: int = 128,
) -> Tensor:
    """How much of a label's probability is lost where a grey square hides a part of the image.

    Zeiler and Fergus, "Visualizing and understanding convolutional networks", 2014, section 4.2.

    Args:
        model: images, (N, C, H, W), to logits.
        image: (C, H, W).
        label: whose probability.
        size: of the square, by default a quarter of the image's.
        stride: pixels from a square to the next.
        batch_size: hidden images at a time.

    Returns:
        (H, W): at each pixel the mean over the squares that hide it; below 0 where hiding helps.
    """
    channels, height, width = image.shape
    size = size or max(1, min(height, width) // 4)
    tops, lefts = (
        sorted({*range(0, extent - size, stride), extent - size}) for extent in (height, width)
    )
    masks = torch.zeros(len(tops) * len(lefts), height, width, dtype=torch.bool)
    for i, (top, left) in enumerate((top, left) for top in tops for left in lefts):
        masks[i, top : top + size, left : left + size] = True
    with torch.inference_mode():
        whole = model(image.unsqueeze(0)).softmax(1)[0, label]
        grey = image.mean()
        losses = torch.cat(
            [
                whole - model(image.where(~part.unsqueeze(1), grey)).softmax(1)[:, label]
                for part in masks.split(batch_size)
            ]
        )
    weight = masks.to(losses.dtype)
    return torch.einsum("n,nhw->hw", losses, weight) / weight.sum(0)


def excite(
    model: nn.Module,
    layer: str,
    filters: Sequence[int],
    input_shape: tuple[int, int, int],
    steps: int = 100,
    seed: int = 0,
) -> Tensor:
    """Images that excite filters of a layer as much as gradient ascent finds.

    Erhan, Bengio, Courville and Vincent, "Visualizing higher-layer features of a deep network",
    2009. From noise near grey, each step goes up the gradient of the filter's mean output, scaled
    to length 1, after a shift by a few pixels at random. (Mordvintsev, Olah and Tyka, 2015)

    Args:
        model: images, (N, C, H, W), to anything; it has a module of that name.
        layer: the name, as in `named_modules`; its output is (N, K, P, Q) or (N, K).
        filters: indices in 0..K-1.
        input_shape: (C, H, W).
        steps: of the ascent.
        seed: of noise and shifts.

    Returns:
        (len(filters), C, H, W), in [0, 1].

    Raises:
        ValueError: there is no such layer or filter.
    """
    outputs: list[Tensor] = []
    module = dict(model.named_modules()).get(layer)
    if module is None or not layer:
        raise ValueError(f"no layer {layer!r}: not one of {', '.join(_leaves(model))}")
    handle = module.register_forward_hook(lambda module, args, output: outputs.append(output))
    draw = torch.Generator().manual_seed(seed)
    count = len(filters)
    images = 0.5 + 0.1 * torch.randn(count, *input_shape, generator=draw)
    try:
        for _ in range(steps):
            shifts = torch.randint(-_JITTER, _JITTER + 1, (2,), generator=draw).tolist()
            images = images.roll(shifts, (2, 3)).requires_grad_()
            outputs.clear()
            model(images)
            if max(filters) >= outputs[0].shape[1] or min(filters) < 0:
                raise ValueError(f"layer {layer} has the filters 0..{outputs[0].shape[1] - 1}")
            chosen = outputs[0][torch.arange(count), list(filters)]
            (gradient,) = torch.autograd.grad(chosen.reshape(count, -1).mean(1).sum(), images)
            length = gradient.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)
            reach = _STEP * math.sqrt(images[0].numel())
            with torch.no_grad():
                moved = images + reach * gradient / length
                images = (moved - _DECAY * (moved - 0.5)).clamp(0, 1)
                images = images.roll([-shift for shift in shifts], (2, 3))
    finally:
        handle.remove()
    return F.avg_pool2d(images.detach(), 3, 1, 1, count_include_pad=False)


def _leaves(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if not any(module.children())]
