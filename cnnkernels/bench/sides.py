"""The sides of a comparison: one piece of work by our kernels and in torch's ways, as calls.

Each side has tensors and modules of its own, in its own layout, made before the clock starts.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cnnkernels
from cnnkernels import functional
from cnnkernels.bench.cases import (
    ADAPTIVE_POOLS,
    CONVOLUTIONS,
    FUSED,
    MODELS,
    POOLS,
    ZOO,
    ConvCase,
    FusedCase,
    ModelCase,
    PoolCase,
)
from cnnkernels.data import MissingExtra, import_extra
from cnnkernels.models import MODELS as SPECS
from cnnkernels.models import build_model
from cnnkernels.train import train_step

Call = Callable[[], Sequence[Tensor]]

ZOO_IMAGE = (3, 224, 224)

# Torch's own ways: as users write it, in the other layout, and compiled.
SIDES = ("ours", "eager", "channels_last", "compile")
SUITES = ("layers", "models", "pool", "fused")
OTHER_SUITES = ("zoo",)  # not part of all: it needs torchvision


@dataclass(frozen=True)
class Work:
    """A pass of a case, to be done by each side."""

    suite: str
    case: str
    name: str  # of the pass: forward, backward, inference or step
    channels_last: bool  # as written
    make: Callable[[str, torch.device], Call]  # of a side
    sides: tuple[str, ...] = SIDES

    @property
    def layout(self) -> str:
        """Of the tensors as written."""
        return "channels_last" if self.channels_last else "nchw"


def works(suite: str, quick: bool = False) -> Iterator[Work]:
    """The table of a suite; `quick`: the first two cases of each kind, two images."""
    cases: dict[str, list[Sequence[Any]]] = {
        "layers": [CONVOLUTIONS],
        "models": [MODELS],
        "pool": [POOLS, ADAPTIVE_POOLS],
        "fused": [FUSED],
        "zoo": [ZOO],
    }
    for kind in cases[suite]:
        for case in kind[:2] if quick else kind:
            yield from _passes(suite, shrunk(case) if quick else case)


def shrunk(case: Any) -> Any:
    """The case with two images at most."""
    small = copy.copy(case)
    if isinstance(case, ModelCase):
        object.__setattr__(small, "batch", min(2, case.batch))
    else:
        object.__setattr__(small, "input", (min(2, case.input[0]), *case.input[1:]))
    return small


def _passes(suite: str, case: Any) -> Iterator[Work]:
    if isinstance(case, ModelCase):
        for name in case.passes:
            # To compile a whole network of the zoo takes minutes.
            sides = tuple(side for side in SIDES if side != "compile" or not case.zoo)
            yield Work(suite, case.name, name, False, partial(_MODEL_WORKS[name], case), sides)
        return
    for label, function, tensors in _layer_works(case):
        for name in ("forward", "backward"):
            make = partial(_layer_call, case.channels_last, name, function, tensors)
            yield Work(suite, label, name, case.channels_last, make)


# ---------------------------------------------------------------- layers

Function = Callable[..., Tensor]  # of our functional or torch's, then of tensors


def _layer_works(case: Any) -> Iterator[tuple[str, Function, Callable[[], list[Tensor]]]]:
    """The names of what a case measures, the function, and how its tensors are made."""
    if isinstance(case, PoolCase):
        kind = "adaptive_" if "output_size" in case.kwargs else ""
        for pool in ("max", "avg"):
            tensors = partial(_tensors, torch.randn, case.input)
            yield f"{case.name}, {pool}", partial(_pool, f"{kind}{pool}_pool2d", case), tensors
    elif isinstance(case, FusedCase):
        # Whole numbers, whose sums are exact: else the sides would differ in which of two nearly
        # equal pixels is the maximum.
        whole = partial(torch.randint, -3, 4)
        yield case.name, partial(_fused, case), partial(_conv_tensors, whole, case)
    else:
        yield case.name, partial(_conv, case), partial(_conv_tensors, torch.randn, case)


def _conv(case: ConvCase, ours: bool, *tensors: Tensor) -> Tensor:
    return (functional if ours else F).conv2d(*tensors, **case.kwargs)


def _fused(case: FusedCase, ours: bool, *tensors: Tensor) -> Tensor:
    if ours:
        function = getattr(functional, f"conv2d_relu_{case.pool}_pool2d")
        return function(*tensors, **case.kwargs, pool_kernel_size=case.window)
    pool = getattr(F, f"{case.pool}_pool2d")
    return pool(F.relu(F.conv2d(*tensors, **case.kwargs)), case.window)


def _pool(function: str, case: PoolCase, ours: bool, *tensors: Tensor) -> Tensor:
    return getattr(functional if ours else F, function)(*tensors, **case.kwargs)


def _conv_tensors(random: Callable[..., Tensor], case: ConvCase) -> list[Tensor]:
    return _tensors(random, case.input, case.weight, case.weight[:1])


def _tensors(random: Callable[..., Tensor], *sizes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [random(size, generator=generator).float() for size in sizes]


def _layer_call(
    channels_last: bool,
    name: str,
    function: Function,
    make_tensors: Callable[[], list[Tensor]],
    side: str,
    device: torch.device,
) -> Call:
    """A call of the function, or of its backward pass: the gradients of all but an image."""
    format = torch.channels_last if channels_last or side == "channels_last" else None
    tensors = [_moved(tensor, device, format) for tensor in make_tensors()]
    function = partial(function, side == "ours")
    if side == "compile":
        function = torch.compile(function, dynamic=False)
    if name == "forward":
        return _inference(lambda: (function(*tensors),))
    leaves = [t for t in tensors if not _is_image(t, tensors)]
    for leaf in leaves:
        leaf.requires_grad_()
    output = function(*tensors)
    whole = torch.arange(output.numel(), device=device).view(output.shape) % 7 - 3
    grad = _moved(whole.to(output.dtype), device, format)
    return lambda: torch.autograd.grad(output, leaves, grad, retain_graph=True)


def _is_image(tensor: Tensor, tensors: list[Tensor]) -> bool:
    """Whether it is what a network's first layer takes: nobody asks for its gradient."""
    return len(tensors) > 1 and tensor is tensors[0] and tensor.shape[1] <= 3


def _moved(tensor: Tensor, device: torch.device, format: torch.memory_format | None) -> Tensor:
    if format is None or tensor.dim() != 4:
        return tensor.to(device)
    return tensor.to(device).contiguous(memory_format=format)


# ---------------------------------------------------------------- models


def zoo() -> ModuleType:
    """torchvision.models.

    Raises:
        MissingExtra: it is absent, or was built for another torch.
    """
    try:
        return import_extra("torchvision.models", "torchvision", extra="dev")
    except RuntimeError as error:
        raise MissingExtra(f"torchvision does not load beside this torch: {error}") from error


def _model_side(case: ModelCase, side: str, device: torch.device) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    if case.zoo:
        model, shape = getattr(zoo(), case.model)().to(device), ZOO_IMAGE
    else:
        model, shape = build_model(case.model).to(device), SPECS[case.model].input_shape
    images = torch.randn(case.batch, *shape).to(device)
    if side == "ours":
        model = cnnkernels.convert(model)
    if side == "channels_last":
        model = model.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    return model, images


def _inference(call: Call) -> Call:
    def run() -> Sequence[Tensor]:
        with torch.no_grad():
            return call()

    return run


def _model_inference(case: ModelCase, side: str, device: torch.device) -> Call:
    model, images = _model_side(case, side, device)
    model.eval()
    forward = torch.compile(model, dynamic=False) if side == "compile" else model
    allowed = side == "ours" and case.fast_math

    def run() -> Sequence[Tensor]:
        with cnnkernels.fast_math(winograd=allowed):
            return (forward(images),)

    return _inference(run)


def _model_step(case: ModelCase, side: str, device: torch.device) -> Call:
    """A training step without dropout, which would draw other numbers on each side."""
    model, images = _model_side(case, side, device)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    labels = torch.arange(case.batch, device=device) % SPECS[case.model].classes
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    trained = torch.compile(model, dynamic=False) if side == "compile" else model
    return lambda: (train_step(trained, optimizer, images, labels),)


_MODEL_WORKS = {"inference": _model_inference, "step": _model_step}
