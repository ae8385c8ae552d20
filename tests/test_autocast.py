"""Autocast: convolutions take the dtype that torch's take, pools are left alone."""

import itertools
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from accuracy import integers
from torch.func import grad, vmap

import cnnkernels
import cnnkernels.functional as ours

DTYPES = [torch.bfloat16, torch.float16]
FLOATS = [torch.float32, torch.float64, *DTYPES]


@pytest.fixture(params=DTYPES, ids=str)
def autocast(request, backend):
    with torch.autocast(backend.device, request.param):
        yield request.param


def operands(device, *dtypes):
    """Whole numbers, whose sums are exact in float16 and bfloat16."""
    shapes = ((1, 2, 5, 4), (3, 2, 2, 2), (3,))
    return [
        integers(*shape, dtype=dtype, device=device, high=2)
        for shape, dtype in zip(shapes, dtypes, strict=False)
    ]


def outcome(function, *tensors):
    """Output and gradients, or the type of the error."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    try:
        output = function(*leaves)
    except Exception as error:  # noqa: BLE001 (which one is what is compared)
        return type(error)
    return [output.detach(), *torch.autograd.grad(output, leaves, torch.ones_like(output))]


@pytest.mark.parametrize("dtypes", list(itertools.product(FLOATS, repeat=3)), ids=str)
def test_dtypes_of_results_and_gradients_are_torchs(backend, autocast, dtypes):
    tensors = operands(backend.device, *dtypes)
    result, expected = outcome(ours.conv2d, *tensors), outcome(F.conv2d, *tensors)
    if isinstance(expected, type):
        assert result is expected
    else:
        torch.testing.assert_close(result, expected, rtol=0, atol=0)


def test_conv2d_relu_and_modules_are_cast_too(backend, autocast):
    input, weight, bias = operands(backend.device, *FLOATS[:1] * 3)
    torch.testing.assert_close(
        ours.conv2d_relu(input, weight, bias), F.relu(F.conv2d(input, weight, bias)), rtol=0, atol=0
    )
    module = cnnkernels.nn.Conv2d(2, 3, 2).to(backend.device)
    assert module(input).dtype == autocast
    assert module(input[0]).dtype == autocast


@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_pools_are_left_alone(backend, autocast, name, dtype):
    (input,) = operands(backend.device, dtype)
    result, expected = (getattr(module, name)(input, 2) for module in (ours, F))
    torch.testing.assert_close(result, expected, rtol=0, atol=0)


def test_only_the_tensors_device_counts(backend):
    input, weight = operands(backend.device, torch.float32, torch.float32)
    other = "cpu" if backend.device == "cuda" else "cuda"
    with torch.autocast(other, torch.bfloat16, enabled=other == "cpu" or torch.cuda.is_available()):
        assert ours.conv2d(input, weight).dtype == torch.float32
    with torch.autocast(backend.device):
        assert ours.conv2d(input.to("meta"), weight.to("meta")).dtype == torch.float32
        with torch.autocast(backend.device, enabled=False):
            assert ours.conv2d(input, weight).dtype == torch.float32


def test_backward_outside_of_autocast(backend):
    """As a training loop does it: gradients of parameters are float32, from 16-bit passes."""
    tensors = operands(backend.device, *FLOATS[:1] * 3)

    def gradients(module):
        leaves = [t.clone().requires_grad_() for t in tensors]
        with torch.autocast(backend.device, torch.bfloat16):
            output = module.conv2d(*leaves)
        return torch.autograd.grad(output, leaves, torch.ones_like(output))

    torch.testing.assert_close(gradients(ours), gradients(F), rtol=0, atol=0)


def test_under_transforms(backend, autocast):
    input, weight, bias = operands(backend.device, *FLOATS[:1] * 3)

    def per_sample(module):
        def loss(weight, bias, image):
            return module.conv2d(image, weight, bias).sum()

        return vmap(grad(loss, argnums=(0, 1)), (None, None, 0))(weight, bias, input)

    torch.testing.assert_close(per_sample(ours), per_sample(F), rtol=0, atol=0)


@pytest.mark.parametrize("emulate", [False, True], ids=["native", "emulated"])
def test_compiled_to_one_dynamic_graph(emulate):
    weight = integers(4, 4, 3, 3, dtype=torch.float32, high=1).requires_grad_()

    def function(input):
        return ours.max_pool2d(ours.conv2d_relu(input, weight, padding=1), 2).float()

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=True)
    with cnnkernels.emulate_cuda() if emulate else nullcontext():
        for size, dtype in itertools.product((8, 11), DTYPES):
            input = integers(2, 4, size, size, dtype=torch.float32, high=2).requires_grad_()
            with torch.autocast("cpu", dtype):
                result, expected = outcome(compiled, input), outcome(function, input)
            torch.testing.assert_close(result, expected, rtol=0, atol=0)
        assert torch.equal(compiled(input), function(input))  # a graph without casts again
