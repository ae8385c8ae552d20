"""Every kernel beside torch's: same inputs, threads and dtype, outputs checked first.

    pytest benchmarks                          native kernels against torch on the CPU
    pytest benchmarks -m gpu                   CUDA kernels against cuDNN and ATen

Each pass of each case is one group of the report, with a row for each side. On a GPU, cuDNN is
left to choose its fastest algorithm (benchmark=True), tf32 is off on both sides, and CUDA events
are the clock.
"""

import time
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_accurate

import cnnkernels
from benchmarks.cases import ADAPTIVE_POOLS, CONVOLUTIONS, POOLS, ConvCase, PoolCase
from cnnkernels import autograd, functional

CONV_PASSES = ("fprop", "dgrad", "wgrad", "bgrad")
POOL_PASSES = ("max_forward", "max_backward", "avg_forward", "avg_backward")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


class CudaClock:
    """Seconds, as the difference of two calls, by CUDA events on the current stream."""

    def __init__(self):
        self.start = None

    def __call__(self) -> float:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        event.synchronize()
        if self.start is None:
            self.start = event
        return self.start.elapsed_time(event) / 1e3


@pytest.fixture(params=DEVICES)
def device(request, benchmark, monkeypatch):
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no GPU")
        benchmark._timer = CudaClock()
        monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    else:
        benchmark._timer = time.perf_counter
    return request.param


def algorithms_of(op: str, device: str, kernel_pass: str) -> str:
    """The algorithms that offer the pass; the first of them that takes the case runs."""
    backend = "cuda" if device == "cuda" else "cpu"
    algorithms = cnnkernels.info()["algorithms"][backend][op]
    return ", ".join(name for name, passes in algorithms.items() if kernel_pass in passes)


def randoms(device: str, dtype: torch.dtype) -> Callable[..., torch.Tensor]:
    """The same float32 values in any dtype, in the order of the calls."""
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=generator).to(device, dtype)


def conv_pass(
    case: ConvCase, kernel_pass: str, device: str, dtype: torch.dtype
) -> tuple[Callable, Callable]:
    """The pass as a call without arguments, ours and torch's."""
    random = randoms(device, dtype)
    x, w, b = random(*case.input), random(*case.weight), random(case.weight[0])
    if kernel_pass == "fprop":
        return (
            lambda: functional.conv2d(x, w, b, **case.kwargs),
            lambda: F.conv2d(x, w, b, **case.kwargs),
        )
    output = F.conv2d(x, w, b, **case.kwargs)
    grad = random(*output.shape)
    index = CONV_PASSES.index(kernel_pass) - 1
    needed = [i == index for i in range(3)]
    stride, padding, dilation = (
        [case.kwargs.get(name, default)] * 2
        for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))
    )
    groups = case.kwargs.get("groups", 1)
    operands = (x if needed[1] else None, w if needed[0] else None)
    like = (*x.shape[1:], *w.shape[2:], False)
    geometry = (*stride, *padding, *padding, *dilation, groups)
    return (
        lambda: autograd.call(
            "conv2d_backward", grad, None, *operands, *like, *geometry, needed[2], None
        )[index],
        lambda: torch.ops.aten.convolution_backward(
            grad, x, w, list(b.shape), stride, padding, dilation, False, [0, 0], groups, needed
        )[index],
    )


def pool_pass(
    case: PoolCase, kernel_pass: str, device: str, dtype: torch.dtype
) -> tuple[Callable, Callable]:
    random = randoms(device, dtype)
    x = random(*case.input)
    adaptive = "adaptive_" if "output_size" in case.kwargs else ""
    name = f"{adaptive}{kernel_pass[:3]}_pool2d"
    pools = getattr(functional, name), getattr(F, name)
    if kernel_pass.endswith("forward"):
        return tuple((lambda pool=pool: pool(x, **case.kwargs)) for pool in pools)
    x.requires_grad_()
    outputs = [pool(x, **case.kwargs) for pool in pools]
    grad = random(*outputs[0].shape)
    return tuple(
        (lambda y=output: torch.autograd.grad(y, x, grad, retain_graph=True)[0])
        for output in outputs
    )


@pytest.mark.parametrize("side", ["ours", "torch"])
@pytest.mark.parametrize(
    ("op", "case", "kernel_pass"),
    [("conv2d", case, name) for case in CONVOLUTIONS for name in CONV_PASSES]
    + [("pool2d", case, name) for case in POOLS for name in POOL_PASSES]
    + [("adaptive_pool2d", case, name) for case in ADAPTIVE_POOLS for name in POOL_PASSES],
    ids=lambda value: getattr(value, "name", value),
)
def test_kernel(benchmark, device, op, case, kernel_pass, side):
    make = conv_pass if op == "conv2d" else pool_pass
    ours, torchs = make(case, kernel_pass, device, torch.float32)
    _, reference = make(case, kernel_pass, device, torch.float64)
    assert_accurate(ours(), torchs(), reference())

    benchmark.group = f"{case.name} {kernel_pass} {device}"
    benchmark.extra_info["algorithms"] = algorithms_of(op, device, kernel_pass)
    benchmark(ours if side == "ours" else torchs)
