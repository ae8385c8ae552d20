"""Convolution, forward and backward, on every backend, against torch."""

import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_accurate, integers, relative_error

import cnnkernels.functional as ours

# N, C, H, W; K, R, S; keyword arguments. Awkward on purpose: ones, primes, sizes that are no
# multiple of any tile, windows larger than the input, filters that see only padding.
PROBLEMS = {
    "mnist_first": ((2, 1, 28, 28), (16, 5, 5), dict(padding=2)),
    "mnist_second": ((2, 16, 14, 14), (32, 5, 5), dict(padding=2)),
    "vgg": ((1, 16, 15, 17), (24, 3, 3), dict(padding=1)),
    "one": ((1, 1, 1, 1), (1, 1, 1), {}),
    "primes": ((3, 5, 13, 11), (7, 3, 5), {}),
    "pointwise": ((2, 19, 7, 9), (23, 1, 1), {}),
    "pointwise_strided": ((2, 8, 9, 9), (5, 1, 1), dict(stride=2)),
    "strided": ((2, 3, 23, 19), (6, 5, 3), dict(stride=(2, 3), padding=(1, 2))),
    "stride_beyond_filter": ((2, 2, 17, 17), (3, 2, 2), dict(stride=4)),
    "dilated": ((2, 4, 17, 19), (6, 3, 3), dict(dilation=(2, 3), padding=(2, 3))),
    "dilated_strided": ((1, 4, 21, 18), (6, 3, 3), dict(dilation=(2, 1), stride=(3, 2), padding=2)),
    "groups": ((2, 12, 9, 8), (8, 3, 3), dict(groups=4, padding=1)),
    "depthwise": ((2, 11, 10, 9), (11, 3, 3), dict(groups=11, padding=1)),
    "depthwise_multiplier": ((2, 5, 8, 8), (15, 3, 3), dict(groups=5, stride=2, padding=1)),
    "padding_beyond_filter": ((1, 2, 5, 4), (3, 3, 2), dict(padding=(6, 5))),
    "filter_is_input": ((2, 3, 7, 6), (4, 7, 6), {}),
    "large_filter": ((1, 2, 20, 20), (3, 11, 13), dict(padding=(5, 6))),
    "row": ((2, 3, 1, 33), (4, 1, 7), dict(padding=(0, 3))),
    "column": ((2, 3, 33, 1), (4, 7, 1), dict(padding=(3, 0))),
    "same_even": ((2, 3, 9, 8), (4, 4, 2), dict(padding="same")),
    "same_dilated": ((1, 3, 9, 8), (4, 3, 2), dict(padding="same", dilation=3)),
    "valid": ((1, 3, 9, 8), (4, 3, 2), dict(padding="valid")),
    "many_filters": ((1, 3, 6, 5), (131, 3, 3), {}),
    "deep": ((1, 300, 5, 5), (9, 3, 3), dict(padding=1)),
}

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def operands(shape, filters, kwargs, dtype, device, random=torch.randn):
    K, R, S = filters
    C = shape[1] // kwargs.get("groups", 1)
    sizes = (shape, (K, C, R, S), (K,))
    return [random(*size, dtype=dtype, device=device) for size in sizes]


def with_gradients(function, tensors, grad_output, kwargs):
    """Output and the gradients of all tensors."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    output = function(*leaves, **kwargs)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad_output)]


def torch_conv2d_relu(*args, **kwargs):
    return F.relu(F.conv2d(*args, **kwargs))


FUNCTIONS = {
    "conv2d": (ours.conv2d, F.conv2d),
    "conv2d_relu": (ours.conv2d_relu, torch_conv2d_relu),
}
NAMES = ("output", "grad_input", "grad_weight", "grad_bias")


def grad_of_output(function, tensors, kwargs, random=torch.randn):
    output = function(*tensors, **kwargs)
    return random(*output.shape, dtype=output.dtype, device=output.device)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_float32_follows_the_accuracy_rule(backend, problem, function):
    shape, filters, kwargs = PROBLEMS[problem]
    tensors = operands(shape, filters, kwargs, torch.float32, backend.device)
    our_function, torch_function = FUNCTIONS[function]
    grad_output = grad_of_output(our_function, tensors, kwargs)

    doubles = [t.double() for t in tensors]
    references = with_gradients(torch_function, doubles, grad_output.double(), kwargs)
    if function == "conv2d_relu":  # a ReLU open in one precision and closed in the other
        grad_output = grad_output * (references[0] != 0)
    torchs = with_gradients(torch_function, tensors, grad_output, kwargs)
    results = with_gradients(our_function, tensors, grad_output, kwargs)
    for name, result, own, reference in zip(NAMES, results, torchs, references, strict=True):
        assert_accurate(result, own, reference, name)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_exact_on_small_integers(backend, problem, dtype, function):
    """Sums are exact in float32 too, so that a result is float64's, rounded once."""
    shape, filters, kwargs = PROBLEMS[problem]
    tensors = operands(shape, filters, kwargs, dtype, backend.device, integers)
    our_function, torch_function = FUNCTIONS[function]
    grad_output = grad_of_output(our_function, tensors, kwargs, integers)
    results = with_gradients(our_function, tensors, grad_output, kwargs)
    doubles = [t.double() for t in tensors]
    expected = with_gradients(torch_function, doubles, grad_output.double(), kwargs)
    for name, result, reference in zip(NAMES, results, expected, strict=True):
        assert result.dtype == dtype
        assert torch.equal(result, reference.to(dtype)), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("problem", ["mnist_first", "mnist_second", "strided", "groups", "deep"])
def test_16_bit_is_float32_rounded_once(backend, problem, dtype):
    shape, filters, kwargs = PROBLEMS[problem]
    tensors = operands(shape, filters, kwargs, dtype, backend.device)
    grad_output = grad_of_output(ours.conv2d, tensors, kwargs)
    results = with_gradients(ours.conv2d, tensors, grad_output, kwargs)
    doubles = [t.double() for t in tensors]
    references = with_gradients(F.conv2d, doubles, grad_output.double(), kwargs)
    for name, result, reference in zip(NAMES, results, references, strict=True):
        error = relative_error(result, reference)
        assert error <= torch.finfo(dtype).eps / 2, name  # half a unit: one rounding


def sliced(tensor):
    """Equal values in the odd places of a larger tensor."""
    larger = tensor.new_zeros([2 * size + 1 for size in tensor.shape])
    view = larger[tuple(slice(1, None, 2) for _ in tensor.shape)]
    return view.copy_(tensor)


LAYOUTS = {
    "contiguous": lambda t: t,
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "sliced": sliced,
    "transposed": lambda t: t.transpose(-1, -2).contiguous().transpose(-1, -2),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight_layout", LAYOUTS)
@pytest.mark.parametrize("input_layout", LAYOUTS)
def test_layouts(backend, input_layout, weight_layout, dtype):
    kwargs = dict(stride=(1, 2), padding=1, groups=2)
    input, weight, bias = operands(
        (3, 6, 9, 11), (4, 3, 3), kwargs, dtype, backend.device, integers
    )
    grad_output = grad_of_output(ours.conv2d, [input, weight, bias], kwargs, integers)
    doubles = [t.double() for t in (input, weight, bias)]
    expected = with_gradients(F.conv2d, doubles, grad_output.double(), kwargs)

    input = LAYOUTS[input_layout](input).requires_grad_()
    weight = LAYOUTS[weight_layout](weight).requires_grad_()
    bias = sliced(bias).requires_grad_()
    output = ours.conv2d(input, weight, bias, **kwargs)
    for layout in LAYOUTS.values():
        grads = torch.autograd.grad(
            output, [input, weight, bias], layout(grad_output), retain_graph=True
        )
        for name, result, reference in zip(NAMES, [output, *grads], expected, strict=True):
            assert torch.equal(result, reference.to(dtype)), name


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    "filter, stride", [((1, 1), 1), ((1, 1), 2), ((3, 2), 1), ((1, 3), (2, 1))]
)
def test_channels_last_without_padding(backend, filter, stride, groups):
    kwargs = dict(stride=stride, groups=groups)
    input, weight, bias = operands(
        (3, 16, 9, 10), (24, *filter), kwargs, torch.float32, backend.device, integers
    )
    tensors = [*map(LAYOUTS["channels_last"], (input, weight)), bias]
    grad_output = grad_of_output(ours.conv2d, tensors, kwargs, integers)
    results = with_gradients(ours.conv2d, tensors, grad_output, kwargs)
    expected = with_gradients(F.conv2d, tensors, grad_output, kwargs)
    for name, result, reference in zip(NAMES, results, expected, strict=True):
        assert torch.equal(result, reference), name


def test_expanded_gradient(backend):
    input, weight, bias = operands((2, 3, 8, 8), (4, 3, 3), {}, torch.float64, backend.device)
    weight.requires_grad_()
    ours.conv2d(input, weight, bias).sum().backward()  # the gradient of sum() is expanded
    grad, weight.grad = weight.grad, None
    F.conv2d(input, weight, bias).sum().backward()
    torch.testing.assert_close(grad, weight.grad, rtol=1e-12, atol=1e-12)


def test_without_bias(backend):
    input, weight, _ = operands(
        (2, 3, 8, 8), (4, 3, 3), {}, torch.float32, backend.device, integers
    )
    assert torch.equal(ours.conv2d(input, weight), F.conv2d(input, weight))
    assert torch.equal(ours.conv2d_relu(input, weight), F.relu(F.conv2d(input, weight)))


def test_unbatched(backend):
    tensors = operands((3, 8, 9), (4, 3, 3), {}, torch.float64, backend.device, integers)
    tensors[1] = integers(4, 3, 3, 3, dtype=torch.float64, device=backend.device)
    grad_output = grad_of_output(ours.conv2d, tensors, {}, integers)
    assert grad_output.shape == (4, 6, 7)
    results = with_gradients(ours.conv2d, tensors, grad_output, {})
    expected = with_gradients(F.conv2d, tensors, grad_output, {})
    for name, result, reference in zip(NAMES, results, expected, strict=True):
        assert torch.equal(result, reference), name


@pytest.mark.parametrize("function", FUNCTIONS)
def test_empty_batch(backend, function):
    tensors = operands((0, 3, 8, 8), (4, 3, 3), {}, torch.float32, backend.device)
    our_function, torch_function = FUNCTIONS[function]
    grad_output = grad_of_output(our_function, tensors, {})
    results = with_gradients(our_function, tensors, grad_output, {})
    expected = with_gradients(torch_function, tensors, grad_output, {})
    for name, result, reference in zip(NAMES, results, expected, strict=True):
        assert torch.equal(result, reference), name


@pytest.mark.parametrize("N", [0, 2])
def test_no_input_channels_leave_the_bias(backend, N):
    tensors = operands((N, 0, 8, 8), (4, 3, 3), {}, torch.float32, backend.device, integers)
    grad_output = integers(N, 4, 6, 6, dtype=torch.float32, device=backend.device)
    output, grad_input, grad_weight, grad_bias = with_gradients(
        ours.conv2d, tensors, grad_output, {}
    )
    assert torch.equal(output, tensors[2].view(1, 4, 1, 1).expand(N, 4, 6, 6))
    assert grad_input.shape == (N, 0, 8, 8) and grad_weight.shape == (4, 0, 3, 3)
    assert torch.equal(grad_bias, grad_output.sum((0, 2, 3)))


def test_nan_passes_relu_forward_and_backward(backend):
    input = torch.tensor([-1.0, float("nan"), 2.0], device=backend.device).view(1, 1, 1, 3)
    input.requires_grad_()
    weight = torch.ones(1, 1, 1, 1, device=backend.device)
    output = ours.conv2d_relu(input, weight)
    output.backward(torch.ones_like(output))
    expected = torch.tensor([0.0, float("nan"), 2.0], device=backend.device)
    assert torch.equal(output.flatten().nan_to_num(7), expected.nan_to_num(7))
    assert input.grad.flatten().tolist() == [0.0, 1.0, 1.0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_inf_stay_where_they_belong(backend, value):
    input, weight, bias = operands((1, 3, 12, 13), (5, 3, 3), {}, torch.float32, backend.device)
    input[0, 1, 6, 7] = value
    result, expected = ours.conv2d(input, weight, bias), F.conv2d(input, weight, bias)
    assert torch.equal(result.isfinite(), expected.isfinite())
    assert torch.equal(result.isnan(), expected.isnan())


@pytest.mark.parametrize("problem", ["mnist_first", "mnist_second", "strided", "groups", "deep"])
def test_same_bits_whatever_the_number_of_threads(backend, problem):
    shape, filters, kwargs = PROBLEMS[problem]
    tensors = operands((7, *shape[1:]), filters, kwargs, torch.float32, backend.device)
    grad_output = grad_of_output(ours.conv2d, tensors, kwargs)
    threads = torch.get_num_threads()
    try:
        runs = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            runs.append(with_gradients(ours.conv2d_relu, tensors, grad_output, kwargs))
    finally:
        torch.set_num_threads(threads)
    for other in runs[1:]:
        for name, a, b in zip(NAMES, runs[0], other, strict=True):
            assert torch.equal(a, b), name
