"""The compiled PTX of the CUDA kernels, run through their launchers by an interpreter, ptxsim.

The emulator runs the kernels' source; this sees what nvcc made of it, inline PTX included.
Needs nvcc, and ptxsim in the folder that CNNKERNELS_PTXSIM names.
"""

import itertools
import math
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import test_adaptive_pool2d
import test_autograd
import test_conv2d
import test_conv2d_depthwise
import test_conv2d_implicit_gemm
import test_conv2d_pool
import test_conv2d_tensor_core
import test_conv2d_tiled
import test_conv2d_winograd
import test_pool2d
import test_pool2d_vector
import test_registry
import test_semantics
import torch
import torch.nn.functional as F
from accuracy import assert_accurate, integers
from ptx.build import ROOT
from ptx.gpu import (
    DEVICE,
    DTYPES,
    PROBLEMS,
    AdaptivePool2dProblem,
    Argmax,
    Fault,
    Gpu,
    Pool2dProblem,
)
from ptx.passes import (
    Pass,
    Problem,
    adaptive_pool2d_problem,
    adaptive_windows,
    avg_pool2d_passes,
    conv2d_passes,
    conv2d_pool_backward,
    conv2d_pool_forward,
    conv2d_pool_problem,
    conv2d_problem,
    max_pool2d_backward,
    max_pool2d_forward,
    problem_of,
    run,
    torchs,
)
from test_conv2d import grad_of_output, operands, torch_conv2d_relu, with_gradients
from torch import Tensor

import cnnkernels
from cnnkernels.functional import _pair

FORMATS = ["contiguous", "channels_last", "sliced"]


def assert_equal(actual: Tensor, expected: Tensor, what: str) -> None:
    """Bit for bit, but for the sign of zero and the bits of NaN."""
    torch.testing.assert_close(
        actual, expected, rtol=0, atol=0, equal_nan=True, msg=lambda text: f"{what}: {text}"
    )


def accurate(reference: Tensor) -> Callable[[Tensor, Tensor, str], None]:
    """Judges by the accuracy rule; torch's own result takes the place of the expected one."""
    return lambda result, torchs, what: assert_accurate(result, torchs, reference, what)


def test_required_kernels_are_there(gpu):
    for op, algorithms in test_registry.REQUIRED["cuda"].items():
        assert set(gpu.algorithms(op)) >= set(algorithms)


def check(
    gpu: Gpu, which: Pass, judge: Callable[[Tensor, Tensor, str], None] = assert_equal
) -> None:
    """Every algorithm that takes the problem gives the results, laid out in that way."""
    ran = False
    for algorithm, results in run(gpu, which):
        ran = True
        for result, expected in zip(results, which.results, strict=True):
            judge(gpu.read(result), expected, f"{which.function} of {algorithm}")
    assert ran, f"no algorithm for {which.function}"


# ---------------------------------------------------------------- convolution


def check_conv2d(gpu, tensors, expected, kwargs, relu_output=None, judges=(assert_equal,) * 4):
    """Runs all passes: from input, weight, bias and grad_output to the output and gradients."""
    names = ("input", "weight", "bias", "grad_output")
    operands = [*map(gpu.put, tensors, names)]
    relu = None if relu_output is None else gpu.put(relu_output, "relu_output")
    expected = [*expected[:3], expected[3].contiguous()]
    passes = conv2d_passes(operands, relu, expected, kwargs)
    for which, judge in zip(passes, judges, strict=True):
        check(gpu, which, judge)


def check_conv2d_exactly(
    gpu, shape, filters, kwargs, dtype, relu, layouts=(lambda t: t,) * 3, fast_math=False
):
    """Sums of small integers are exact, so that results are float64's, rounded once.

    The layouts are those of input, weight and output. fast_math divides weights by 24 twice.
    """
    random = partial(integers, high=1) if fast_math else integers
    tensors = operands(shape, filters, kwargs, dtype, "cpu", random)
    tensors[1] *= 24**2 if fast_math else 1
    grad_output = grad_of_output(F.conv2d, tensors, kwargs, random)
    function = torch_conv2d_relu if relu else F.conv2d
    doubles = [t.double() for t in tensors]
    references = with_gradients(function, doubles, grad_output.double(), kwargs)
    output, grad_input, grad_weight, grad_bias = (t.to(dtype) for t in references)

    input, weight, bias = tensors
    of_input, of_weight, of_output = layouts
    check_conv2d(
        gpu,
        [of_input(input), of_weight(weight), test_conv2d.sliced(bias), of_output(grad_output)],
        [of_output(output), of_input(grad_input), of_weight(grad_weight), grad_bias],
        kwargs | dict(fast_math=fast_math),
        of_output(output) if relu else None,
    )


@pytest.mark.parametrize("relu", [False, True], ids=["plain", "relu"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("problem", test_conv2d.PROBLEMS)
def test_conv2d_is_exact_on_small_integers(gpu, problem, dtype, relu):
    check_conv2d_exactly(gpu, *test_conv2d.PROBLEMS[problem], dtype, relu)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("instance", test_conv2d_tiled.INSTANCES, ids=str)
def test_tiled_conv2d_is_exact_on_small_integers(gpu, instance, dtype):
    check_conv2d_exactly(gpu, *test_conv2d_tiled.INSTANCES[instance], dtype, relu=True)


@pytest.mark.parametrize("relu", [False, True], ids=["plain", "relu"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("problem", test_conv2d_implicit_gemm.PROBLEMS)
def test_implicit_gemm_is_exact_on_small_integers(gpu, problem, layout, relu):
    layouts = (test_conv2d.LAYOUTS[layout],) * 3
    problem = test_conv2d_implicit_gemm.PROBLEMS[problem]
    check_conv2d_exactly(gpu, *problem, torch.float32, relu, layouts)


@pytest.mark.parametrize("relu", [False, True], ids=["plain", "relu"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", test_conv2d_tensor_core.DTYPES, ids=str)
@pytest.mark.parametrize("problem", test_conv2d_tensor_core.PACKED)
def test_tensor_core_is_exact_on_small_integers(gpu, problem, dtype, layout, relu):
    layouts = (test_conv2d.LAYOUTS[layout],) * 3
    problem = test_conv2d_tensor_core.PACKED[problem]
    check_conv2d_exactly(gpu, *problem, dtype, relu, layouts)


@pytest.mark.parametrize("relu", [False, True], ids=["plain", "relu"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("problem", ["odd", "wide_padding", "groups", "even"])
def test_winograd_is_exact_on_small_integers(gpu, problem, layout, relu):
    layouts = (test_conv2d.LAYOUTS[layout],) * 3
    shape, K, kwargs = test_conv2d_winograd.PROBLEMS[problem]
    problem = shape, (K, 3, 3), kwargs
    check_conv2d_exactly(gpu, *problem, torch.float32, relu, layouts, fast_math=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("problem", ["small", "halving", "halving_even", "seven", "many_images"])
def test_depthwise_is_exact_on_small_integers(gpu, problem, layout, dtype):
    layouts = (test_conv2d.LAYOUTS[layout],) * 3
    shape, size, kwargs = test_conv2d_depthwise.PROBLEMS[problem]
    problem = shape, (shape[1], *size), kwargs | dict(groups=shape[1])
    check_conv2d_exactly(gpu, *problem, dtype, True, layouts)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weight_layout", test_conv2d.LAYOUTS)
@pytest.mark.parametrize("input_layout", test_conv2d.LAYOUTS)
def test_conv2d_layouts(gpu, input_layout, weight_layout, dtype):
    kwargs = dict(stride=(1, 2), padding=1, groups=2)
    for of_output in test_conv2d.LAYOUTS.values():
        layouts = [test_conv2d.LAYOUTS[name] for name in (input_layout, weight_layout)]
        check_conv2d_exactly(
            gpu, (3, 6, 9, 11), (4, 3, 3), kwargs, dtype, True, [*layouts, of_output]
        )


@pytest.mark.parametrize("problem", test_conv2d.PROBLEMS)
def test_conv2d_float32_follows_the_accuracy_rule(gpu, problem):
    shape, filters, kwargs = test_conv2d.PROBLEMS[problem]
    tensors = operands(shape, filters, kwargs, torch.float32, "cpu")
    grad_output = grad_of_output(F.conv2d, tensors, kwargs)
    doubles = [t.double() for t in tensors]
    references = with_gradients(F.conv2d, doubles, grad_output.double(), kwargs)
    torchs = with_gradients(F.conv2d, tensors, grad_output, kwargs)

    judges = list(map(accurate, references))
    check_conv2d(gpu, [*tensors, grad_output], torchs, kwargs | dict(tf32=False), judges=judges)


# ---------------------------------------------------------------- pooling


def window_codes(indices: Tensor, problem: Pool2dProblem | AdaptivePool2dProblem) -> Tensor:
    """r * S + s, of the taps that read the pixels of those indices."""
    if isinstance(problem, AdaptivePool2dProblem):
        tops, lefts = (
            torch.tensor([window.start for window in adaptive_windows(size, count)])
            for size, count in ((problem.H, problem.P), (problem.W, problem.Q))
        )
        r = indices // problem.W - tops.view(-1, 1)
        return r * problem.S + indices % problem.W - lefts
    first_h = torch.arange(problem.P).view(-1, 1) * problem.stride_h - problem.pad_h
    first_w = torch.arange(problem.Q) * problem.stride_w - problem.pad_w
    # The first taps behind the leading padding. Their index in a window of padding alone is no
    # pixel's, and cannot be taken apart.
    first_r = -(first_h.clamp(max=0) // problem.dilation_h)
    first_s = -(first_w.clamp(max=0) // problem.dilation_w)
    first = (first_h + first_r * problem.dilation_h) * problem.W
    first = first + first_w + first_s * problem.dilation_w
    r = (indices // problem.W - first_h) // problem.dilation_h
    s = (indices % problem.W - first_w) // problem.dilation_w
    return torch.where(indices == first, first_r * problem.S + first_s, r * problem.S + s)


def stored(indices: Tensor, kind: Argmax, problem: Pool2dProblem | AdaptivePool2dProblem) -> Tensor:
    """The positions as that kind keeps them; without elements where it keeps none."""
    if kind is Argmax.none:
        return indices.new_empty(0, 0, 0, 0)
    codes = indices if kind is Argmax.int64 else window_codes(indices, problem)
    return codes.to(getattr(torch, kind.name))


def check_max_pool2d(gpu, input, kwargs, kind, layouts=(lambda t: t,) * 3):
    """Forward, and the passes that read the positions of the maxima.

    The layouts are those of input, output and positions.
    """
    of_input, of_output, of_argmax = layouts
    pool = torchs("max_pool2d", kwargs)
    output, indices = pool(input, **kwargs, return_indices=True)
    argmax = of_argmax(stored(indices, kind, problem_of(input, output, **kwargs)))
    grad_output, other = (integers(*t.shape, dtype=t.dtype) for t in (output, input))

    # A gradient belongs to the pixel that was the maximum. Windows of padding alone have none;
    # torch's own passes read and write outside the input there.
    some = pool(torch.ones_like(input), **kwargs) == 1
    pixels = indices.where(some, 0).flatten(2)
    grad_input = torch.zeros_like(input, dtype=torch.float64).flatten(2)
    grad_input.scatter_add_(2, pixels, grad_output.double().where(some, 0).flatten(2))
    gathered = other.flatten(2).gather(2, pixels).view_as(output).where(some, 0)

    results = [of_output(output), argmax]
    check(gpu, max_pool2d_forward(gpu.put(of_input(input), "input"), results, kind, kwargs))
    if kind is Argmax.none:
        return
    operands = gpu.put(of_input(other), "other"), gpu.put(of_output(grad_output), "grad_output")
    results = of_output(gathered), of_input(grad_input.view_as(input).to(input.dtype))
    positions = gpu.put(argmax, "argmax")
    for which in max_pool2d_backward(operands, positions, results, kind, kwargs):
        check(gpu, which)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("problem", test_pool2d.PROBLEMS | test_pool2d.DILATED)
def test_max_pool2d(gpu, problem, dtype):
    shape, kwargs = (test_pool2d.PROBLEMS | test_pool2d.DILATED)[problem]
    input = integers(*shape, dtype=dtype)  # many ties
    R, S = _pair("", "", kwargs["kernel_size"])
    for kind in Argmax:
        if kind is not Argmax.uint8 or R * S <= 254:
            check_max_pool2d(gpu, input, kwargs, kind)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", Argmax, ids=lambda kind: kind.name)
def test_max_pool2d_of_nan_and_infinities(gpu, kind, dtype):
    special = torch.tensor([float(x) for x in ("nan", "inf", "-inf", "-inf", "0", "1")])
    input = special[torch.randint(len(special), (2, 3, 31, 37))].to(dtype)
    check_max_pool2d(gpu, input, dict(kernel_size=3, stride=2, padding=1), kind)


@pytest.mark.parametrize("kind", Argmax, ids=lambda kind: kind.name)
@pytest.mark.parametrize(("shape", "kwargs"), test_semantics.WITH_EMPTY_WINDOWS, ids=str)
def test_max_pool2d_of_padding_alone(gpu, shape, kwargs, kind):
    check_max_pool2d(gpu, integers(*shape, dtype=torch.float32), kwargs, kind)


@pytest.mark.parametrize("kind", Argmax, ids=lambda kind: kind.name)
@pytest.mark.parametrize("layouts", [*itertools.product(FORMATS, repeat=3)], ids="-".join)
def test_max_pool2d_layouts(gpu, layouts, kind):
    input = integers(3, 18, 9, 11, dtype=torch.float32)
    kwargs = dict(kernel_size=(4, 2), stride=2, padding=1)
    check_max_pool2d(gpu, input, kwargs, kind, [test_pool2d.LAYOUTS[name] for name in layouts])


def check_avg_pool2d(gpu, input, kwargs, exact, layouts=(lambda t: t,) * 2):
    """`exact`: the divisors are powers of two, so that gradients are exact as averages always are.

    The layouts are those of input and output.
    """
    of_input, of_output = layouts
    doubles = input.double().requires_grad_()
    pool = torchs("avg_pool2d", kwargs)
    reference = pool(doubles, **kwargs)
    grad_output = integers(*reference.shape, dtype=input.dtype)
    (grad_input,) = torch.autograd.grad(reference, doubles, grad_output.double())
    own = test_pool2d.with_gradient(pool, input, grad_output, kwargs)

    output = of_output(reference.detach().to(input.dtype))
    expected = of_input(grad_input.to(input.dtype) if exact else own[1])
    operands = gpu.put(of_input(input), "input"), gpu.put(of_output(grad_output), "grad_output")
    forward, backward = avg_pool2d_passes(operands, (output, expected), kwargs)
    check(gpu, forward)
    check(gpu, backward, assert_equal if exact else accurate(grad_input))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("average", test_pool2d.AVERAGES, ids=str)
@pytest.mark.parametrize("problem", test_pool2d.PROBLEMS)
def test_avg_pool2d(gpu, problem, average, dtype):
    shape, kwargs = test_pool2d.PROBLEMS[problem]
    exact = average == dict(divisor_override=-2)
    check_avg_pool2d(gpu, integers(*shape, dtype=dtype), kwargs | average, exact)


@pytest.mark.parametrize("layouts", [*itertools.product(FORMATS, repeat=2)], ids="-".join)
def test_avg_pool2d_layouts(gpu, layouts):
    input = integers(3, 18, 9, 11, dtype=torch.float32)
    kwargs = dict(kernel_size=(4, 2), stride=2, padding=1)
    layouts = [test_pool2d.LAYOUTS[name] for name in layouts]
    check_avg_pool2d(gpu, input, kwargs, True, layouts)


ADAPTIVE = {
    name: (shape, dict(output_size=size))
    for name, (shape, size) in test_adaptive_pool2d.PROBLEMS.items()
    if name != "no_rows"
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("problem", ADAPTIVE)
def test_adaptive_max_pool2d(gpu, problem, dtype):
    shape, kwargs = ADAPTIVE[problem]
    input = integers(*shape, dtype=dtype)
    output = F.adaptive_max_pool2d(input, **kwargs)
    window = adaptive_pool2d_problem(input, output)
    for kind in Argmax:
        if kind is not Argmax.uint8 or window.R * window.S <= 254:
            check_max_pool2d(gpu, input, kwargs, kind)


@pytest.mark.parametrize("kind", Argmax, ids=lambda kind: kind.name)
@pytest.mark.parametrize("layouts", [*itertools.product(FORMATS, repeat=3)], ids="-".join)
def test_adaptive_max_pool2d_layouts(gpu, layouts, kind):
    input = integers(3, 18, 9, 11, dtype=torch.float32)
    layouts = [test_pool2d.LAYOUTS[name] for name in layouts]
    check_max_pool2d(gpu, input, dict(output_size=(4, 5)), kind, layouts)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layouts", [*itertools.product(FORMATS, repeat=2)], ids="-".join)
@pytest.mark.parametrize(("shape", "size"), test_adaptive_pool2d.EXACT, ids=str)
def test_adaptive_avg_pool2d_is_exact(gpu, shape, size, layouts, dtype):
    layouts = [test_pool2d.LAYOUTS[name] for name in layouts]
    input = integers(*shape, dtype=dtype)
    check_avg_pool2d(gpu, input, dict(output_size=size), True, layouts)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("problem", ADAPTIVE)
def test_adaptive_avg_pool2d(gpu, problem, channels_last):
    """Float32 sums of small integers are exact; each quotient is rounded."""
    shape, kwargs = ADAPTIVE[problem]
    format = test_pool2d.LAYOUTS["channels_last" if channels_last else "contiguous"]
    check_avg_pool2d(gpu, integers(*shape, dtype=torch.float32), kwargs, False, (format, format))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "case", sorted(test_pool2d_vector.CASES.keys() - {"no_images", "window_255"})
)
def test_pools_of_whole_vectors(gpu, case, dtype):
    shape, kwargs = test_pool2d_vector.CASES[case]
    input = integers(*shape, dtype=dtype)
    for layout in map(test_pool2d.LAYOUTS.get, ("contiguous", "channels_last")):
        check_max_pool2d(gpu, input, kwargs, Argmax.uint8, (layout,) * 3)
        if "dilat" not in case:
            check_avg_pool2d(gpu, input, kwargs, False, (layout,) * 2)


# ---------------------------------------------------------------- convolution, ReLU and pool


def emulated_conv2d_pool(kind, tensors, conv, pool):
    """Output, code, gradients of input, weight and bias, and the gradient that they are of.

    The emulator's numbers are compared with torch's in test_conv2d_pool.py.
    """
    leaves = [t.detach().requires_grad_() for t in tensors]
    with cnnkernels.emulate_cuda(), test_autograd.Recorder() as recorder:
        output = test_conv2d_pool.fused(kind, conv, pool)(*leaves)
        grad_output = integers(*output.shape, dtype=output.dtype)
        grads = torch.autograd.grad(output, leaves, grad_output)
    (code,) = (args[1] for op, args in recorder.calls if "pool2d_backward" in op.name())
    return output.detach(), code, *grads, grad_output


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", test_conv2d_pool.LAYOUTS)
@pytest.mark.parametrize(
    ("kind", "case"),
    [("max", "mnist_first"), ("max", "overlapping"), ("max", "dilated"), ("max", "wide")]
    + [("max", "two_parts"), ("avg", "vgg"), ("avg", "padded"), ("avg", "five"), ("avg", "packs")],
)
def test_conv2d_pool_is_the_emulators(gpu, kind, case, layout, dtype):
    problems = test_conv2d_pool.PROBLEMS | test_conv2d_pool.MAX_ONLY
    *_, conv, pool = problems[case]
    tensors = test_conv2d_pool.operands(problems[case], dtype, "cpu", integers)
    tensors[:2] = map(test_conv2d_pool.LAYOUTS[layout], tensors[:2])
    results = emulated_conv2d_pool(kind, tensors, conv, pool)
    output, code, *gradients, grad_output = results

    # Averages, which round, are of the same expressions; nvcc contracts some.
    eps = 2 * torch.finfo(dtype).eps if kind == "avg" else 0

    def judge(result, reference, what):
        torch.testing.assert_close(
            result, reference, rtol=eps, atol=8 * eps, msg=lambda text: f"{what}: {text}"
        )

    operands = [gpu.put(t, "operand") for t in tensors]
    check(gpu, conv2d_pool_forward(kind, operands, [output, code], conv, pool), judge)
    grads = gpu.put(grad_output, "grad_output"), gpu.put(code, "code")
    for which in conv2d_pool_backward(kind, operands, grads, gradients, conv, pool):
        check(gpu, which, judge)


# ---------------------------------------------------------------- the grid


def grid(op: str) -> Iterator[Problem]:
    """The problems of the tests above."""
    if op == "conv2d":
        for shape, filters, kwargs in test_conv2d.PROBLEMS.values():
            tensors = operands(shape, filters, kwargs, torch.float32, "meta", torch.empty)
            yield conv2d_problem(*tensors[:2], F.conv2d(*tensors, **kwargs), None, **kwargs)
    elif op == "conv2d_relu_pool2d":
        for kind, problem in itertools.product(["max", "avg"], test_conv2d_pool.PROBLEMS.values()):
            *_, conv, pool = problem
            tensors = test_conv2d_pool.operands(problem, torch.float32, "cpu", integers)
            if tensors[0].dim() == 4:
                output = test_conv2d_pool.sequence(kind, conv, pool)(*tensors)
                yield conv2d_pool_problem(kind, *tensors[:2], conv, pool, output, output)
    else:
        for shape, kwargs in {"pool2d": test_pool2d.PROBLEMS, "adaptive_pool2d": ADAPTIVE}[
            op
        ].values():
            input = torch.empty(shape, device="meta")
            output = torchs("max_pool2d", kwargs)(input, **kwargs)
            yield problem_of(input, output, **kwargs)


@pytest.mark.parametrize("op", PROBLEMS)
def test_each_algorithm_takes_a_problem_of_the_grid(gpu, op):
    for number, algorithm in enumerate(gpu.algorithms(op)):
        cases = itertools.product(grid(op), DTYPES)
        takes = f"{op.removeprefix('adaptive_')}_takes"
        assert any(gpu.run(takes, number, *case) for case in cases), algorithm


# ---------------------------------------------------------------- the emulator's kernels


@dataclass(frozen=True)
class Result:
    """Stands among a kernel's arguments for the memory that must hold `expected` in the end."""

    expected: Tensor
    start: Tensor | None = None  # what it holds in the beginning


def shuffles() -> Iterator[tuple[str, list]]:
    """All kinds; the lanes that are read, by hand from the programming guide's description."""
    index, up, down, xor = range(4)
    for kind, operand, width, sources in (
        (index, 37, 32, [5] * 32),
        (index, 5, 4, [1] * 4),
        (up, 3, 8, [0, 1, 2, 0, 1, 2, 3, 4]),
        (down, 3, 8, [3, 4, 5, 6, 7, 5, 6, 7]),
        (xor, 3, 32, [3, 2, 1, 0]),
        (xor, 4, 4, [0, 1, 2, 3, 0, 1, 2, 3]),
    ):
        lanes = torch.arange(32)
        lanes = lanes - lanes % len(sources) + torch.tensor(sources).repeat(32 // len(sources))
        for function, values in (
            ("shuffle_int", torch.arange(32, dtype=torch.int32) * 3),
            ("shuffle_double", torch.arange(32, dtype=torch.float64) * 2**33 + 1),
        ):
            yield function, [kind, values, Result(values[lanes]), operand, width]


def block_sums() -> Iterator[tuple[str, list]]:
    for threads in (32, 96, 256, 1024):
        values = integers(9, threads, dtype=torch.float32)
        yield "sum_blocks", [values, Result(values.sum(1)), 9, threads]


def products() -> Iterator[tuple[str, list]]:
    for n in (16, 96):
        a, b = (integers(n, n, dtype=torch.float32) for _ in range(2))
        yield "multiply", [a, b, Result(a @ b), n]


def thread_numbers() -> Iterator[tuple[str, list]]:
    for grid, block in (
        ((3, 4, 5), (6, 7, 8)),
        ((7000, 1, 1), (3, 1, 1)),
        ((2, 1, 1), (1024, 1, 1)),
    ):
        expected = torch.arange(math.prod(grid) * math.prod(block))
        yield "number_threads", [*grid, *block, Result(expected, torch.zeros_like(expected))]


def neighbour_sums(rounds: int) -> Tensor:
    value = torch.arange(32, dtype=torch.int32)
    for _ in range(rounds):
        value = value + value.roll(-1)
    return value


def frame_sums(depth: int, threads: int) -> Tensor:
    """What each thread adds up in tests/emulator's descend_frames."""
    frames = torch.arange(1, depth + 1).view(-1, 1) + torch.arange(256)
    return frames.sum() + depth * 256 * torch.arange(threads)


LANES = torch.arange(32, dtype=torch.int32)
FLOATS = torch.arange(32, dtype=torch.float32)

# Function of ptx/kernels.cu, and its arguments: tensors are copied to the device.
KERNELS = [
    *products(),
    *thread_numbers(),
    *block_sums(),
    *shuffles(),
    ("sum_diverged", [LANES**2, Result((4960 + 496 * (LANES % 2)).int())]),
    ("sync_warp_rounds", [Result(neighbour_sums(5)), 5]),
    (
        "sync_warp_after_exit",
        [Result(torch.cat([LANES < 8, LANES[:8] >= 0]).int(), torch.zeros(40).int())],
    ),
    ("compare_arrays", [Result(torch.ones(2).int())]),
    ("descend", [20, 64, Result(frame_sums(20, 64))]),
    (
        "convert_arguments",
        [-7, torch.tensor([0.5]), Result(torch.tensor([-7, 0.25, 0.5]).double())],
    ),
    ("divide", [33, torch.tensor([3.0]), Result(1 / torch.full((66,), 3.0))]),
    ("reverse_with_barrier", [FLOATS, Result(FLOATS.flip(0))]),
    ("exit_before_barrier", [1]),
    ("shuffle_with_mask", [0xFF, 32, 8, False]),
    ("use_4k", [(163 << 10) - (4 << 10)]),
    ("use_48k", [0]),
]


def on_device(gpu: Gpu, argument):
    if isinstance(argument, Tensor):
        return gpu.put(argument, "argument")
    if not isinstance(argument, Result):
        return argument
    if argument.start is None:
        return gpu.empty(argument.expected, "result")
    return gpu.put(argument.start, "result")


@pytest.mark.parametrize(("function", "arguments"), KERNELS, ids=[row[0] for row in KERNELS])
def test_kernels_of_the_emulators_tests(gpu, function, arguments):
    passed = [on_device(gpu, argument) for argument in arguments]
    assert gpu.call(function, *passed)
    for argument, tensor in zip(arguments, passed, strict=True):
        if isinstance(argument, Result):
            assert_equal(gpu.read(tensor), argument.expected, function)


# ---------------------------------------------------------------- what kernels may use

CASES = [
    case
    for path in sorted(ROOT.glob("tests/emulator/*_cases.cpp"))
    for case in re.findall(r'\{"(\w+)", \1\}', path.read_text())
]
DISAGREES = {
    "bfloat16_fused_multiply_add": "ptxsim rounds fma.rn.bf16's sum to double before bfloat16"
}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=pytest.mark.xfail(reason=DISAGREES[case], strict=True))
        if case in DISAGREES
        else case
        for case in CASES
    ],
)
def test_cases_of_the_emulators_tests(built: Path, case: str) -> None:
    """What holds of the emulator holds of nvcc's code: mma, ldmatrix, cp.async, votes, atomics."""
    # The cases' memory is the host's, of which ptxsim knows nothing.
    environ = os.environ | {"PTXSIM_DEVICE": DEVICE, "PTXSIM_STRICT": "0"}
    command = [built / "cases", case]
    result = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


# ---------------------------------------------------------------- faults are found

EIGHT, THREE = Result(torch.zeros(8)), Result(torch.zeros(3))

# Function, arguments, the kernel at fault and what ptxsim says of it.
FAULTS = [
    ("reverse_without_barrier", [FLOATS, Result(FLOATS)], "reverse_lanes", "race"),
    ("exit_before_barrier", [2], "barrier_after_exit", "32 threads of the block exited"),
    ("wait_apart", [], "barriers_apart", "deadlock"),
    ("shuffle_with_mask", [0xFFFFFFF7, 32, 32, False], "shuffle_masked", "not in the member mask"),
    ("shuffle_down_eight", [FLOATS, EIGHT], "shuffle_eight", "lane 8, which does not take part"),
    ("touch_static", [-1, True, THREE], "touch_static_array", "out-of-bounds shared"),
    ("touch_static", [16, True, THREE], "touch_static_array", "out-of-bounds shared"),
    ("touch_dynamic", [16, True, THREE], "touch_dynamic_buffer", "out-of-bounds shared"),
    ("touch_dynamic", [0, False, THREE], "touch_dynamic_buffer", "uninitialised shared"),
    ("divide", [33, torch.tensor([3.0]), EIGHT], "divide_by_three", "out-of-bounds global write"),
]


@pytest.fixture
def fails(capfd: pytest.CaptureFixture) -> Callable:
    """fails(kernel, message, call): it does, and both are named."""

    def check(kernel: str, message: str, call: Callable[[], bool]) -> None:
        with pytest.raises(Fault, match=kernel):
            call()
        assert message in capfd.readouterr().err

    return check


@pytest.mark.parametrize(
    ("function", "arguments", "kernel", "message"), FAULTS, ids=[row[0] for row in FAULTS]
)
def test_faults_of_small_kernels(gpu, fails, function, arguments, kernel, message):
    passed = [on_device(gpu, argument) for argument in arguments]
    fails(kernel, message, lambda: gpu.call(function, *passed))


def test_shared_memory_beyond_the_limit_is_refused(gpu):
    with pytest.raises(Fault, match="use_shared<1024>: invalid argument"):
        gpu.call("use_4k", (163 << 10) + 1)


def test_faults_of_a_convolution(gpu, fails):
    input, weight = integers(1, 2, 6, 5, dtype=torch.float32), torch.ones(3, 2, 1, 1)
    expected = F.conv2d(input, weight)
    problem = conv2d_problem(input, weight, expected, None)
    weight = gpu.put(weight, "weight")

    def fprop(input, output):
        arguments = problem, torch.float32, input, weight, None, 0, False, output
        return gpu.call("conv2d_fprop", gpu.algorithms("conv2d").index("direct"), *arguments)

    output, good = gpu.empty(expected, "output"), gpu.put(input, "input")
    short_input = gpu.put(input.flatten()[:-1], "input")
    short_output = gpu.empty(expected.flatten()[:-1], "output")
    kernel = "conv2d_direct_fprop<float>"
    fails(kernel, "out-of-bounds global read", lambda: fprop(short_input, output))
    fails(kernel, "out-of-bounds global write", lambda: fprop(good, short_output))
    fails(kernel, "uninitialised global", lambda: fprop(gpu.empty(input, "input"), output))

    assert fprop(good, output)  # no fault outlives its launch
    assert_equal(gpu.read(output), expected, "after faults")


def test_writes_between_the_elements_are_found(gpu):
    values = gpu.put(FLOATS.view(1, 32), "values")
    odd_places = gpu.empty(torch.empty(1, 63)[:, ::2], "sums")
    gpu.call("sum_blocks", values, odd_places, 1, 32)
    assert gpu.read(odd_places)[0, 0] == FLOATS.sum()
    odd_places.as_strided((1,), (1,), 1).fill_(0)
    with pytest.raises(AssertionError, match="written between the elements"):
        gpu.read(odd_places)
