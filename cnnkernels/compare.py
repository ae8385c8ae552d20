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
from cnnkernels import fusion
from cnnkernels.train import train_step

EPS = torch.finfo(torch.float32).eps
_ROUND_SECONDS = 0.05


@dataclass(frozen=True)
class Parity:
    """Errors of one result, ||y - ref|| / ||ref||, against torch's in float64.

    `eps` is a unit in the last place of what is multiplied.
    """

    name: str
    ours: float
    torch: float
    eps: float = EPS

    @property
    def bound(self) -> float:
        """As good as torch's within the freedom that another order of summation has."""
        return max(2 * self.torch, 4 * self.eps)

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


@dataclass(frozen=True)
class Comparison:
    """Errors of the output and of every gradient, and the share of decisions left out."""

    rows: list[Parity]
    left_out: float

    @property
    def holds(self) -> bool:
        """Whether every row does."""
        return all(row.holds for row in self.rows)


def parity(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    fuse: bool = True,
    eps: float = EPS,
) -> Comparison:
    """Compares the output and every gradient of the cross entropy with float64 references.

    `model` is made of torch.nn's modules, each used once, and has float32 parameters; it stays as
    it is. The batches are pairs of images, (N, C, H, W), and labels, (N,). What several batches
    give counts as one long vector: ten elements, such as the gradient of one bias, are too few to
    tell rounding from luck.

    Where a ReLU's input is so near to zero, or two values of a pooling window are so near to each
    other, that rounding may turn the decision, a turn would send the gradient elsewhere, however
    exact the arithmetic is: an error of another kind than the one judged here. So no gradient
    passes there, in the reference, in torch and in ours alike, and the rest of the network is
    compared in full. Near is what the outputs in float32 are off float64 at that layer: wrong
    outputs cannot hide there, since theirs is a row of its own, and a network with all its
    gradients stopped has none that hold.

    `fuse` is convert's; `eps` the unit in the last place of what the kernels multiply, where that
    is not float32's: 2**-10 of tf32.
    """
    sides = (
        copy.deepcopy(model).double().eval(),
        copy.deepcopy(model).eval(),
        cnnkernels.convert(copy.deepcopy(model).eval(), fuse=fuse),
    )
    decisions = [
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.ReLU, nn.MaxPool2d, nn.AvgPool2d))
    ]
    found, passed = [defaultdict(list) for _ in sides], []
    for images, labels in batches:
        passes = [_Pass(side, decisions, images) for side in sides]
        gates = _gates(sides[0], *(forward.trace for forward in passes))
        passed += [gate.flatten() for gate in gates.values()]
        for forward, results in zip(passes, found, strict=True):
            for name, result in forward.results(labels, gates).items():
                results[name].append(result.flatten())
    exact, torchs, ours = ({name: torch.cat(parts) for name, parts in f.items()} for f in found)
    rows = [
        Parity(name, _relative_error(ours[name], y), _relative_error(torchs[name], y), eps)
        for name, y in exact.items()
    ]
    return Comparison(rows, 1 - torch.cat(passed).double().mean().item())


def aten_calls(model: nn.Module, images: Tensor, labels: Tensor) -> set[str]:
    """Torch's own convolutions, ReLUs and poolings that a forward and backward pass calls."""
    with _AtenCalls() as calls:
        F.cross_entropy(model(images), labels).backward()
    return calls.names


def timings(model: nn.Module, images: Tensor, labels: Tensor, rounds: int) -> list[Timing]:
    """Times inference and a training step of `model` as it is and converted.

    Both take the same images, (N, C, H, W), and the same threads. The sides take turns, so
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


_Trace = dict[str, tuple[Tensor, Tensor]]


class _Pass:
    """A forward pass and, once it is known what gradients may pass, its backward pass.

    `trace` has the input and the output of the modules that decide, in the order of their calls.
    """

    def __init__(self, model: nn.Module, decisions: Iterable[str], images: Tensor) -> None:
        self.model = model
        self.trace: _Trace = {}
        self.gates: dict[str, Tensor] = {}
        self.images = images.to(next(model.parameters()).dtype, copy=True).requires_grad_()
        self._names = {model.get_submodule(name): name for name in decisions}
        in_rows = {
            parent.get_submodule(name)
            for parent in model.modules()
            for row in fusion.rows(parent)
            for name in row.names
        }
        handles = []
        for module in self._names.keys() - in_rows:
            handles.append(module.register_forward_pre_hook(self._before))
            handles.append(module.register_forward_hook(self._after))
        with fusion.observing(self._row):
            self.output = model(self.images)
        for handle in handles:
            handle.remove()

    def results(self, labels: Tensor, gates: dict[str, Tensor]) -> dict[str, Tensor]:
        """By name, the output and the gradients of what passes the gates."""
        self.gates = gates
        names, parameters = zip(*self.model.named_parameters(), strict=True)
        loss = F.cross_entropy(self.output, labels)
        gradients = torch.autograd.grad(loss, (*parameters, self.images))
        titles = (f"gradient of {name}" for name in (*names, "input"))
        return {"output": self.output.detach(), **dict(zip(titles, gradients, strict=True))}

    def _row(self, modules: list[nn.Module], run: Callable[[], Tensor]) -> Tensor:
        """One call for all of them: what lies between is not seen."""
        output = run()
        for module in modules:
            if module in self._names:
                self._input = output.detach()
                self._after(module, (output,), output)
        return output

    def _before(self, module: nn.Module, args: tuple[Tensor]) -> None:
        in_place = getattr(module, "inplace", False)
        self._input = args[0].detach().clone() if in_place else args[0].detach()

    def _after(self, module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        name = self._names[module]
        self.trace[name] = self._input, output.detach()
        output.register_hook(
            lambda gradient: gradient * self.gates[name] if name in self.gates else None
        )


def _gates(model: nn.Module, exact: _Trace, *float32: _Trace) -> dict[str, Tensor]:
    """For each ReLU and pooling, by name, which of its outputs rounding cannot redirect: bool.

    The ReLU before a pooling has none of its own, for one kernel may compute both. Then nothing of
    the ReLU's is seen on that side, and its reach is that of the others.
    """
    gates, relu = {}, None
    for name, (x, output) in exact.items():
        module = model.get_submodule(name)
        seen = [trace[name][1] for trace in float32 if trace[name][1].shape == output.shape]
        reach = 2 * max((result - output).abs().max().item() for result in seen)
        follows_relu = relu is not None and x.data_ptr() == exact[relu][1].data_ptr()
        if isinstance(module, nn.ReLU):
            gates[name], relu = x.abs() > reach, name
        elif isinstance(module, nn.AvgPool2d):
            if follows_relu:
                near = (~gates.pop(relu)).to(x.dtype)
                gates[name] = module(near) == 0  # an average of none
        elif follows_relu:
            del gates[relu]
            lead, best = _leads(module, exact[relu][0])
            gates[name] = (lead > 2 * reach) & (best.abs() > reach)
        else:
            gates[name] = _leads(module, x)[0] > 2 * reach
    return gates


def _leads(pool: nn.MaxPool2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """Of each window, the maximum's lead over the next smaller value, and the maximum.

    Equal maxima do not count: the first one wins in any precision.
    """
    pad_h, pad_w = _pair(pool.padding)
    planes = F.pad(x.flatten(0, 1).unsqueeze(1), (pad_w, pad_w, pad_h, pad_h), value=-math.inf)
    windows = F.unfold(planes, pool.kernel_size, pool.dilation, 0, pool.stride)
    best = windows.amax(1)
    leads = best.unsqueeze(1) - windows
    shape = pool(x).shape
    return leads.masked_fill(leads == 0, math.inf).amin(1).view(shape), best.view(shape)


def _relative_error(y: Tensor, reference: Tensor) -> float:
    return ((y.double() - reference).norm() / reference.norm()).item()


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
