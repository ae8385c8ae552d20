"""A network layer by layer: what comes out, how many parameters, how much arithmetic."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cnnkernels.config import ConfigError
from cnnkernels.demo import table
from cnnkernels.models import MODELS, build_model


@dataclass(frozen=True)
class Layer:
    """One layer's name and type, the shape of an image's output, parameters, FLOP an image."""

    name: str
    type: str
    output: tuple[int, ...]
    parameters: int
    flop: int


def layers(name: str, input_shape: tuple[int, int, int]) -> list[Layer]:
    """The layers of a model in the order in which an image of that shape, (C, H, W), passes them.

    Nothing is computed: torch's meta device knows shapes alone.

    FLOP, for one image: a convolution of D channels by K filters of R x S makes K outputs a
    position, each of D R S products and, with the bias, as many sums; a linear layer alike; a
    pooling window of R x S takes R S - 1 comparisons or sums, and an average one division; an
    adaptive one takes each pixel once.
    Activations, normalisation and sums of residual networks, which a kernel gets by the way,
    count as 0.

    Raises:
        ConfigError: the model does not take images of that shape.
    """
    with torch.device("meta"):
        model = build_model(name).eval()
        image = torch.empty(1, *input_shape)
    found: list[Layer] = []

    def note(title: str, module: nn.Module, x: Tensor, y: Tensor) -> None:
        parameters = sum(p.numel() for p in module.parameters())
        kind = type(module).__name__
        found.append(Layer(title, kind, tuple(y.shape[1:]), parameters, _flop(module, x, y)))

    for title, module in model.named_modules():
        if not any(module.children()):
            module.register_forward_hook(
                lambda module, args, y, title=title: note(title, module, args[0], y)
            )
    try:
        with torch.no_grad():
            model(image)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"model {name}: not for images of {_times(input_shape)}: {reason}") from (
            error
        )
    return found


def summary(name: str, input_shape: tuple[int, int, int] | None = None) -> str:
    """The layers as a table, with a row of totals."""
    input_shape = input_shape or MODELS[name].input_shape
    found = layers(name, input_shape)
    rows = [
        (
            f"{layer.name} {layer.type}",
            _times(layer.output),
            f"{layer.parameters:,}",
            f"{layer.flop:,}",
        )
        for layer in found
    ]
    parameters, flop = (sum(getattr(layer, n) for layer in found) for n in ("parameters", "flop"))
    rows.append(("all", "", f"{parameters:,}", f"{flop:,}"))
    return table((f"{name}, input {_times(input_shape)}", "output", "parameters", "FLOP"), rows)


def _flop(module: nn.Module, x: Tensor, y: Tensor) -> int:
    """Of one image; x and y are a batch of one."""
    if isinstance(module, nn.Conv2d):
        products = module.weight[0].numel()
        return y.numel() * (2 * products - (module.bias is None))
    if isinstance(module, nn.Linear):
        return y.numel() * (2 * module.in_features - (module.bias is None))
    if isinstance(module, (nn.MaxPool2d, nn.AvgPool2d)):
        size = module.kernel_size
        window = size * size if isinstance(size, int) else math.prod(size)
        return y.numel() * (window - isinstance(module, nn.MaxPool2d))
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return max(x.numel(), y.numel())
    return 0


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
