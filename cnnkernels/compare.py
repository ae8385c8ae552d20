"""Our kernels beside torch's, on one model: which ops run, how exact they are, how fast."""

import copy
import math
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import cnnkernels
from cnnkernels.train import train_step

EPS = torch.finfo(torch.float32).eps
_ROUND_SECONDS = 0.05


@dataclass(frozen=True)
class Parity:
    """Errors of one result, ||y - ref|| / ||ref||, against torch's in float64."""

    name: str
    ours: float
    torch: float

    @property
    def bound(self) -> float:
        """As good as torch's within the freedom that another order of summation has."""
        return max(2 * self.torch, 4 * EPS)

    @property
    def holds(self) -> bool:
        """Whether our error is within the bound; a NaN is not."""
        return self.ours <= self.bound


@dataclass(frozen=True)
class Timing:
    """Median seconds of one piece of work."""

    name: str
    ours: float
    torch: float

    @property
    def speedup(self) -> float:
        """How many times as fast as torch ours is."""
        return self.torch / self.ours


def parity(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> list[Parity]:
    """Compares the output and every gradient of the cross entropy with float64 references.

    `model` is made of torch.nn's modules and has float32 parameters; it stays as it is. The
    batches are pairs of images, (N, 1, 28, 28), and labels, (N,); the images should be decided
    ones, see `decided`. What several batches give counts as one long vector: ten elements, such
    as the gradient of one bias, are too few to tell rounding from luck.
    """
    batches = list(batches)
    reference = _results(copy.deepcopy(model).double(), batches)
    torchs = _results(copy.deepcopy(model), batches)
    ours = _results(cnnkernels.convert(copy.deepcopy(model)), batches)
    return [
        Parity(name, _relative_error(ours[name], exact), _relative_error(torchs[name], exact))
        for name, exact in reference.items()
    ]


def decided(model: nn.Module, images: Tensor) -> Tensor:
    """Tells on which images rounding cannot flip a ReLU or a maximum: bool, (N,).

    A flip sends a gradient elsewhere, however exact the arithmetic is: an error of another kind
    than the one `parity` judges. Safe is a distance, in float64, from zero at each nn.ReLU, and
    from the runners-up at each nn.MaxPool2d, that is above float32's rounding of that layer.
    Equal maxima are safe too: the first one wins in any precision.
    """
    safe = torch.ones(len(images), dtype=torch.bool)

    def check(module: nn.Module, inputs: tuple[Tensor]) -> None:
        distances = inputs[0].abs() if isinstance(module, nn.ReLU) else _leads(module, inputs[0])
        nearest = distances.flatten(1).amin(1)
        safe.logical_and_(nearest > 8 * EPS * inputs[0].abs().max())

    reference = copy.deepcopy(model).double()
    for module in reference.modules():
        if isinstance(module, (nn.ReLU, nn.MaxPool2d)):
            module.register_forward_pre_hook(check)
    with torch.no_grad():
        reference(images.double())
    return safe


def aten_calls(model: nn.Module, images: Tensor, labels: Tensor) -> set[str]:
    """Torch's own convolutions, ReLUs and poolings that a forward and backward pass calls."""
    with _AtenCalls() as calls:
        F.cross_entropy(model(images), labels).backward()
    return calls.names


def timings(model: nn.Module, images: Tensor, labels: Tensor, rounds: int) -> list[Timing]:
    """Times inference and a training step of `model` as it is and converted.

    Both take the same images, (N, 1, 28, 28), and the same threads. The sides take turns, so
    that both see what else the machine does.

    Raises:
        AssertionError: their outputs differ.
    """
    ours, theirs = cnnkernels.convert(copy.deepcopy(model)), copy.deepcopy(model)
    infer_ours, infer_theirs = _inference(ours, images), _inference(theirs, images)
    torch.testing.assert_close(infer_ours(), infer_theirs())
    return [
        _race("inference", infer_ours, infer_theirs, rounds),
        _race(
            "training step",
            _training(ours, images, labels),
            _training(theirs, images, labels),
            rounds,
        ),
    ]


def cpu_name() -> str:
    """The processor's name as Linux gives it, else as Python does."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _results(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """By name, the output and the gradients, those of all batches in one vector."""
    dtype = next(model.parameters()).dtype
    found = defaultdict(list)
    for images, labels in batches:
        images = images.to(dtype, copy=True).requires_grad_()
        model.zero_grad()
        output = model(images)
        F.cross_entropy(output, labels).backward()
        found["output"].append(output.detach())
        for name, parameter in model.named_parameters():
            found[f"gradient of {name}"].append(parameter.grad)
        found["gradient of input"].append(images.grad)
    return {name: torch.cat([part.flatten() for part in parts]) for name, parts in found.items()}


def _relative_error(y: Tensor, reference: Tensor) -> float:
    return ((y.double() - reference).norm() / reference.norm()).item()


def _leads(pool: nn.MaxPool2d, x: Tensor) -> Tensor:
    """By how much each value of a window is below the window's maximum; inf for the maxima."""
    pad_h, pad_w = _pair(pool.padding)
    planes = F.pad(x.flatten(0, 1).unsqueeze(1), (pad_w, pad_w, pad_h, pad_h), value=-math.inf)
    windows = F.unfold(planes, pool.kernel_size, pool.dilation, 0, pool.stride)
    lead = windows.amax(1, keepdim=True) - windows
    return lead.masked_fill(lead == 0, math.inf).view(len(x), -1)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


class _AtenCalls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kinds = ("conv", "pool", "relu", "threshold")  # threshold_backward is ReLU's
        if func.namespace == "aten" and any(kind in func.__name__ for kind in kinds):
            self.names.add(func.__name__)
        return func(*args, **(kwargs or {}))


def _inference(model: nn.Module, images: Tensor) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.inference_mode():
            return model(images)

    return run


def _training(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    return lambda: train_step(model, optimizer, images, labels)


def _race(name: str, ours: Callable, theirs: Callable, rounds: int) -> Timing:
    sides = (ours, theirs)
    repeats = [math.ceil(_ROUND_SECONDS / _seconds(side, 3)) for side in sides]  # warms up, too
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds):
        for side in (0, 1) if turn % 2 == 0 else (1, 0):
            times[side].append(_seconds(sides[side], repeats[side]))
    return Timing(name, statistics.median(times[0]), statistics.median(times[1]))


def _seconds(work: Callable, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - start) / repeats
