"""The passes of the ops as calls of the launchers: what they read, and what their results are like.

Operands lie in the GPU's memory; of results only shape, layout and dtype count.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cnnkernels.functional import _conv_padding, _pair
from ptx.gpu import (
    CONV_PASSES,
    PROBLEMS,
    AdaptivePool2dProblem,
    Argmax,
    Conv2dPoolProblem,
    Conv2dProblem,
    Gpu,
    Pool2dProblem,
    strides,
)

Problem = Conv2dProblem | Conv2dPoolProblem | Pool2dProblem | AdaptivePool2dProblem


@dataclass(frozen=True)
class Pass:
    """A function of algorithms.cu, with its arguments and what its results are like."""

    function: str
    problem: Problem
    dtype: torch.dtype
    arguments: list
    results: list[Tensor]

    @property
    def op(self) -> str:
        return next(op for op, kind in PROBLEMS.items() if type(self.problem) is kind)


ROUNDS_MORE = "winograd_4x4"  # than the sums do, and is run where fast_math allows it


def run(gpu: Gpu, which: Pass) -> Iterator[tuple[str, list[Tensor]]]:
    """Runs it by every algorithm that takes it: the algorithm's name, and the results."""
    for number, algorithm in enumerate(gpu.algorithms(which.op)):
        if algorithm == ROUNDS_MORE and not which.problem.fast_math:
            continue
        results = [gpu.empty(tensor, "result") for tensor in which.results]
        passed = [which.problem, which.dtype, *which.arguments, *results]
        name = which.function.rpartition("_")[2]
        if name in CONV_PASSES:
            passed.append(gpu.workspace(which.op, number, which.problem, which.dtype, name))
        if gpu.run(which.function, number, *passed):
            yield algorithm, results


# ---------------------------------------------------------------- convolution


def conv2d_problem(
    input,
    weight,
    output,
    relu_output,
    stride=1,
    padding=0,
    dilation=1,
    groups=1,
    tf32=True,
    fast_math=False,
):
    """`tf32`: whether float32 may be rounded to it, as small integers can be."""
    stride, dilation = _pair("", "stride", stride), _pair("", "dilation", dilation)
    top, _, left, _ = _conv_padding(padding, weight, stride, dilation)
    K, _, R, S = weight.shape
    relu_output = output if relu_output is None else relu_output
    sizes = (*input.shape, K, R, S, *output.shape[2:], *stride, top, left, *dilation, groups)
    return Conv2dProblem(
        *sizes, *map(strides, (input, weight, output, relu_output)), tf32, fast_math
    )


def conv2d_passes(operands, relu_output, results, kwargs) -> Iterator[Pass]:
    """Of input, weight, bias and grad_output: the output, and the gradients of the first three."""
    input, weight, bias, grad_output = operands
    output, grad_input, grad_weight, grad_bias = results

    def of(name, arguments, result, input=input, weight=weight, output=grad_output):
        problem = conv2d_problem(input, weight, output, relu_output, **kwargs)
        return Pass(f"conv2d_{name}", problem, input.dtype, arguments, [result])

    grads = [grad_output, relu_output]
    epilogue = [bias, bias.stride(0), relu_output is not None]
    yield of("fprop", [input, weight, *epilogue], output, output=output)
    yield of("dgrad", [*grads, weight], grad_input, input=grad_input)
    yield of("wgrad", [*grads, input], grad_weight, weight=grad_weight)
    yield of("bgrad", grads, grad_bias)


# ---------------------------------------------------------------- pooling


def pool2d_problem(
    input,
    output,
    argmax=None,
    *,
    kernel_size,
    stride=None,
    padding=0,
    dilation=1,
    ceil_mode=False,
    count_include_pad=True,
    divisor_override=None,
):
    pairs = kernel_size, stride or kernel_size, padding, dilation
    kernel_size, *rest = (_pair("", "", value) for value in pairs)
    sizes = (*input.shape, *kernel_size, *output.shape[2:], *itertools.chain(*rest))
    layouts = map(strides, (input, output, output if argmax is None else argmax))
    return Pool2dProblem(*sizes, count_include_pad, divisor_override or 0, *layouts)


def adaptive_pool2d_problem(input, output, argmax=None):
    sizes = zip(input.shape[2:], output.shape[2:], strict=True)
    largest = (max(map(len, adaptive_windows(*pair))) for pair in sizes)
    layouts = map(strides, (input, output, output if argmax is None else argmax))
    return AdaptivePool2dProblem(*input.shape, *largest, *output.shape[2:], *layouts)


def adaptive_windows(size: int, count: int) -> list[range]:
    return [range(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]


def problem_of(input, output, argmax=None, **kwargs) -> Pool2dProblem | AdaptivePool2dProblem:
    if "output_size" in kwargs:
        return adaptive_pool2d_problem(input, output, argmax)
    return pool2d_problem(input, output, argmax, **kwargs)


def torchs(pool: str, kwargs: dict) -> Callable:
    """The pool that takes these arguments."""
    return getattr(F, f"adaptive_{pool}" if "output_size" in kwargs else pool)


def max_pool2d_forward(input, results, kind: Argmax, kwargs) -> Pass:
    """The output, and the positions of the maxima."""
    problem = problem_of(input, *results, **kwargs)
    return Pass("pool2d_max_forward", problem, input.dtype, [input, kind], results)


def max_pool2d_backward(operands, argmax, results, kind: Argmax, kwargs) -> Iterator[Pass]:
    """Of input and grad_output: the former gathered, and the gradient that the latter gives."""
    input, grad_output = operands
    gathered, grad_input = results
    problem = problem_of(input, grad_output, argmax, **kwargs)
    for name, tensor, result in (
        ("backward", grad_output, grad_input),
        ("gather", input, gathered),
    ):
        arguments = [tensor, argmax, kind]
        yield Pass(f"pool2d_max_{name}", problem, input.dtype, arguments, [result])


def avg_pool2d_passes(operands, results, kwargs) -> Iterator[Pass]:
    """Of input and grad_output: the output and the input's gradient."""
    input, grad_output = operands
    output, grad_input = results
    problem = problem_of(input, output, **kwargs)
    yield Pass("pool2d_avg_forward", problem, input.dtype, [input], [output])
    yield Pass("pool2d_avg_backward", problem, input.dtype, [grad_output], [grad_input])


# ---------------------------------------------------------------- convolution, ReLU and pool


def conv2d_pool_problem(kind, input, weight, conv, pool, output, code):
    convolved = F.conv2d(input, weight, **conv)
    tf32 = kind == "max"  # to which averages and their gradients would be rounded
    return Conv2dPoolProblem(
        conv2d_problem(input, weight, convolved, None, **conv, tf32=tf32),
        pool2d_problem(convolved, output, code, **pool),
        kind == "avg",
    )


def conv2d_pool_forward(kind, operands, results, conv, pool) -> Pass:
    """Of input, weight and bias: the output and the code."""
    input, weight, bias = operands
    problem = conv2d_pool_problem(kind, input, weight, conv, pool, *results)
    arguments = [input, weight, bias, bias.stride(0)]
    return Pass("conv2d_relu_pool2d_fprop", problem, input.dtype, arguments, results)


def conv2d_pool_backward(kind, operands, grads, results, conv, pool) -> Iterator[Pass]:
    """Of grad_output and the code: the gradients of input, weight and bias."""
    input, weight, _ = operands
    grad_input, grad_weight, grad_bias = results

    def of(name, arguments, result, input=input, weight=weight):
        problem = conv2d_pool_problem(kind, input, weight, conv, pool, *grads)
        function = f"conv2d_relu_pool2d_{name}"
        return Pass(function, problem, input.dtype, [*grads, *arguments], [result])

    yield of("dgrad", [weight], grad_input, input=grad_input)
    yield of("wgrad", [input], grad_weight, weight=grad_weight)
    yield of("bgrad", [], grad_bias)


# ---------------------------------------------------------------- on random numbers

NCHW, CHANNELS_LAST = torch.contiguous_format, torch.channels_last


def random_conv2d(
    gpu: Gpu, shape, filters, *, dtype=torch.float32, layout=NCHW, **kwargs
) -> Iterator[Pass]:
    """All passes of a convolution."""
    tensors = _conv2d_operands(shape, filters, kwargs, dtype, layout)
    output = F.conv2d(*tensors, **kwargs)
    operands = [gpu.put(t, "operand") for t in (*tensors, torch.randn_like(output))]
    yield from conv2d_passes(operands, None, [output, *tensors], kwargs | dict(fast_math=True))


def random_pools(gpu: Gpu, shape, *, dtype=torch.float32, layout=NCHW, **kwargs) -> Iterator[Pass]:
    """All passes of max and average pooling; positions take a byte."""
    tensor = torch.randn(shape, dtype=dtype).contiguous(memory_format=layout)
    output = torchs("avg_pool2d", kwargs)(tensor, **kwargs)
    operands = gpu.put(tensor, "input"), gpu.put(torch.randn_like(output), "grad_output")
    results = output, tensor
    codes = torch.empty_like(output, dtype=torch.uint8)
    forward = max_pool2d_forward(operands[0], [output, codes], Argmax.uint8, kwargs)
    yield forward
    _, (_, argmax) = next(run(gpu, forward))
    yield from max_pool2d_backward(operands, argmax, results, Argmax.uint8, kwargs)
    yield from avg_pool2d_passes(operands, results, kwargs)


def random_conv2d_pool(
    gpu: Gpu, kind, shape, filters, conv, pool, *, dtype=torch.float32, layout=NCHW
) -> Iterator[Pass]:
    """All passes of convolution, ReLU and pool in one; codes take a byte."""
    tensors = _conv2d_operands(shape, filters, conv, dtype, layout)
    output = getattr(F, f"{kind}_pool2d")(F.conv2d(*tensors, **conv), **pool)
    operands = [gpu.put(t, "operand") for t in tensors]
    codes = torch.empty_like(output, dtype=torch.uint8)
    forward = conv2d_pool_forward(kind, operands, [output, codes], conv, pool)
    yield forward
    _, (_, code) = next(run(gpu, forward))
    grads = gpu.put(torch.randn_like(output), "grad_output"), code
    yield from conv2d_pool_backward(kind, operands, grads, tensors, conv, pool)


def _conv2d_operands(shape, filters, kwargs, dtype, layout) -> list[Tensor]:
    """Input, weight and bias."""
    K, R, S = filters
    C = shape[1] // kwargs.get("groups", 1)
    input, weight = (torch.randn(size, dtype=dtype) for size in (shape, (K, C, R, S)))
    bias = torch.randn(K, dtype=dtype)
    return [*(t.contiguous(memory_format=layout) for t in (input, weight)), bias]
