"""Adaptive and global pooling, forward and backward, on every backend, against torch."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_accurate, integers
from test_pool2d import DTYPES, LAYOUTS, with_gradient
from torch import nn

import cnnkernels
import cnnkernels.functional as ours
import cnnkernels.nn

NAN, INF = float("nan"), float("inf")
POOLS = ["adaptive_max_pool2d", "adaptive_avg_pool2d"]

# Shape, output size.
PROBLEMS = {
    "one": ((1, 1, 1, 1), 1),
    "same_size": ((2, 3, 7, 7), 7),
    "none": ((2, 3, 5, 6), (None, None)),
    "one_none": ((2, 3, 5, 6), (2, None)),
    "global": ((3, 18, 7, 7), 1),
    "global_row": ((2, 3, 1, 77), 1),
    "global_column": ((2, 3, 77, 1), 1),
    "global_large": ((2, 5, 67, 61), 1),
    "even": ((2, 3, 12, 8), (4, 2)),
    "primes": ((2, 5, 13, 11), (5, 7)),
    "overlap_of_two": ((2, 3, 5, 7), (3, 5)),
    "rows": ((2, 3, 9, 20), (9, 3)),
    "larger": ((2, 3, 3, 4), (7, 9)),
    "larger_from_one": ((2, 3, 1, 1), (3, 2)),
    "larger_and_smaller": ((2, 3, 3, 29), (8, 4)),
    "many_channels": ((2, 70, 9, 10), (4, 3)),
    "window_32": ((2, 3, 8, 8), (2, 1)),
    "window_33": ((1, 35, 3, 22), (1, 2)),
    "window_254": ((1, 2, 4, 127), (2, 1)),
    "window_255": ((1, 2, 30, 17), (2, 1)),
    "window_1024": ((1, 2, 65, 64), (2, 2)),
    "no_rows": ((2, 3, 5, 6), (0, 2)),
}


def wide(input):
    """Sums of whole numbers and their quotients, to be rounded once."""
    return input.float() if input.dtype in (torch.float16, torch.bfloat16) else input


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_max_equals_torch_bit_for_bit(backend, problem, channels_last, dtype):
    shape, size = PROBLEMS[problem]
    input = integers(*shape, dtype=dtype, device=backend.device)  # many ties
    if channels_last:
        input = LAYOUTS["channels_last"](input)
    expected, expected_indices = F.adaptive_max_pool2d(input, size, return_indices=True)
    output, indices = ours.adaptive_max_pool2d(input, size, return_indices=True)
    assert torch.equal(output, expected) and output.dtype == dtype
    assert indices.dtype == torch.int64 and torch.equal(indices, expected_indices)
    assert torch.equal(ours.adaptive_max_pool2d(input, size), expected)
    if expected.numel() == 0:
        return

    grad_output = integers(*expected.shape, dtype=dtype, device=backend.device)
    kwargs = dict(output_size=size)
    _, expected_grad = with_gradient(
        F.adaptive_max_pool2d, wide(input), grad_output.to(wide(input).dtype), kwargs
    )
    for indices in (False, True):  # codes within the window, or torch's

        def function(input, output_size):
            result = ours.adaptive_max_pool2d(input, output_size, return_indices=indices)  # noqa: B023
            return result[0] if isinstance(result, tuple) else result

        output, grad = with_gradient(function, input, grad_output, kwargs)
        assert torch.equal(output, expected)
        assert torch.equal(grad, expected_grad.to(dtype))


@pytest.mark.parametrize(
    "window", [[0, 1, NAN, 2], [NAN, 5, NAN, 1], [-INF] * 4, [INF, INF, 0, 0], [3, 3, 3, 3]]
)
def test_max_of_nan_inf_and_ties(backend, window):
    for values in set(itertools.permutations(window)):
        input = torch.tensor(values, dtype=torch.float32, device=backend.device).view(1, 1, 2, 2)
        for size in (1, (1, 2), (2, 1)):
            check_special_values(input, size)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [1, 3, (4, 9), (13, 40)])
def test_max_of_a_random_plane_with_nan_inf_and_ties(backend, size, layout):
    values = torch.tensor([NAN, INF, -INF, -INF, 0.0, 1.0, 1.0], device=backend.device)
    for high in (4, 5, 7):  # with few other values, and without NaN
        input = values[7 - high :][torch.randint(high, (2, 18, 11, 37))]
        check_special_values(LAYOUTS[layout](input), size)


def check_special_values(input, size):
    output, indices = ours.adaptive_max_pool2d(input, size, return_indices=True)
    expected, expected_indices = F.adaptive_max_pool2d(input, size, return_indices=True)
    torch.testing.assert_close(output, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(indices, expected_indices)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_avg(backend, problem, channels_last, dtype):
    shape, size = PROBLEMS[problem]
    # Whole numbers where there is no higher precision to judge by.
    random = integers if dtype == torch.float64 else torch.randn
    input = random(*shape, dtype=dtype, device=backend.device)
    if channels_last:
        input = LAYOUTS["channels_last"](input)
    kwargs = dict(output_size=size)
    output = ours.adaptive_avg_pool2d(input, size)
    assert output.shape == F.adaptive_avg_pool2d(input, size).shape
    if output.numel() == 0:
        return
    grad_output = random(*output.shape, dtype=dtype, device=backend.device)
    results = with_gradient(ours.adaptive_avg_pool2d, input, grad_output, kwargs)
    torchs = with_gradient(F.adaptive_avg_pool2d, input, grad_output, kwargs)
    references = with_gradient(F.adaptive_avg_pool2d, input.double(), grad_output.double(), kwargs)
    for result, own, reference in zip(results, torchs, references, strict=True):
        assert_accurate(result, own, reference)


# Windows of 1, 2, 4, ... elements: averages of whole numbers, and their gradients, are exact.
EXACT = [((2, 18, 8, 16), (2, 4)), ((2, 18, 16, 32), 1), ((2, 18, 4, 4), (8, 2)), ((1, 3, 3, 3), 3)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "size"), EXACT, ids=str)
def test_avg_of_integers_is_exact(backend, shape, size, layout, dtype):
    input = LAYOUTS[layout](integers(*shape, dtype=dtype, device=backend.device))
    kwargs = dict(output_size=size)
    expected = F.adaptive_avg_pool2d(input.double(), size)
    grad_output = integers(*expected.shape, dtype=dtype, device=backend.device)
    results = with_gradient(ours.adaptive_avg_pool2d, input, grad_output, kwargs)
    exact = with_gradient(F.adaptive_avg_pool2d, input.double(), grad_output.double(), kwargs)
    for result, reference in zip(results, exact, strict=True):
        assert torch.equal(result, reference.to(dtype))


@pytest.mark.parametrize("channels_last", [False, True])
def test_error_of_a_global_average_does_not_grow_with_the_plane(backend, channels_last):
    input = torch.rand(1, 2, 512, 600, device=backend.device)
    if channels_last:
        input = LAYOUTS["channels_last"](input)
    result = ours.adaptive_avg_pool2d(input, 1)
    reference = input.double().mean((2, 3), keepdim=True)
    assert_accurate(result, reference.float(), reference)


@pytest.mark.parametrize("pool", POOLS)
def test_avg_and_max_of_infinities_and_nan(backend, pool):
    input = torch.ones(1, 5, 40, 40, device=backend.device)
    input[0, 0, 3, 4], input[0, 1, 3, 4], input[0, 2, 39, 39] = INF, -INF, NAN
    input[0, 3, 0, 0], input[0, 3, 0, 1] = INF, -INF
    for size in (1, 2, 7):
        result, expected = getattr(ours, pool)(input, size), getattr(F, pool)(input, size)
        torch.testing.assert_close(result, expected, equal_nan=True)


@pytest.mark.parametrize("grad_layout", LAYOUTS)
@pytest.mark.parametrize("input_layout", LAYOUTS)
@pytest.mark.parametrize("size", [1, (2, 5), (18, 10)])
@pytest.mark.parametrize("pool", POOLS)
def test_layouts(backend, pool, size, input_layout, grad_layout):
    input = LAYOUTS[input_layout](
        integers(3, 18, 9, 10, dtype=torch.float64, device=backend.device)
    )
    kwargs = dict(output_size=size)
    expected = getattr(F, pool)(input, size)
    grad_output = integers(*expected.shape, dtype=torch.float64, device=backend.device)
    grad_output = LAYOUTS[grad_layout](grad_output)
    results = with_gradient(getattr(ours, pool), input, grad_output, kwargs)
    references = with_gradient(getattr(F, pool), input, grad_output, kwargs)
    for result, reference in zip(results, references, strict=True):
        torch.testing.assert_close(result, reference, rtol=1e-15, atol=1e-15)
    assert results[0].stride() == expected.stride()


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("shape", [(3, 8, 9), (0, 3, 8, 9), (0, 8, 9)])
def test_unbatched_and_empty_batch(backend, pool, shape):
    input = integers(*shape, dtype=torch.float64, device=backend.device)
    kwargs = dict(output_size=(2, 4))
    expected = getattr(F, pool)(input, **kwargs)
    assert getattr(ours, pool)(input, **kwargs).shape == expected.shape
    if shape[0] == 0 and len(shape) == 3:
        return  # torch has no gradient
    grad_output = torch.ones_like(expected)
    results = with_gradient(getattr(ours, pool), input, grad_output, kwargs)
    references = with_gradient(getattr(F, pool), input, grad_output, kwargs)
    for result, reference in zip(results, references, strict=True):
        torch.testing.assert_close(result, reference, rtol=1e-15, atol=0)


def test_an_output_without_pixels_has_no_gradient(backend):
    input = torch.ones(1, 2, 3, 4, device=backend.device, requires_grad=True)
    for module, pool in itertools.product((F, ours), POOLS):
        output = getattr(module, pool)(input, (0, 2))
        assert output.shape == (1, 2, 0, 2)
        with pytest.raises(RuntimeError, match="non-zero size for non-batch dimensions"):
            output.sum().backward()


def test_training_keeps_one_byte_an_output(backend):
    def codes(height, width, size):
        input = torch.randn(2, 3, height, width, device=backend.device, requires_grad=True)
        output = ours.adaptive_max_pool2d(input, size)
        (argmax,) = output.grad_fn.saved_tensors
        assert argmax.shape == output.shape
        return argmax.dtype

    assert codes(56, 56, 7) == torch.uint8
    assert codes(4, 127, (2, 1)) == torch.uint8
    assert codes(15, 17, 1) == torch.int32


@pytest.mark.parametrize(("size", "window"), [(1, (8, 9)), ((4, 3), (2, 3)), ((2, 9), (4, 1))])
def test_max_unpool_takes_the_indices(backend, size, window):
    input = torch.randn(2, 3, 8, 9, device=backend.device)
    unpool = nn.MaxUnpool2d(window)
    result = unpool(*cnnkernels.nn.AdaptiveMaxPool2d(size, return_indices=True)(input))
    expected = unpool(*nn.AdaptiveMaxPool2d(size, return_indices=True)(input))
    assert result.shape == input.shape and torch.equal(result, expected)


@pytest.mark.parametrize(
    ("shape", "algorithm"),
    [
        ((1, 2, 7, 7), "avg_pool2d_block_forward<float, 32>"),
        ((1, 2, 32, 32), "avg_pool2d_block_forward<float, 256>"),
        ((1, 2, 4, 8), "avg_pool2d_direct_forward<float, AdaptivePool2dProblem>"),
    ],
    ids=str,
)
def test_large_windows_get_several_threads(shape, algorithm):
    with cnnkernels.profile() as p:
        ours.adaptive_avg_pool2d(torch.randn(shape), 1)
    (kernel,) = p.kernels
    assert kernel.kernel == algorithm


def test_large_windows_in_channels_last_are_read_pixel_by_pixel():
    input = torch.randn(1, 32, 16, 16).contiguous(memory_format=torch.channels_last)
    with cnnkernels.profile() as p:
        ours.adaptive_avg_pool2d(input, 1)
    (kernel,) = p.kernels
    assert kernel.kernel == "avg_pool2d_block_forward_channels_last<float>"
    assert kernel.bytes_read == kernel.global_load.bytes == 4 * 32 * 256
    assert kernel.global_load.requests == 256  # a warp's 32 channels of a pixel
    assert kernel.global_load.units == 256 * 4
