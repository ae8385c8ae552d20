"""The passes that are measured, as calls without arguments: ours beside torch's, same inputs."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import cnnkernels
from cnnkernels import autograd, functional
from cnnkernels.bench.cases import (
    ADAPTIVE_POOLS,
    CONVOLUTIONS,
    FUSED,
    POOLS,
    ConvCase,
    FusedCase,
    PoolCase,
)
from cnnkernels.selection import Candidate

CONV_PASSES = ("fprop", "dgrad", "wgrad", "bgrad")
FUSED_PASSES = ("forward", "backward")
POOL_PASSES = ("max_forward", "max_backward", "avg_forward", "avg_backward")

Call = Callable[[], tuple[Tensor, ...]]


class Calls(NamedTuple):
    ours: Call
    torchs: Call


@dataclass(frozen=True)
class Pass:
    """A pass of a case; `op` is what ``cnnkernels.info()["algorithms"]`` calls its kernels."""

    op: str
    case: ConvCase | FusedCase | PoolCase
    name: str

    @property
    def function(self) -> str:
        """The name in cnnkernels.functional."""
        if isinstance(self.case, FusedCase):
            return f"conv2d_relu_{self.case.pool}_pool2d"
        return "conv2d" if self.op == "conv2d" else self.op.replace("pool", f"{self.name[:3]}_pool")

    @property
    def kernel_pass(self) -> str:
        """Of the kernels that it runs, the one that tells by which algorithm."""
        return {"forward": "fprop", "backward": "dgrad"}.get(self.name, self.name)

    @property
    def kwargs(self) -> dict[str, Any]:
        """The arguments of our function beside its tensors."""
        if isinstance(self.case, FusedCase):
            return self.case.kwargs | dict(pool_kernel_size=self.case.window)
        return self.case.kwargs

    def candidates(self, device: str) -> list[Candidate]:
        """The algorithms that can run it in float32."""
        sizes = [self.case.input, *([] if isinstance(self.case, PoolCase) else [self.case.weight])]
        tensors = [torch.empty(size, device=device) for size in sizes]
        found = cnnkernels.algorithms(self.function, *tensors, **self.kwargs)
        return [c for c in found if self.kernel_pass in c.passes and c.unsupported is None]

    def calls(self, device: str, dtype: torch.dtype = torch.float32) -> Calls:
        """The pass by either side; ours keeps the algorithm that is asked for now."""
        make = {"conv2d": _conv_calls, "conv2d_relu_pool2d": _fused_calls}.get(self.op, _pool_calls)
        return make(self, device, dtype)


PASSES = [
    Pass(op, case, name)
    for op, cases, names in (
        ("conv2d", CONVOLUTIONS, CONV_PASSES),
        ("conv2d_relu_pool2d", FUSED, FUSED_PASSES),
        ("pool2d", POOLS, POOL_PASSES),
        ("adaptive_pool2d", ADAPTIVE_POOLS, POOL_PASSES),
    )
    for case in cases
    for name in names
]


def _randoms(device: str, dtype: torch.dtype) -> Callable[..., Tensor]:
    """The same float32 values in any dtype, in the order of the calls."""
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=generator).to(device, dtype)


def _laid_out(case: ConvCase | PoolCase, tensor: Tensor) -> Tensor:
    layout = torch.channels_last if case.channels_last else torch.contiguous_format
    return tensor.to(memory_format=layout)


def _conv_calls(which: Pass, device: str, dtype: torch.dtype) -> Calls:
    random, case = _randoms(device, dtype), which.case
    x, w = (_laid_out(case, random(*size)) for size in (case.input, case.weight))
    b = random(case.weight[0])
    if which.name == "fprop":
        return Calls(
            lambda: (functional.conv2d(x, w, b, **case.kwargs),),
            lambda: (F.conv2d(x, w, b, **case.kwargs),),
        )
    grad = _laid_out(case, random(*F.conv2d(x, w, b, **case.kwargs).shape))
    index = CONV_PASSES.index(which.name) - 1
    needed = [i == index for i in range(3)]
    stride, padding, dilation = (
        [case.kwargs.get(name, default)] * 2
        for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))
    )
    groups = case.kwargs.get("groups", 1)
    operands = (x if needed[1] else None, w if needed[0] else None)
    like = (*x.shape[1:], *w.shape[2:], case.channels_last)
    geometry = (*stride, *padding, *padding, *dilation, groups)
    kernels = functional._conv_kernels(x)
    return Calls(
        lambda: autograd.call(
            "conv2d_backward", grad, None, *operands, *like, *geometry, needed[2], kernels
        )[index : index + 1],
        lambda: torch.ops.aten.convolution_backward(
            grad, x, w, list(b.shape), stride, padding, dilation, False, [0, 0], groups, needed
        )[index : index + 1],
    )


def _fused_calls(which: Pass, device: str, dtype: torch.dtype) -> Calls:
    case = which.case
    ours = getattr(functional, which.function)
    pool = getattr(F, f"{case.pool}_pool2d")

    # Whole numbers, whose sums are exact: else the sides would differ in which of two nearly equal
    # pixels is the maximum.
    generator = torch.Generator().manual_seed(0)
    x, w, b = (
        torch.randint(-3, 4, size, generator=generator).to(device, dtype)
        for size in (case.input, case.weight, case.weight[:1])
    )
    functions = (
        lambda: ours(x, w, b, **which.kwargs),
        lambda: pool(F.relu(F.conv2d(x, w, b, **case.kwargs)), case.window),
    )
    return _autograd_calls(which, functions, (x, w, b))


def _pool_calls(which: Pass, device: str, dtype: torch.dtype) -> Calls:
    x = _laid_out(which.case, _randoms(device, dtype)(*which.case.input))
    pools = getattr(functional, which.function), getattr(F, which.function)
    functions = [(lambda pool=pool: pool(x, **which.kwargs)) for pool in pools]
    return _autograd_calls(which, functions, (x,))


def _autograd_calls(
    which: Pass, functions: Iterable[Callable[[], Tensor]], leaves: tuple[Tensor, ...]
) -> Calls:
    """The functions, ours and torch's, or the gradients of their leaves."""
    if which.name.endswith("forward"):
        return Calls(*((lambda function=function: (function(),)) for function in functions))
    for leaf in leaves:
        leaf.requires_grad_()
    outputs = [function() for function in functions]
    grad = torch.ones_like(outputs[0]).cumsum(-1)  # whole numbers, not all alike
    return Calls(
        *(
            (lambda y=output: torch.autograd.grad(y, leaves, grad, retain_graph=True))
            for output in outputs
        )
    )
