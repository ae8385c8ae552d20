"""Derivatives of every order, the raw ops' registrations, and where a backward pass runs."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

import cnnkernels
import cnnkernels.functional as ours
from cnnkernels import autograd

CONVOLUTIONS = {
    "plain": ((2, 3, 5, 6), (4, 3, 3, 2), dict(padding=1)),
    "strided": ((1, 2, 7, 6), (2, 2, 3, 3), dict(stride=2, padding=(2, 1))),
    "dilated_groups": ((1, 4, 7, 7), (2, 2, 3, 2), dict(dilation=2, groups=2)),
    "same": ((1, 2, 5, 5), (2, 2, 2, 4), dict(padding="same")),
}
POOLS = {
    "max": lambda x: ours.max_pool2d(x, 3, 2, 1),
    "max_dilated": lambda x: ours.max_pool2d(x, 2, 2, dilation=2, ceil_mode=True),
    "max_indices": lambda x: ours.max_pool2d(x, (2, 3), return_indices=True)[0],
    "max_unbatched": lambda x: ours.max_pool2d(x[0], 2),
    "avg": lambda x: ours.avg_pool2d(x, 3, 2, 1),
    "avg_ceil": lambda x: ours.avg_pool2d(x, (2, 3), 2, ceil_mode=True, count_include_pad=False),
    "adaptive_max": lambda x: ours.adaptive_max_pool2d(x, (4, 3)),
    "adaptive_max_indices": lambda x: ours.adaptive_max_pool2d(x, (1, 9), return_indices=True)[0],
    "adaptive_max_unbatched": lambda x: ours.adaptive_max_pool2d(x[0], 2),
    "adaptive_avg": lambda x: ours.adaptive_avg_pool2d(x, (4, 9)),
    "global_avg": lambda x: ours.adaptive_avg_pool2d(x, 1),
}


def doubles(*shape, device):
    return torch.randn(*shape, dtype=torch.float64, device=device, requires_grad=True)


def distinct(*shape, device):
    """Values far enough apart that finite differences move no maximum."""
    count = torch.Size(shape).numel()
    values = torch.randperm(count).double().reshape(shape) / count
    return values.to(device).requires_grad_()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("problem", CONVOLUTIONS)
def test_conv2d_gradcheck_and_gradgradcheck(backend, problem, bias):
    shape, weight, kwargs = CONVOLUTIONS[problem]
    tensors = [doubles(*size, device=backend.device) for size in (shape, weight)]
    if bias:
        tensors.append(doubles(weight[0], device=backend.device))

    def function(*tensors):
        return ours.conv2d(*tensors, **kwargs)

    assert gradcheck(function, tensors)
    assert gradgradcheck(function, tensors)


@pytest.mark.parametrize("frozen", [0, 1])
def test_conv2d_gradgradcheck_with_a_frozen_operand(backend, frozen):
    tensors = [doubles(*size, device=backend.device) for size in ((2, 2, 5, 5), (3, 2, 3, 3), (3,))]
    tensors[frozen].requires_grad_(False)
    assert gradgradcheck(ours.conv2d, tensors)


def test_conv2d_relu_gradcheck_and_gradgradcheck(backend):
    input, weight = (
        distinct(2, 2, 4, 5, device=backend.device),
        doubles(3, 2, 3, 2, device=backend.device),
    )
    bias = torch.tensor([0.5, -0.5, 0.1], dtype=torch.float64, device=backend.device)
    bias.requires_grad_()
    output = F.conv2d(input, weight, bias)
    assert output.abs().min() > 1e-4  # no kink within the finite difference
    assert (output < 0).any() and (output > 0).any()
    assert gradcheck(ours.conv2d_relu, (input, weight, bias))
    assert gradgradcheck(ours.conv2d_relu, (input, weight, bias))


@pytest.mark.parametrize("pool", POOLS)
def test_pool_gradcheck_and_gradgradcheck(backend, pool):
    input = distinct(2, 2, 6, 7, device=backend.device)
    assert gradcheck(POOLS[pool], input)
    assert gradgradcheck(POOLS[pool], input)


def test_third_derivative(backend):
    def third(function, input, weight):
        output = function(input, weight, padding=1).pow(3).sum()
        first = torch.autograd.grad(output, weight, create_graph=True)[0].pow(2).sum()
        second = torch.autograd.grad(first, input, create_graph=True)[0].pow(2).sum()
        return torch.autograd.grad(second, weight)[0]

    input = doubles(1, 2, 4, 4, device=backend.device)
    weight = doubles(2, 2, 3, 3, device=backend.device)
    torch.testing.assert_close(
        third(ours.conv2d, input, weight), third(F.conv2d, input, weight), rtol=1e-10, atol=0
    )


def test_what_needs_no_gradient_is_not_kept(backend):
    input = torch.randn(2, 3, 8, 8, device=backend.device)
    weight = torch.randn(4, 3, 3, 3, device=backend.device, requires_grad=True)
    bias = torch.randn(4, device=backend.device, requires_grad=True)

    def kept(output):
        return [t is not None and t.shape for t in output.grad_fn.saved_tensors]

    assert kept(ours.conv2d(input, weight, bias)) == [False, input.shape, False]
    assert kept(ours.conv2d(input, weight.detach(), bias)) == [False, False, False]
    frozen = ours.conv2d(input.clone().requires_grad_(), weight.detach())
    assert kept(frozen) == [False, False, weight.shape]
    assert ours.conv2d(input, weight.detach()).grad_fn is None
    with torch.no_grad():
        assert ours.conv2d(input, weight).grad_fn is None
    with torch.inference_mode():
        assert ours.max_pool2d(ours.conv2d(input, weight), 2).is_inference()


# ---------------------------------------------------------------- no back doors


class Recorder(TorchDispatchMode):
    """The ops that run, with their arguments."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls.append((function, args))
        return function(*args, **(kwargs or {}))


def train_step(device):
    """Forward, backward and double backward of every op."""
    input = torch.randn(2, 4, 12, 12, device=device, requires_grad=True)
    weight = torch.randn(6, 4, 3, 3, device=device, requires_grad=True)
    bias = torch.randn(6, device=device, requires_grad=True)
    x = ours.conv2d_relu(input, weight, bias, padding=1)
    x = ours.max_pool2d(x, 2)
    x = ours.conv2d(x, weight[:, :3].repeat(1, 2, 1, 1), groups=1)
    x = ours.adaptive_max_pool2d(ours.avg_pool2d(x, 1), 3)
    x = ours.adaptive_avg_pool2d(x, 2)
    grads = torch.autograd.grad(x.pow(2).sum(), (input, weight, bias), create_graph=True)
    sum(grad.pow(2).sum() for grad in grads).backward()


FORBIDDEN = ("conv", "pool")


def test_no_op_calls_atens_convolution_or_pooling(backend):
    with Recorder() as recorder:
        train_step(backend.device)
    names = {function.name() for function, _ in recorder.calls}
    assert {name for name in names if name.startswith("cnnkernels::")} == {
        f"cnnkernels::{name}"
        for name in autograd._OPS
        if name not in ("max_pool2d", "adaptive_max_pool2d")
        and not name.startswith("conv2d_relu_pool2d")  # see test_conv2d_pool.py
    }
    atens = {name for name in names if name.startswith("aten::")}
    assert not {name for name in atens if any(word in name for word in FORBIDDEN)}


def test_a_backward_pass_runs_where_its_forward_pass_ran():
    input = torch.randn(1, 2, 8, 8, requires_grad=True)
    weight = torch.randn(2, 2, 3, 3, requires_grad=True)
    with cnnkernels.emulate_cuda():
        emulated = ours.avg_pool2d(ours.max_pool2d(ours.conv2d_relu(input, weight), 2), 2).sum()
    native = ours.avg_pool2d(ours.max_pool2d(ours.conv2d_relu(input, weight), 2), 2).sum()

    def places(output):
        with Recorder() as recorder:
            grads = torch.autograd.grad(output, (input, weight), create_graph=True)
            sum(grad.sum() for grad in grads).backward()
        ours_alone = [(f, args) for f, args in recorder.calls if f.namespace == "cnnkernels"]
        assert len(ours_alone) >= 5
        return {args[-1] for _, args in ours_alone}  # kernels is the last argument

    assert places(emulated) == {"emulated:"}
    with cnnkernels.emulate_cuda():
        assert places(native) == {None}


# ---------------------------------------------------------------- the raw ops

MAX_POOL = (3, 2, 2, 2, 1, 1, 1, 1, True)  # kernel, stride, padding, dilation, ceil_mode
AVG_POOL = (3, 2, 2, 2, 1, 1, False, True, None)
OPCHECKS = {
    "conv2d": lambda x, w, b, e: (x, w, b, 1, 2, 1, 1, 0, 2, 1, 1, 1, False, e),
    "conv2d_no_bias": lambda x, w, b, e: (x, w, None, 1, 1, 1, 1, 1, 1, 2, 1, 1, False, e),
    "max_pool2d_with_argmax": lambda x, w, b, e: (x, *MAX_POOL, False, e),
    "max_pool2d_with_indices": lambda x, w, b, e: (x, *MAX_POOL, True, e),
    "avg_pool2d": lambda x, w, b, e: (x, *AVG_POOL, e),
    "adaptive_max_pool2d_with_argmax": lambda x, w, b, e: (x, 4, 3, False, e),
    "adaptive_max_pool2d_with_indices": lambda x, w, b, e: (x, 4, 3, True, e),
    "adaptive_avg_pool2d": lambda x, w, b, e: (x, 4, 3, e),
}


@pytest.mark.parametrize("emulate", [False, True], ids=["native", "emulated"])
@pytest.mark.parametrize("case", OPCHECKS)
def test_opcheck(case, emulate):
    x, w, b = (
        torch.randn(*size, requires_grad=True) for size in ((2, 3, 9, 8), (4, 3, 3, 3), (4,))
    )
    name = case.removesuffix("_no_bias").replace("with_indices", "with_argmax")
    op = getattr(torch.ops.cnnkernels, name).default
    kernels = "emulated:" if emulate else None
    torch.library.opcheck(op, OPCHECKS[case](x, w, b, kernels))


def test_opcheck_of_the_inference_and_backward_ops():
    ops = torch.ops.cnnkernels
    x, w = torch.randn(2, 3, 9, 8), torch.randn(4, 3, 3, 3)
    output, argmax = ops.max_pool2d_with_argmax(x, *MAX_POOL, False, None)
    torch.library.opcheck(ops.max_pool2d.default, (x, *MAX_POOL, None))
    torch.library.opcheck(ops.max_pool2d_gather.default, (x, argmax, *MAX_POOL, None))
    like = (9, 8, False)
    rest = (argmax, *like, *MAX_POOL, None)
    torch.library.opcheck(ops.max_pool2d_backward.default, (output, *rest))
    output = ops.avg_pool2d(x, *AVG_POOL, None)
    torch.library.opcheck(ops.avg_pool2d_backward.default, (output, *like, *AVG_POOL, None))
    output, argmax = ops.adaptive_max_pool2d_with_argmax(x, 4, 3, False, None)
    torch.library.opcheck(ops.adaptive_max_pool2d.default, (x, 4, 3, None))
    torch.library.opcheck(ops.adaptive_max_pool2d_gather.default, (x, argmax, 4, 3, None))
    rest = (*like, 4, 3, None)
    torch.library.opcheck(ops.adaptive_max_pool2d_backward.default, (output, argmax, *rest))
    torch.library.opcheck(ops.adaptive_avg_pool2d_backward.default, (output, *rest))
    grad = torch.randn(2, 4, 7, 6)
    rest = (3, *like[:2], 3, 3, False, 1, 1, 0, 0, 0, 0, 1, 1, 1, True, None)
    torch.library.opcheck(ops.conv2d_backward.default, (grad, grad, x, w, *rest))


@pytest.mark.parametrize("channels_last", [False, True])
def test_fake_strides_are_the_real_ones(channels_last):
    from torch._subclasses.fake_tensor import FakeTensorMode

    format = torch.channels_last if channels_last else torch.contiguous_format
    input = torch.randn(2, 6, 12, 10).contiguous(memory_format=format)
    weight = torch.randn(4, 6, 3, 3)
    functions = {
        "conv2d": lambda x, w: ours.conv2d(x, w, stride=2, padding=1),
        "conv2d_relu": lambda x, w: ours.conv2d_relu(x, w, padding="same"),
        "max_pool2d": lambda x, w: ours.max_pool2d(x, 3, 2, 1, ceil_mode=True),
        "avg_pool2d": lambda x, w: ours.avg_pool2d(x, 2),
    }
    with FakeTensorMode() as mode:
        fake_input, fake_weight = mode.from_tensor(input), mode.from_tensor(weight)
    for name, function in functions.items():
        real = function(input, weight)
        with mode:
            fake = function(fake_input, fake_weight)
        assert (fake.shape, fake.stride()) == (real.shape, real.stride()), name


@pytest.mark.parametrize("emulate", [False, True], ids=["native", "emulated"])
def test_compiles_to_one_dynamic_graph(emulate):
    def function(input, weight, bias):
        x = ours.max_pool2d(ours.conv2d_relu(input, weight, bias, padding=1), 2)
        x = ours.avg_pool2d(ours.conv2d(x, weight[:, :2].repeat(1, 2, 1, 1)), 1)
        return ours.adaptive_max_pool2d(x, 3) + ours.adaptive_avg_pool2d(x, 1)

    def gradients(function, size):
        torch.manual_seed(0)
        tensors = [
            torch.randn(*shape, requires_grad=True)
            for shape in ((2, 4, size, size), (4, 4, 3, 3), (4,))
        ]
        output = function(*tensors)
        return [output, *torch.autograd.grad(output.square().sum(), tensors)]

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=True)
    with cnnkernels.emulate_cuda() if emulate else nullcontext():
        for size in (12, 17):
            results, expected = gradients(compiled, size), gradients(function, size)
            for result, reference in zip(results, expected, strict=True):
                assert torch.equal(result, reference)
