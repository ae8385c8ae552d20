"""Pooling, forward and backward, on every backend, against torch."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_accurate, integers

import cnnkernels.functional as ours

NAN, INF = float("nan"), float("inf")
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]

# Shape, keyword arguments of both pools.
PROBLEMS = {
    "mnist": ((2, 16, 28, 28), dict(kernel_size=2)),
    "one": ((1, 1, 1, 1), dict(kernel_size=1)),
    "one_channel": ((19, 1, 6, 7), dict(kernel_size=2)),
    "many_planes": ((3, 23, 5, 4), dict(kernel_size=3, stride=2, padding=1)),
    "primes": ((3, 5, 13, 11), dict(kernel_size=(3, 5), stride=(2, 3))),
    "overlapping": ((2, 3, 17, 19), dict(kernel_size=3, stride=2, padding=1)),
    "stride_one": ((2, 3, 9, 8), dict(kernel_size=4, stride=1, padding=2)),
    "gaps": ((2, 3, 17, 16), dict(kernel_size=2, stride=5)),
    "ceil": ((2, 3, 10, 11), dict(kernel_size=3, stride=2, ceil_mode=True)),
    "ceil_drops_a_window": ((1, 2, 5, 5), dict(kernel_size=2, stride=3, padding=1, ceil_mode=True)),
    "ceil_padded": ((1, 2, 7, 8), dict(kernel_size=4, stride=3, padding=2, ceil_mode=True)),
    "whole_plane": ((2, 3, 7, 9), dict(kernel_size=(7, 9))),
    "row": ((2, 3, 1, 33), dict(kernel_size=(1, 4))),
    "wide_vector_tail": ((1, 2, 6, 131), dict(kernel_size=3, stride=1, padding=1)),
    "window_254": ((1, 2, 40, 130), dict(kernel_size=(2, 127), stride=(3, 2))),
    "window_255": ((1, 2, 30, 40), dict(kernel_size=(15, 17), stride=4)),
    "window_256": ((1, 2, 33, 35), dict(kernel_size=16, stride=(5, 3), padding=8)),
    "window_289": ((1, 2, 33, 35), dict(kernel_size=17, stride=7)),
    "window_1024": ((1, 2, 40, 41), dict(kernel_size=32, stride=3, padding=7)),
}
DILATED = {
    "dilated": ((2, 3, 15, 17), dict(kernel_size=3, stride=2, padding=1, dilation=(2, 3))),
    "dilated_ceil": (
        (2, 3, 16, 14),
        dict(kernel_size=(2, 3), dilation=3, stride=2, ceil_mode=True),
    ),
}


def with_gradient(function, input, grad_output, kwargs):
    input = input.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    output = function(input, **kwargs)
    return output.detach(), torch.autograd.grad(output, input, grad_output)[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("problem", PROBLEMS | DILATED)
def test_max_pool_equals_torch_bit_for_bit(backend, problem, dtype):
    shape, kwargs = (PROBLEMS | DILATED)[problem]
    input = integers(*shape, dtype=dtype, device=backend.device)  # many ties
    expected, expected_indices = F.max_pool2d(input, **kwargs, return_indices=True)
    output, indices = ours.max_pool2d(input, **kwargs, return_indices=True)
    assert torch.equal(output, expected)
    assert indices.dtype == torch.int64 and torch.equal(indices, expected_indices)
    assert torch.equal(ours.max_pool2d(input, **kwargs), expected)

    grad_output = integers(*expected.shape, dtype=dtype, device=backend.device)
    _, expected_grad = with_gradient(F.max_pool2d, input, grad_output, kwargs)
    for indices in (False, True):

        def function(input, **kwargs):
            result = ours.max_pool2d(input, **kwargs, return_indices=indices)  # noqa: B023
            return result[0] if isinstance(result, tuple) else result

        output, grad = with_gradient(function, input, grad_output, kwargs)
        assert torch.equal(output, expected)
        assert torch.equal(grad, expected_grad)


@pytest.mark.parametrize(
    "window", [[0, 1, NAN, 2], [NAN, 5, NAN, 1], [-INF] * 4, [INF, INF, 0, 0], [3, 3, 3, 3]]
)
def test_max_pool_of_nan_inf_and_ties(backend, window):
    for values in set(itertools.permutations(window)):
        input = torch.tensor(values, dtype=torch.float32, device=backend.device).view(1, 1, 2, 2)
        output, indices = ours.max_pool2d(input, 2, return_indices=True)
        expected, expected_indices = F.max_pool2d(input, 2, return_indices=True)
        assert torch.equal(output.nan_to_num(7.5), expected.nan_to_num(7.5)), values
        assert torch.equal(indices, expected_indices), values


def test_max_pool_of_a_random_plane_with_nan_and_inf(backend):
    special = torch.tensor([NAN, INF, -INF, -INF, 0.0, 1.0], device=backend.device)
    input = special[torch.randint(len(special), (2, 3, 31, 37))]
    kwargs = dict(kernel_size=3, stride=2, padding=1)
    output, indices = ours.max_pool2d(input, **kwargs, return_indices=True)
    expected, expected_indices = F.max_pool2d(input, **kwargs, return_indices=True)
    assert torch.equal(output.nan_to_num(7.5), expected.nan_to_num(7.5))
    assert torch.equal(indices, expected_indices)


def test_max_pool_of_minus_infinity_and_padding(backend):
    input = torch.full((1, 1, 5, 5), -INF, device=backend.device)
    output, indices = ours.max_pool2d(input, 3, 2, 1, return_indices=True)
    expected, expected_indices = F.max_pool2d(input, 3, 2, 1, return_indices=True)
    assert torch.equal(output, expected) and torch.equal(indices, expected_indices)


AVERAGES = [
    dict(),
    dict(count_include_pad=False),
    dict(divisor_override=3),
    dict(divisor_override=-2),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("average", AVERAGES, ids=str)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_avg_pool(backend, problem, average, dtype):
    shape, kwargs = PROBLEMS[problem]
    kwargs = kwargs | average
    input = torch.randn(shape, dtype=dtype, device=backend.device)
    grad_output = torch.randn_like(ours.avg_pool2d(input, **kwargs))
    results = with_gradient(ours.avg_pool2d, input, grad_output, kwargs)
    torchs = with_gradient(F.avg_pool2d, input, grad_output, kwargs)
    references = with_gradient(F.avg_pool2d, input.double(), grad_output.double(), kwargs)
    for result, own, reference in zip(results, torchs, references, strict=True):
        assert_accurate(result, own, reference)


def sliced(tensor):
    larger = tensor.new_zeros([2 * size + 1 for size in tensor.shape])
    return larger[tuple(slice(1, None, 2) for _ in tensor.shape)].copy_(tensor)


LAYOUTS = {
    "contiguous": lambda t: t,
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "sliced": sliced,
    "expanded": lambda t: t[:1, :1].expand_as(t),
}


@pytest.mark.parametrize("grad_layout", LAYOUTS)
@pytest.mark.parametrize("input_layout", LAYOUTS)
@pytest.mark.parametrize("pool", ["max_pool2d", "avg_pool2d"])
def test_layouts(backend, pool, input_layout, grad_layout):
    kwargs = dict(kernel_size=(4, 2), stride=2, padding=1)  # divisor 8: averages stay exact
    input = LAYOUTS[input_layout](
        integers(3, 18, 9, 11, dtype=torch.float32, device=backend.device)
    )
    expected = getattr(F, pool)(input, **kwargs)
    result = getattr(ours, pool)(input, **kwargs)
    assert torch.equal(result, expected)
    assert result.stride() == expected.stride()

    grad_output = integers(*expected.shape, dtype=torch.float32, device=backend.device)
    grad_output = LAYOUTS[grad_layout](grad_output)
    _, grad = with_gradient(getattr(ours, pool), input, grad_output, kwargs)
    _, expected_grad = with_gradient(getattr(F, pool), input, grad_output, kwargs)
    assert torch.equal(grad, expected_grad)


@pytest.mark.parametrize("pool", ["max_pool2d", "avg_pool2d"])
@pytest.mark.parametrize("shape", [(3, 8, 9), (0, 3, 8, 9), (0, 8, 9)])
def test_unbatched_and_empty_batch(backend, pool, shape):
    input = integers(*shape, dtype=torch.float64, device=backend.device)
    if shape == (0, 8, 9):
        with pytest.raises(RuntimeError):
            getattr(F, pool)(input, 2)
        with pytest.raises(RuntimeError):
            getattr(ours, pool)(input, 2)
        return
    grad_output = torch.ones_like(getattr(ours, pool)(input, 2))
    results = with_gradient(getattr(ours, pool), input, grad_output, dict(kernel_size=2))
    expected = with_gradient(getattr(F, pool), input, grad_output, dict(kernel_size=2))
    for result, reference in zip(results, expected, strict=True):
        assert torch.equal(result, reference)


def test_training_keeps_one_byte_an_output(backend):
    input = torch.randn(2, 3, 8, 8, device=backend.device, requires_grad=True)
    output = ours.max_pool2d(input, 2)
    (argmax,) = output.grad_fn.saved_tensors
    assert argmax.dtype == torch.uint8 and argmax.shape == output.shape
    large = torch.randn(1, 1, 40, 40, device=backend.device, requires_grad=True)
    (argmax,) = ours.max_pool2d(large, (15, 17)).grad_fn.saved_tensors
    assert argmax.dtype == torch.int32
