"""Depthwise convolution: exact, as accurate as torch's, chosen where it fits, bytes moved once."""

from contextlib import nullcontext
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
    "halving_even": ((2, 3, 12, 11), (4, 6), dict(stride=2, padding=(1, 3))),
    "halving_seven": ((1, 9, 21, 22), (7, 7), dict(stride=2, padding=3)),
    "padding_beyond_filter": ((2, 2, 3, 4), (2, 3), dict(padding=(5, 7))),
    "very_large": ((1, 2, 12, 14), (31, 29), dict(padding=(15, 14))),
    "very_large_halving": ((1, 2, 13, 14), (31, 29), dict(stride=2, padding=(15, 14))),
    "many_images": ((40, 2, 3, 4), (3, 3), dict(padding=1)),
    "several_tiles": ((2, 2, 130, 150), (3, 3), dict(padding=1)),
    "several_tiles_halving": ((2, 3, 70, 300), (3, 3), dict(padding=1, stride=2)),
    "long_rows": ((1, 2, 3, 9001), (3, 3), dict(padding=1)),
}
CPU_ALONE = {"dilated", "dilated_stride", "sparse", "large_tile"}
BACKENDS = {"cpu": nullcontext, "emulated": cnnkernels.emulate_cuda}
CASES = [
    (backend, problem)
    for backend in BACKENDS
    for problem in PROBLEMS
    if backend == "cpu" or problem not in CPU_ALONE
]
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
@pytest.mark.parametrize(("backend", "problem"), CASES)
def test_exact_on_whole_numbers(backend, problem, layout, relu):
    tensors = operands(problem, partial(integers, high=2))
    tensors = [*map(LAYOUTS[layout], tensors[:2]), tensors[2]]
    with BACKENDS[backend](), cnnkernels.algorithm("depthwise"):
        results = with_gradients(conv2d(problem, ours, relu), tensors)
    expected = with_gradients(conv2d(problem, F, relu), tensors)
    for result, reference in zip(results, expected, strict=True):
        assert torch.equal(result, reference)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("problem", ["mobilenet", "halving", "seven"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_dtype_keeps_to_the_accuracy_rule(backend, problem, dtype, layout):
    tensors = [t.to(dtype) for t in operands(problem)]
    tensors[:2] = map(LAYOUTS[layout], tensors[:2])
    with BACKENDS[backend](), cnnkernels.algorithm("depthwise"):
        results = with_gradients(conv2d(problem, ours), tensors)
    torchs = with_gradients(conv2d(problem, F), tensors)
    references = with_gradients(conv2d(problem, F), [t.double() for t in tensors])
    for result, own, reference in zip(results, torchs, references, strict=True):
        assert_accurate(result, own, reference)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("problem", ["small", "several_tiles"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_same_bits_whatever_the_number_of_threads(backend, problem, layout):
    tensors = operands(problem)
    tensors[:2] = map(LAYOUTS[layout], tensors[:2])
    with BACKENDS[backend](), cnnkernels.algorithm("depthwise"):
        assert_same_bits(lambda: with_gradients(conv2d(problem, ours), tensors))


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("problem", ["mobilenet", "halving", "long_rows"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_and_infinity_go_where_torch_has_them(backend, problem, layout):
    tensors = operands(problem, integers)
    x = tensors[0]
    x[0, 0, 0, 2], x[-1, -1, -1, -1], x[0, 1, 1, 7] = torch.nan, torch.inf, -torch.inf
    tensors[:2] = map(LAYOUTS[layout], tensors[:2])
    with BACKENDS[backend](), cnnkernels.algorithm("depthwise"):
        results = with_gradients(conv2d(problem, ours), tensors)
    expected = with_gradients(conv2d(problem, F), tensors)
    torch.testing.assert_close(results, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "problem", ["mobilenet", "halving", "halving_even", "deep", "very_large_halving", "many_images"]
)
def test_no_alarm(problem, layout):
    """No race, no access out of bounds; no block reads or writes what another writes."""
    tensors = operands(problem)
    tensors[:2] = map(LAYOUTS[layout], tensors[:2])
    with cnnkernels.algorithm("depthwise"):
        with cnnkernels.emulate_cuda():
            expected = with_gradients(conv2d(problem, ours, relu=True), tensors)
        with cnnkernels.emulate_cuda(check=True):
            checked = with_gradients(conv2d(problem, ours, relu=True), tensors)
    for a, b in zip(expected, checked, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_for_groups_of_one_channel_and_one_filter(backend):
    def chosen(groups, filters):
        x, w = torch.zeros(1, 8, 9, 9), torch.zeros(filters, 8 // groups, 3, 3)
        with BACKENDS[backend]():
            candidates = cnnkernels.algorithms("conv2d", x, w, groups=groups)
        return next(c.algorithm for c in candidates if "wgrad" in c.runs)

    assert chosen(8, 8) == "depthwise"
    assert "depthwise" not in {chosen(4, 8), chosen(8, 16), chosen(1, 8)}
    x, w = torch.zeros(1, 8, 9, 9), torch.zeros(8, 2, 3, 3)
    with BACKENDS[backend](), cnnkernels.algorithm("depthwise"):
        with pytest.raises(RuntimeError, match="one channel"):
            ours.conv2d(x, w, groups=4)


@pytest.mark.parametrize("problem", [*CPU_ALONE, "too_large"])
def test_cuda_leaves_the_rest_to_others(problem):
    shape, filters, kwargs = PROBLEMS.get(problem, ((1, 2, 33, 9), (32, 3), {}))
    x, w = torch.zeros(shape), torch.zeros(shape[1], 1, *filters)
    with cnnkernels.emulate_cuda():
        candidates = cnnkernels.algorithms("conv2d", x, w, groups=shape[1], **kwargs)
    (depthwise,) = (c for c in candidates if c.algorithm == "depthwise")
    assert not depthwise.runs and depthwise.unsupported


# ---------------------------------------------------------------- what it asks of a GPU

# Layers of MobileNet v2 and EfficientNet, of fewer channels: N, C, H, W; filter; stride.
LAYERS = {
    "first": ((1, 16, 112, 112), 3, 1),
    "halving": ((1, 16, 56, 56), 3, 2),
    "middle": ((2, 32, 28, 28), 3, 1),
    "deep": ((8, 96, 14, 14), 3, 1),
    "last": ((16, 96, 7, 7), 3, 1),
    "five": ((4, 48, 14, 14), 5, 2),
}


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("layer", LAYERS)
def test_traffic_is_at_most_a_fifth_above_the_least(layer, layout):
    """Of the sectors that warps ask for, before any cache, and the bytes of the tensors."""
    shape, size, stride = LAYERS[layer]
    x = LAYOUTS[layout](torch.randn(shape)).requires_grad_()
    w = torch.randn(shape[1], 1, size, size, requires_grad=True)
    with cnnkernels.profile() as profile, cnnkernels.algorithm("depthwise"):
        y = ours.conv2d(x, w, padding=size // 2, stride=stride, groups=shape[1])
        torch.autograd.grad(y, [x, w], torch.randn_like(y))
    least = 4 * (x.numel() + w.numel() + y.numel())
    kernels = {kernel.kernel.split("<")[0]: kernel for kernel in profile.kernels}
    assert {"conv2d_depthwise_fprop", "conv2d_depthwise_dgrad", "conv2d_depthwise_wgrad"} <= {
        *kernels
    }
    traffic = {name: kernel.sector_bytes / least for name, kernel in kernels.items()}
    traffic["conv2d_depthwise_wgrad"] += traffic.pop("conv2d_add_chunks")
    assert max(traffic.values()) <= 1.2, traffic
