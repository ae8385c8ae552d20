"""Corners of torch's semantics, in every dtype and on every backend."""

import itertools
import warnings

import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_accurate, integers
from torch import nn

import cnnkernels.functional as ours
import cnnkernels.nn

NAN, INF = float("nan"), float("inf")
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def channels_last(tensor):
    return tensor.contiguous(memory_format=torch.channels_last)


FORMATS = {"contiguous": lambda t: t, "channels_last": channels_last}


def assert_equal(result, expected, what=None):
    """Equal, NaN to NaN, infinities too."""
    assert result.dtype == expected.dtype, what
    torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True, msg=what)


def max_pool(module, input, grad_of=None, **kwargs):
    """Output, indices and, for a gradient made by `grad_of` from the output, grad_input."""
    input = input.detach().requires_grad_()
    output, indices = module.max_pool2d(input, return_indices=True, **kwargs)
    results = [output.detach(), indices]
    if grad_of is not None:
        results += torch.autograd.grad(output, input, grad_of(output))
    return results


def avg_pool(module, input, **kwargs):
    """Output and, for a gradient of alternating 1 and -2, grad_input."""
    input = input.detach().requires_grad_()
    output = module.avg_pool2d(input, **kwargs)
    return [output.detach(), *torch.autograd.grad(output, input, alternating(output))]


def alternating(output):
    gradient = torch.ones_like(output).flatten()
    gradient[1::2] = -2
    return gradient.view(output.shape)


# ---------------------------------------------------------------- pools


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("window", [(2, 127), (15, 17), (16, 16), (17, 17), (32, 32)], ids=str)
def test_nan_inf_and_ties_in_windows_around_a_byte_of_positions(backend, window, dtype):
    """254 positions fit into a byte; 255, 256, 289 and 1,024 do not."""
    values = torch.tensor([0, 0, 1, 1, -INF, INF, NAN], dtype=dtype, device=backend.device)
    rare = torch.tensor([60, 60, 40, 40, 20, 1, 1], dtype=torch.float)
    picked = torch.multinomial(rare.repeat(6, 1), 41 * 131, replacement=True)
    for high in (4, 5, 7):  # neither; infinities; NaN
        input = values[:high][picked.to(backend.device).clamp(max=high - 1)].view(2, 3, 41, 131)
        for format in FORMATS.values():
            kwargs = dict(kernel_size=window, stride=(5, 3), padding=(1, 8))
            results = max_pool(ours, format(input), alternating, **kwargs)
            wide = max_pool(F, format(input.double()), alternating, **kwargs)
            assert_equal(results[0], wide[0].to(dtype))
            assert_equal(results[1], wide[1])
            assert_equal(results[2], wide[2].to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("format", FORMATS)
def test_max_pool_of_planes_full_of_nan_inf_and_ties(backend, format, dtype):
    values = torch.tensor([NAN, INF, -INF, -INF, 0, 0, 1], dtype=dtype, device=backend.device)
    input = FORMATS[format](values[torch.randint(len(values), (2, 19, 23, 37))])
    for kwargs in (dict(kernel_size=3, stride=2, padding=1), dict(kernel_size=2, dilation=3)):
        results = max_pool(ours, input, alternating, **kwargs)
        for result, expected in zip(
            results, max_pool(F, input, alternating, **kwargs), strict=True
        ):
            assert_equal(result, expected, str(kwargs))


# Size of the input, window, stride, padding along one dimension: all small ones.
LINES = [
    (size, window, stride, padding)
    for size, window, stride in itertools.product(range(1, 7), range(1, 5), range(1, 5))
    for padding in range(window // 2 + 1)
    if size + 2 * padding + stride > window  # there is an output
]


def ceil_cases(device):
    """Input and arguments; the other dimension is another of the small ones."""
    generator = torch.Generator().manual_seed(1)
    order = torch.randperm(len(LINES), generator=generator).tolist()
    for row, column in zip(LINES, (LINES[i] for i in order), strict=True):
        (H, R, stride_h, pad_h), (W, S, stride_w, pad_w) = row, column
        names = ("kernel_size", "stride", "padding")
        pairs = ((R, S), (stride_h, stride_w), (pad_h, pad_w))
        input = integers(2, 3, H, W, dtype=torch.float32, device=device)
        yield input, dict(zip(names, pairs, strict=True), ceil_mode=True)


def test_max_pool_with_ceil_mode_and_padding(backend):
    for input, kwargs in ceil_cases(backend.device):
        results = max_pool(ours, input, alternating, **kwargs)
        expected = max_pool(F, input, alternating, **kwargs)
        for result, reference in zip(results, expected, strict=True):
            assert_equal(result, reference, f"{tuple(input.shape)} {kwargs}")


@pytest.mark.parametrize("divisor_override", [None, 3, -2])
@pytest.mark.parametrize("count_include_pad", [True, False])
def test_avg_pool_with_ceil_mode_and_padding(backend, count_include_pad, divisor_override):
    for input, kwargs in ceil_cases(backend.device):
        kwargs |= dict(count_include_pad=count_include_pad, divisor_override=divisor_override)
        results, own = avg_pool(ours, input, **kwargs), avg_pool(F, input, **kwargs)
        references = avg_pool(F, input.double(), **kwargs)
        for result, torchs, reference in zip(results, own, references, strict=True):
            assert_accurate(result, torchs, reference, f"{tuple(input.shape)} {kwargs}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("shape", "kwargs"),
    [
        ((2, 3, 1, 1), dict(kernel_size=2, stride=1, padding=1, dilation=2)),
        ((2, 3, 2, 5), dict(kernel_size=2, stride=1, padding=1, dilation=3)),
        ((2, 19, 3, 3), dict(kernel_size=(2, 3), stride=1, padding=1, dilation=(4, 2))),
        ((2, 3, 1, 9), dict(kernel_size=2, stride=2, padding=1, dilation=2, ceil_mode=True)),
    ],
    ids=str,
)
def test_windows_that_dilation_puts_wholly_into_padding(backend, shape, kwargs, format, dtype):
    """Minus infinity at an index of no pixel, as in torch; its gradient goes nowhere.

    Torch's own backward pass writes through that index, outside the input, and cannot be asked.
    """
    input = FORMATS[format](integers(*shape, dtype=dtype, device=backend.device))
    results = max_pool(ours, input, torch.ones_like, **kwargs)
    output, indices = F.max_pool2d(input, return_indices=True, **kwargs)
    assert_equal(results[0], output)
    assert_equal(results[1], indices)
    empty = output == -INF
    assert empty.any()
    # Windows with a pixel hand on a one each; the index of the others may name a pixel.
    reached = torch.zeros(*shape[:2], shape[2] * shape[3], dtype=dtype, device=backend.device)
    source = (~empty).flatten(2).to(dtype)
    inside = indices.flatten(2).where(~empty.flatten(2), 0)
    reached.scatter_add_(2, inside, source)
    assert_equal(results[2], reached.view(shape))


@pytest.mark.parametrize("return_indices", [False, True])
def test_derivative_of_the_gradient_is_zero_for_windows_wholly_in_padding(backend, return_indices):
    kwargs = dict(kernel_size=2, stride=1, padding=1, dilation=3)
    input = integers(2, 3, 2, 5, dtype=torch.float32, device=backend.device).requires_grad_()
    output = ours.max_pool2d(input, return_indices=return_indices, **kwargs)
    output = output[0] if return_indices else output
    grad_output = torch.ones_like(output, requires_grad=True)
    (grad_input,) = torch.autograd.grad(output, input, grad_output, create_graph=True)
    # Sevens lie all around the direction: a read beside it shows.
    direction = torch.full((6, 3, 2, 5), 7.0, device=backend.device)[2:4].fill_(1)
    (derivative,) = torch.autograd.grad(grad_input, grad_output, direction)
    empty = output == -INF
    assert empty.any()
    assert_equal(derivative, (~empty).float())


def test_padding_beyond_half_of_the_window_is_refused_whatever_the_dilation(backend):
    input = torch.zeros(1, 1, 9, 9, device=backend.device)
    for module in (F, ours):
        with pytest.raises(RuntimeError, match="half of kernel size"):
            module.max_pool2d(input, 2, 1, 2, dilation=4)


# ---------------------------------------------------------------- convolution


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("padding", [2, (0, 3), "same", "valid"], ids=str)
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
def test_padding_modes(backend, padding_mode, padding, dtype):
    """Whole numbers: exact before the one rounding at the end, to 16 bits from float32."""
    arguments = dict(padding=padding, padding_mode=padding_mode, dilation=(1, 2), groups=2)
    module = cnnkernels.nn.Conv2d(4, 6, (4, 3), **arguments).to(backend.device, dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(integers(*parameter.shape, dtype=dtype))
    wide_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    wide = nn.Conv2d(4, 6, (4, 3), **arguments).to(backend.device, wide_dtype)
    wide.load_state_dict(module.state_dict())

    input = integers(2, 4, 9, 8, dtype=dtype, device=backend.device, high=9)
    results = convolve(module, input)
    for result, expected in zip(results, convolve(wide, input.to(wide_dtype)), strict=True):
        assert_equal(result, expected.to(dtype))


def convolve(module, input):
    """Output, grad_input, grad_weight, grad_bias."""
    input = input.detach().requires_grad_()
    with warnings.catch_warnings():  # of the copy that torch makes for 'same'
        warnings.simplefilter("ignore", UserWarning)
        output = module(input)
    leaves = (input, *module.parameters())
    return [output.detach(), *torch.autograd.grad(output, leaves, alternating(output))]
