"""The tiled convolutions, instance by instance: which kernel runs, and what it asks of a GPU."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_same_bits, integers
from test_conv2d import DTYPES, LAYOUTS, NAMES, grad_of_output, operands, with_gradients

import cnnkernels
import cnnkernels.functional as ours
from cnnkernels.profiling import KernelProfile, Profile

PASSES = {"fprop", "dgrad", "wgrad"}
CPP_NAMES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.float16: "cuda::__half",
    torch.bfloat16: "cuda::__nv_bfloat16",
}

# Rows and strides that kernels are compiled for (0: any), and problems that these take: input,
# filters, arguments. Outputs end within a tile of 8 x 32, filters within a group of 8.
INSTANCES = {
    (3, 1): ((1, 3, 9, 34), (9, 3, 3), dict(padding=1)),
    (3, 2): ((1, 2, 19, 67), (5, 3, 3), dict(stride=2, padding=(0, 2))),
    (5, 1): ((2, 1, 10, 34), (17, 5, 5), dict(padding=2)),
    (5, 2): ((1, 4, 20, 11), (3, 5, 5), dict(stride=2, padding=(4, 0))),
    (7, 1): ((1, 1, 13, 9), (8, 7, 7), dict(padding=(6, 3))),
    (7, 2): ((1, 3, 22, 70), (10, 7, 7), dict(stride=2, padding=3)),
    (0, 0): ((1, 4, 11, 37), (25, 2, 6), dict(stride=(2, 1), padding=(1, 3))),
}

# Instances are of a filter's rows, those of wgrad of its columns too.
OBLONG = {
    (3, 2): ((1, 2, 19, 67), (5, 3, 4), dict(stride=2, padding=(0, 2))),
    (5, 2): ((1, 4, 20, 11), (3, 5, 2), dict(stride=2, padding=(4, 0))),
    (7, 1): ((3, 1, 9, 70), (17, 7, 3), {}),
}

# More for the instance of any size.
ANY_SIZE = {
    "one_pixel": ((1, 1, 1, 1), (2, 1, 1), {}),  # of one filter, it would be depthwise
    "pointwise": ((2, 4, 9, 33), (33, 1, 1), {}),
    "pointwise_strided": ((1, 3, 18, 66), (4, 1, 1), dict(stride=2)),
    "stride_beyond_filter": ((1, 2, 9, 9), (2, 1, 1), dict(stride=(1, 2), padding=1)),
    "even": ((1, 1, 12, 40), (40, 6, 4), dict(stride=2, padding=(3, 1))),
    "padding_beyond_filter": ((1, 2, 3, 4), (3, 2, 3), dict(padding=(9, 12))),
    "padding_alone": ((1, 1, 1, 2), (2, 2, 2), dict(stride=2, padding=(3, 35))),
    "same_even": ((1, 2, 9, 33), (3, 4, 2), dict(padding="same")),
    "tall": ((1, 1, 70, 3), (2, 4, 1), dict(stride=(1, 2))),
    "many_filters": ((1, 1, 3, 4), (37, 2, 2), {}),
}


def profile_all_passes(tensors, grad_output, kwargs) -> tuple[list[torch.Tensor], Profile]:
    """Output and gradients, and what the kernels did."""
    with cnnkernels.profile() as profile:
        results = with_gradients(ours.conv2d, tensors, grad_output, kwargs)
    return results, profile


def kernel(profile: Profile, name: str) -> KernelProfile:
    (found,) = (kernel for kernel in profile.kernels if kernel.kernel.startswith(name))
    return found


def kernel_names(dtype: torch.dtype, instance: tuple[int, int], oblong: bool) -> set[str]:
    """Of the passes, and of the one that is left to `direct`."""
    T, size = CPP_NAMES[dtype], "{}, {}".format(*instance)
    sizes = {"dgrad": size, "wgrad": "0, 0" if oblong else size}
    gradients = {f"conv2d_tiled_{name}<{T}, GradOutput<{T}>, {sizes[name]}>" for name in sizes}
    bgrad = f"conv2d_direct_bgrad<{T}, GradOutput<{T}> >"
    fprop = f"conv2d_tiled_fprop<{T}, StoredOutput<{T}>, {size}>"
    return {fprop, *gradients, f"conv2d_add_chunks<{T}, false>", bgrad}


def check_exactly(problem, dtype, layout: Callable, instance: tuple[int, int]) -> None:
    """Sums of small integers are exact, whatever their order."""
    shape, filters, kwargs = problem
    tensors = operands(shape, filters, kwargs, dtype, "cpu", integers)
    grad_output = grad_of_output(F.conv2d, tensors, kwargs, integers)
    expected = with_gradients(F.conv2d, [t.double() for t in tensors], grad_output.double(), kwargs)
    tensors = [*map(layout, tensors[:2]), tensors[2]]
    results, profile = profile_all_passes(tensors, layout(grad_output), kwargs)
    assert {kernel.kernel for kernel in profile.kernels} == kernel_names(
        dtype, instance, oblong=filters[1] != filters[2]
    )
    for name, result, reference in zip(NAMES, results, expected, strict=True):
        assert torch.equal(result, reference.to(dtype)), name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("instance", INSTANCES, ids=str)
def test_every_instance_runs_and_is_exact(instance, dtype, layout):
    """The table of what must exist: algorithm x pass x dtype x layout."""
    check_exactly(INSTANCES[instance], dtype, LAYOUTS[layout], instance)


@pytest.mark.parametrize("instance", OBLONG, ids=str)
def test_oblong_filters_are_exact(instance):
    check_exactly(OBLONG[instance], torch.float32, LAYOUTS["contiguous"], instance)


@pytest.mark.parametrize("problem", ANY_SIZE)
def test_any_size_is_exact(problem):
    check_exactly(ANY_SIZE[problem], torch.float32, LAYOUTS["contiguous"], (0, 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [(7, 7), (3, 5), (2, 6)], ids=str)
def test_wgrad_of_many_filters_is_exact(size, dtype):
    """More than the warps of a block have, and several chunks of outputs."""
    kwargs = dict(padding=2)
    tensors = operands((3, 4, 18, 9), (37, *size), kwargs, dtype, "cpu", integers)
    grad_output = grad_of_output(F.conv2d, tensors, kwargs, integers)
    with cnnkernels.emulate_cuda():
        results = with_gradients(ours.conv2d, tensors, grad_output, kwargs)
    expected = with_gradients(F.conv2d, tensors, grad_output, kwargs)
    for name, result, reference in zip(NAMES, results, expected, strict=True):
        assert torch.equal(result, reference), name


NOT_TILED = {
    "groups": ((1, 4, 8, 8), (4, 3, 3), dict(groups=2)),
    "five_channels": ((1, 5, 8, 8), (4, 3, 3), {}),
    "eight_rows": ((1, 1, 9, 9), (2, 8, 3), {}),
    "eight_columns": ((1, 1, 9, 9), (2, 3, 8), {}),
    "stride_three": ((1, 1, 9, 9), (2, 3, 3), dict(stride=(1, 3))),
    "dilated": ((1, 1, 9, 9), (2, 3, 3), dict(dilation=(1, 2))),
}


@pytest.mark.parametrize("problem", NOT_TILED)
def test_the_rest_is_left_to_others(problem):
    shape, filters, kwargs = NOT_TILED[problem]
    tensors = operands(shape, filters, kwargs, torch.float32, "cpu", integers)
    grad_output = grad_of_output(F.conv2d, tensors, kwargs, integers)
    results, profile = profile_all_passes(tensors, grad_output, kwargs)
    assert not any("tiled" in kernel.kernel for kernel in profile.kernels)
    expected = with_gradients(F.conv2d, tensors, grad_output, kwargs)
    for name, result, reference in zip(NAMES, results, expected, strict=True):
        assert torch.equal(result, reference), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("instance", INSTANCES, ids=str)
def test_no_alarm(instance, dtype):
    """No race, no access out of bounds; no block reads or writes what another writes."""
    shape, filters, kwargs = INSTANCES[instance]
    tensors = operands(shape, filters, kwargs, dtype, "cpu")
    grad_output = grad_of_output(F.conv2d, tensors, kwargs)
    with cnnkernels.emulate_cuda():
        expected = with_gradients(ours.conv2d_relu, tensors, grad_output, kwargs)
    with cnnkernels.emulate_cuda(check=True):
        checked = with_gradients(ours.conv2d_relu, tensors, grad_output, kwargs)
    for name, a, b in zip(NAMES, expected, checked, strict=True):
        assert torch.equal(a, b), name  # the twin adds in the same order


@pytest.mark.parametrize("instance", INSTANCES, ids=str)
def test_same_bits_every_run(instance):
    shape, filters, kwargs = INSTANCES[instance]
    tensors = operands((5, *shape[1:]), filters, kwargs, torch.float32, "cpu")
    grad_output = grad_of_output(F.conv2d, tensors, kwargs)

    def compute():
        with cnnkernels.emulate_cuda():
            return with_gradients(ours.conv2d, tensors, grad_output, kwargs)

    assert_same_bits(compute)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("instance", INSTANCES, ids=str)
def test_infinite_pixels_stay_where_they_belong(instance, value):
    """Outputs in vain, beyond the last row and column, must not reach the gradients."""
    shape, filters, kwargs = INSTANCES[instance]
    tensors = operands(shape, filters, kwargs, torch.float32, "cpu")
    tensors[0][..., -3:, -3:] = value
    grad_output = grad_of_output(F.conv2d, tensors, kwargs)
    expected = with_gradients(F.conv2d, tensors, grad_output, kwargs)
    with cnnkernels.emulate_cuda():
        results = with_gradients(ours.conv2d, tensors, grad_output, kwargs)
    for name, result, reference in zip(NAMES, results, expected, strict=True):
        assert torch.equal(result.isfinite(), reference.isfinite()), name
        assert torch.equal(result.isnan(), reference.isnan()), name


# ---------------------------------------------------------------- what they ask of a GPU

# Two images of 28 x 28, and a part of one of 224 x 224.
LAYERS = {
    "model_a_first": ((2, 1, 28, 28), (16, 5, 5), dict(padding=2)),
    "vgg_first": ((1, 3, 16, 64), (64, 3, 3), dict(padding=1)),
}


@pytest.fixture(scope="module", params=LAYERS)
def layer(request: pytest.FixtureRequest) -> Profile:
    shape, filters, kwargs = LAYERS[request.param]
    tensors = operands(shape, filters, kwargs, torch.float32, "cpu")
    grad_output = grad_of_output(F.conv2d, tensors, kwargs)
    return profile_all_passes(tensors, grad_output, kwargs)[1]


@pytest.mark.parametrize("name", PASSES)
def test_no_bank_conflicts(layer, name):
    found = kernel(layer, f"conv2d_tiled_{name}<float")
    for traffic in (found.shared_load, found.shared_store):
        assert traffic.units == traffic.ideal > 0


def test_a_tile_of_fprop_asks_for_what_a_hand_counts():
    """8 filters of 3x3 on 8 x W pixels: a block of a warp for every 32 columns."""

    def count(W: int) -> KernelProfile:
        with cnnkernels.profile() as profile:
            ours.conv2d(torch.randn(1, 1, 8, W), torch.randn(8, 1, 3, 3), padding=1)
        return kernel(profile, "conv2d_tiled_fprop<float, StoredOutput<float>, 3, 1>")

    def asked_for(counts: Callable[[KernelProfile], int]) -> int:
        return counts(three) - counts(two)  # by the tile in the middle

    two, three = count(64), count(96)
    assert asked_for(lambda k: k.threads) == 32

    # 8 rows of 32 pixels, each a request of 4 sectors; beside them a pixel at either side, 2 more
    # sectors. The rows above and below are padding.
    pixel_requests, pixel_sectors = 8 + 8, 8 * 4 + 8 * 2
    # 72 taps are 9 sectors. A request takes 8 taps of 4 filters, which lie in 5 sectors; another
    # the other 4 filters. The ninth tap of each filter lies by itself.
    tap_requests, tap_sectors = 2 + 2, 5 + 5 + 4 + 4
    assert asked_for(lambda k: k.global_load.requests) == pixel_requests + tap_requests
    assert asked_for(lambda k: k.global_load.units) == pixel_sectors + tap_sectors
    assert asked_for(lambda k: k.global_load.bytes) == 4 * (8 * 34 + 72)
    # 8 rows of each filter, in 4 sectors each.
    assert asked_for(lambda k: k.global_store.requests) == 8 * 8
    assert asked_for(lambda k: k.global_store.units) == 8 * 8 * 4

    # For each of 3 x 3 taps 8 pixels a lane, and 8 filters in 2 requests of 16 bytes. (nvcc loads a
    # pixel once that 3 taps want: test_sass.py.)
    assert asked_for(lambda k: k.shared_load.requests) == 3 * 3 * (8 + 2)
    assert asked_for(lambda k: k.fma) == 32 * 3 * 3 * 64


@pytest.mark.parametrize("layer", ["vgg_first"], indirect=True)
def test_aligned_rows_are_whole_sectors(layer):
    fprop = kernel(layer, "conv2d_tiled_fprop<float").global_store
    assert fprop.units == 4 * fprop.requests
    grad_input = kernel(layer, "conv2d_tiled_dgrad<float").global_store
    assert grad_input.units == 4 * grad_input.requests
