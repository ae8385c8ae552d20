"""Depthwise convolution on the CPU: exact, as accurate as torch's, and chosen where it fits."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_accurate, assert_same_bits, integers
from test_conv2d_winograd import LAYOUTS, with_gradients

import cnnkernels
import cnnkernels.functional as ours

# N, C, H, W; R, S; the other arguments. A vector is 4 to 16 channels.
PROBLEMS = {
    "one": ((1, 2, 1, 1), (1, 1), {}),
    "no_images": ((0, 3, 9, 8), (3, 3), {}),
    "mobilenet": ((2, 19, 14, 13), (3, 3), dict(padding=1)),
    "halving": ((2, 9, 15, 17), (3, 3), dict(padding=1, stride=2)),
    "small": ((3, 33, 7, 7), (3, 3), dict(padding=1)),
    "seven": ((1, 6, 18, 20), (7, 7), dict(padding=3)),
    "deep": ((1, 3, 34, 29), (13, 11), dict(padding=(6, 5))),  # more taps than a register sums
    "dilated": ((2, 5, 16, 15), (3, 2), dict(dilation=(2, 3), padding=(2, 0))),
    "sparse": ((1, 4, 17, 16), (2, 3), dict(stride=(3, 4))),  # some pixels are read by no output
    "dilated_stride": ((1, 4, 21, 19), (3, 3), dict(stride=2, dilation=3, padding=3)),
    "large_tile": ((1, 34, 58, 60), (31, 29), dict(stride=4, padding=(15, 14))),
    "same": ((1, 3, 9, 8), (4, 2), dict(padding="same")),
    "several_tiles": ((2, 2, 130, 150), (3, 3), dict(padding=1)),
    "long_rows": ((1, 2, 3, 9001), (3, 3), dict(padding=1)),
}
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def operands(problem, random=torch.randn, dtype=torch.float32):
    shape, filters, _ = PROBLEMS[problem]
    C = shape[1]
    return [random(*size, dtype=dtype) for size in (shape, (C, 1, *filters), (C,))]


def conv2d(problem, module, relu=False):
    shape, _, kwargs = PROBLEMS[problem]
    kwargs = kwargs | dict(groups=shape[1])
    if not relu:
        return partial(module.conv2d, **kwargs)
    if module is ours:
        return partial(ours.conv2d_relu, **kwargs)
    return lambda *tensors: F.relu(F.conv2d(*tensors, **kwargs))


@pytest.mark.parametrize("relu", [False, True], ids=["plain", "relu"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_exact_on_whole_numbers(problem, layout, relu):
    tensors = operands(problem, partial(integers, high=2))
    tensors = [*map(LAYOUTS[layout], tensors[:2]), tensors[2]]
    with cnnkernels.algorithm("depthwise"):
        results = with_gradients(conv2d(problem, ours, relu), tensors)
    expected = with_gradients(conv2d(problem, F, relu), tensors)
    for result, reference in zip(results, expected, strict=True):
        assert torch.equal(result, reference)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("problem", ["mobilenet", "halving", "seven"])
def test_every_dtype_keeps_to_the_accuracy_rule(problem, dtype, layout):
    tensors = [t.to(dtype) for t in operands(problem)]
    tensors[:2] = map(LAYOUTS[layout], tensors[:2])
    with cnnkernels.algorithm("depthwise"):
        results = with_gradients(conv2d(problem, ours), tensors)
    torchs = with_gradients(conv2d(problem, F), tensors)
    references = with_gradients(conv2d(problem, F), [t.double() for t in tensors])
    for result, own, reference in zip(results, torchs, references, strict=True):
        assert_accurate(result, own, reference)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("problem", ["small", "several_tiles"])
def test_same_bits_whatever_the_number_of_threads(problem, layout):
    tensors = operands(problem)
    tensors[:2] = map(LAYOUTS[layout], tensors[:2])
    with cnnkernels.algorithm("depthwise"):
        assert_same_bits(lambda: with_gradients(conv2d(problem, ours), tensors))


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("problem", ["mobilenet", "halving", "long_rows"])
def test_nan_and_infinity_go_where_torch_has_them(problem, layout):
    tensors = operands(problem, integers)
    x = tensors[0]
    x[0, 0, 0, 2], x[-1, -1, -1, -1], x[0, 1, 1, 7] = torch.nan, torch.inf, -torch.inf
    tensors[:2] = map(LAYOUTS[layout], tensors[:2])
    with cnnkernels.algorithm("depthwise"):
        results = with_gradients(conv2d(problem, ours), tensors)
    expected = with_gradients(conv2d(problem, F), tensors)
    torch.testing.assert_close(results, expected, rtol=0, atol=0, equal_nan=True)


def test_it_is_for_groups_of_one_channel_and_one_filter():
    def chosen(groups, filters):
        x, w = torch.zeros(1, 8, 9, 9), torch.zeros(filters, 8 // groups, 3, 3)
        candidates = cnnkernels.algorithms("conv2d", x, w, groups=groups)
        return next(c.algorithm for c in candidates if "wgrad" in c.runs)

    assert chosen(8, 8) == "depthwise"
    assert chosen(4, 8) == chosen(8, 16) == chosen(1, 8) == "implicit_gemm"
    x, w = torch.zeros(1, 8, 9, 9), torch.zeros(8, 2, 3, 3)
    with cnnkernels.algorithm("depthwise"), pytest.raises(RuntimeError, match="one channel"):
        ours.conv2d(x, w, groups=4)
