"""The implicit GEMM, tile by tile: which kernel runs, and what it asks of a GPU."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_accurate, assert_same_bits, integers
from test_conv2d import LAYOUTS, NAMES, grad_of_output, operands, sliced, with_gradients
from test_conv2d_tiled import kernel

import cnnkernels
import cnnkernels.functional as ours
from cnnkernels.profiling import KernelProfile, Profile

PASSES = {"fprop", "dgrad", "wgrad"}
CPP_NAMES = {torch.float32: "float", torch.float64: "double"}

# Input, filters, arguments. Awkward on purpose: ones, primes, sizes beside those of the tiles and
# of the stages of 8, depths of several tables of 128 and several parts of 384.
PROBLEMS = {
    "one": ((1, 1, 1, 1), (1, 1, 1), {}),
    "primes": ((3, 5, 13, 11), (7, 3, 5), {}),
    "tiles_exactly": ((1, 16, 8, 16), (32, 3, 3), dict(padding=1)),
    "one_more": ((1, 17, 3, 43), (33, 1, 1), {}),
    "one_less": ((1, 15, 1, 127), (31, 1, 1), {}),
    "one_tap_of_many_channels": ((1, 641, 3, 5), (9, 1, 1), {}),
    "parts_and_tables": ((1, 150, 6, 7), (66, 3, 3), dict(padding=1)),
    "asymmetric": ((2, 3, 9, 8), (4, 4, 2), dict(padding="same")),
    "padding_alone": ((1, 2, 2, 3), (3, 2, 2), dict(padding=(5, 6), stride=3)),
    "stride_two": ((2, 6, 15, 14), (10, 3, 3), dict(stride=2, padding=1)),
    "stride_three": ((1, 9, 20, 17), (8, 5, 4), dict(stride=(3, 2), padding=(2, 1))),
    "stride_beyond_filter": ((2, 3, 17, 13), (5, 2, 1), dict(stride=(4, 3), padding=1)),
    "stride_and_dilation": ((1, 4, 23, 22), (6, 3, 4), dict(stride=(2, 4), dilation=(4, 2))),
    "stride_and_dilation_without_divisor": (
        (1, 4, 23, 22),
        (6, 3, 3),
        dict(stride=(2, 3), dilation=(3, 2), padding=4),
    ),
    "dilated": ((1, 5, 19, 17), (6, 3, 3), dict(dilation=(2, 5), padding=(2, 5))),
    "groups": ((2, 12, 9, 8), (20, 3, 3), dict(groups=4, padding=1)),
    "groups_of_one": ((1, 7, 6, 5), (14, 3, 3), dict(groups=7, padding=1)),
    "largest_filter": ((1, 2, 17, 16), (3, 15, 15), dict(padding=7)),
    "many_outputs": ((3, 4, 23, 19), (6, 3, 3), dict(padding=1)),
}


def by(algorithm: str, function: Callable) -> Callable:
    """The function, its convolutions forced to that algorithm, emulated."""

    def forced(*args, **kwargs):
        with cnnkernels.emulate_cuda(tf32=True), cnnkernels.algorithm(algorithm):
            return function(*args, **kwargs)

    return forced


by_implicit_gemm = partial(by, "implicit_gemm")


def check_exactly(
    problem, dtype, layout=lambda t: t, relu=False, algorithm="implicit_gemm"
) -> None:
    """Sums of small integers are exact, whatever their order."""
    shape, filters, kwargs = problem
    function, reference = (
        (ours.conv2d_relu, lambda *args, **kw: F.relu(F.conv2d(*args, **kw)))
        if relu
        else (ours.conv2d, F.conv2d)
    )
    tensors = operands(shape, filters, kwargs, dtype, "cpu", integers)
    grad_output = grad_of_output(reference, tensors, kwargs, integers)
    doubles = [t.double() for t in tensors]
    expected = with_gradients(reference, doubles, grad_output.double(), kwargs)
    tensors = [*map(layout, tensors[:2]), tensors[2]]
    results = by(algorithm, with_gradients)(function, tensors, layout(grad_output), kwargs)
    for name, result, exact in zip(NAMES, results, expected, strict=True):
        assert torch.equal(result, exact.to(dtype)), name


@pytest.mark.parametrize("relu", [False, True], ids=["plain", "relu"])
@pytest.mark.parametrize("dtype", CPP_NAMES, ids=str)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_every_problem_is_exact(problem, dtype, relu):
    check_exactly(PROBLEMS[problem], dtype, relu=relu)


@pytest.mark.parametrize("layout", ["channels_last", "sliced", "transposed"])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_every_layout_is_exact(problem, layout):
    check_exactly(PROBLEMS[problem], torch.float32, LAYOUTS[layout], relu=True)


@pytest.mark.parametrize("relu", [False, True], ids=["plain", "relu"])
def test_expanded_tensors_are_exact(relu):
    image = integers(1, 6, 9, 8, dtype=torch.float32).expand(3, -1, -1, -1)
    weight = integers(1, 6, 3, 3, dtype=torch.float32).expand(10, -1, -1, -1)
    function = ours.conv2d_relu if relu else ours.conv2d
    output = by_implicit_gemm(function)(image, weight)
    expected = F.conv2d(image, weight)
    assert torch.equal(output, expected.relu() if relu else expected)


def kernel_names(dtype, tile, packs: bool, gradient: str = "Plain") -> set[str]:
    T, size = CPP_NAMES[dtype], "{}, {}, {}".format(*tile, str(packs).lower())
    gradients = {
        f"conv2d_implicit_gemm_{name}<{T}, {gradient}<{T}>, {size}>" for name in ("dgrad", "wgrad")
    }
    return {f"conv2d_implicit_gemm_fprop<{T}, {size}>", *gradients}


# What each tile is made for. Channels and filters alike, so that all passes have it.
TILES = {
    (128, 32): ((2, 12, 9, 17), (20, 3, 3), dict(padding=1)),
    (64, 64): ((1, 44, 9, 8), (36, 3, 3), dict(padding=1)),
    (128, 128): ((1, 132, 91, 91), (260, 1, 1), dict(padding=1)),
}


def profile_all_passes(
    tensors, grad_output, kwargs, function=ours.conv2d, algorithm="implicit_gemm"
) -> Profile:
    with cnnkernels.profile() as profile:
        by(algorithm, with_gradients)(function, tensors, grad_output, kwargs)
    return profile


@pytest.mark.parametrize("relu", [False, True], ids=["plain", "relu"])
@pytest.mark.parametrize("packs", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("tile", [(128, 32), (64, 64)], ids=str)
def test_every_instance_runs(tile, packs, relu):
    shape, filters, kwargs = TILES[tile]
    tensors = operands(shape, filters, kwargs, torch.float32, "cpu")
    grad_output = grad_of_output(F.conv2d, tensors, kwargs)
    layout = LAYOUTS["channels_last" if packs else "contiguous"]
    tensors = [*map(layout, tensors[:2]), tensors[2]]
    function, gradient = (ours.conv2d_relu, "Masked") if relu else (ours.conv2d, "Plain")
    profile = profile_all_passes(tensors, layout(grad_output), kwargs, function)
    names = {kernel.kernel for kernel in profile.kernels}
    assert names >= kernel_names(torch.float32, tile, packs, gradient)
    check_exactly(TILES[tile], torch.float32, layout, relu)


@pytest.mark.parametrize("relu", [False, True], ids=["plain", "relu"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_largest_tile_is_exact(layout, relu):
    check_exactly(TILES[128, 128], torch.float32, LAYOUTS[layout], relu)


def test_float64_has_one_tile():
    shape, filters, kwargs = TILES[128, 32]
    tensors = operands(shape, filters, kwargs, torch.float64, "cpu")
    grad_output = grad_of_output(F.conv2d, tensors, kwargs)
    names = {kernel.kernel for kernel in profile_all_passes(tensors, grad_output, kwargs).kernels}
    assert names >= kernel_names(torch.float64, (64, 64), False)


# Channels that are no multiple of 4, an address that is none of 16 bytes, or other strides.
NO_PACKS = {
    "channels": lambda t: t[:, :-1].contiguous(memory_format=torch.channels_last),
    "address": lambda t: (
        torch.cat([t.flatten()[:1], t.permute(0, 2, 3, 1).flatten()])[1:]
        .view(t.permute(0, 2, 3, 1).shape)
        .permute(0, 3, 1, 2)
    ),
    "strides": lambda t: sliced(LAYOUTS["channels_last"](t)),
}


def kernels_without_packs(why: str, dtype: torch.dtype, algorithm: str) -> list[str]:
    """Those that run, of 16 channels and 24 filters that lie so; the output is exact."""
    input, weight = (
        NO_PACKS[why](integers(*size, dtype=dtype)) for size in ((2, 16, 9, 9), (24, 16, 3, 3))
    )
    with cnnkernels.profile() as profile, cnnkernels.algorithm(algorithm):
        output = ours.conv2d(input, weight)
    assert torch.equal(output, F.conv2d(input, weight))
    return [k.kernel for k in profile.kernels]


@pytest.mark.parametrize("why", NO_PACKS)
def test_what_is_not_aligned_is_loaded_element_by_element(why):
    kernels = kernels_without_packs(why, torch.float32, "implicit_gemm")
    assert kernels == ["conv2d_implicit_gemm_fprop<float, 128, 32, false>"]


@pytest.mark.parametrize("N", [0, 1])
def test_empty_batch_and_no_channels(N):
    tensors = operands((N, 0, 8, 8), (9, 3, 3), {}, torch.float32, "cpu", integers)
    output = by_implicit_gemm(ours.conv2d)(*tensors)
    assert torch.equal(output, tensors[2].view(1, 9, 1, 1).expand(N, 9, 6, 6))
    tensors = operands((0, 3, 8, 8), (9, 3, 3), {}, torch.float32, "cpu", integers)
    grad_output = grad_of_output(F.conv2d, tensors, {})
    results = by_implicit_gemm(with_gradients)(ours.conv2d, tensors, grad_output, {})
    assert torch.equal(results[2], torch.zeros(9, 3, 3, 3))


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("problem", ["tiles_exactly", "primes", "stride_two", "dilated", "groups"])
def test_infinite_pixels_stay_where_they_belong(problem, layout, value):
    """What a tile computes in vain, beyond its last row, column and depth, reaches no result."""
    shape, filters, kwargs = PROBLEMS[problem]
    tensors = operands(shape, filters, kwargs, torch.float32, "cpu")
    tensors[0][..., -3:, -3:] = value
    grad_output = grad_of_output(F.conv2d, tensors, kwargs)
    expected = with_gradients(F.conv2d, tensors, grad_output, kwargs)
    tensors = [LAYOUTS[layout](t) if t.dim() == 4 else t for t in tensors]
    results = by_implicit_gemm(with_gradients)(ours.conv2d, tensors, grad_output, kwargs)
    for name, result, reference in zip(NAMES, results, expected, strict=True):
        assert torch.equal(result.isfinite(), reference.isfinite()), name
        assert torch.equal(result.isnan(), reference.isnan()), name


@pytest.mark.parametrize("problem", ["groups", "stride_three", "parts_and_tables", "many_outputs"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_no_alarm(problem, layout):
    """No race, no access out of bounds; no block reads or writes what another writes."""
    shape, filters, kwargs = PROBLEMS[problem]
    tensors = operands(shape, filters, kwargs, torch.float32, "cpu")
    grad_output = LAYOUTS[layout](grad_of_output(F.conv2d, tensors, kwargs))
    tensors = [LAYOUTS[layout](t) if t.dim() == 4 else t for t in tensors]
    expected = by_implicit_gemm(with_gradients)(ours.conv2d_relu, tensors, grad_output, kwargs)
    with cnnkernels.emulate_cuda(check=True), cnnkernels.algorithm("implicit_gemm"):
        checked = with_gradients(ours.conv2d_relu, tensors, grad_output, kwargs)
    for name, a, b in zip(NAMES, expected, checked, strict=True):
        assert torch.equal(a, b), name  # the twin adds in the same order


@pytest.mark.parametrize("problem", ["many_outputs", "parts_and_tables"])
def test_same_bits_every_run(problem):
    shape, filters, kwargs = PROBLEMS[problem]
    tensors = operands(shape, filters, kwargs, torch.float32, "cpu")
    grad_output = grad_of_output(F.conv2d, tensors, kwargs)
    run = by_implicit_gemm(with_gradients)
    assert_same_bits(lambda: run(ours.conv2d, tensors, grad_output, kwargs))


@pytest.mark.parametrize("problem", ["parts_and_tables", "one_tap_of_many_channels"])
def test_long_sums_follow_the_accuracy_rule(problem):
    """torch adds some of these in shorter chains than it has channels; so do the parts."""
    shape, filters, kwargs = PROBLEMS[problem]
    tensors = operands(shape, filters, kwargs, torch.float32, "cpu")
    grad_output = grad_of_output(F.conv2d, tensors, kwargs)
    doubles = [t.double() for t in tensors]
    references = with_gradients(F.conv2d, doubles, grad_output.double(), kwargs)
    torchs = with_gradients(F.conv2d, tensors, grad_output, kwargs)
    results = by_implicit_gemm(with_gradients)(ours.conv2d, tensors, grad_output, kwargs)
    for name, result, own, reference in zip(NAMES, results, torchs, references, strict=True):
        assert_accurate(result, own, reference, name)


# ---------------------------------------------------------------- chunks of wgrad


def wgrad_kernels(N: int) -> tuple[Profile, torch.Tensor, torch.Tensor]:
    """Of N images of 16 x 16 with 8 filters of 3x3 on 4 channels."""
    tensors = operands((N, 4, 16, 16), (8, 3, 3), dict(padding=1), torch.float32, "cpu", integers)
    grad_output = grad_of_output(F.conv2d, tensors, dict(padding=1), integers)
    arguments = (tensors, grad_output, dict(padding=1))
    with cnnkernels.profile() as profile, cnnkernels.algorithm("implicit_gemm"):
        weight_grad = with_gradients(ours.conv2d, *arguments)[2]
    return profile, weight_grad, with_gradients(F.conv2d, *arguments)[2]


def test_chunks_are_added():
    """A tile of 36 x 8 leaves a GPU room for as many chunks as there are 256 outputs."""
    for N in (1, 2, 3):
        profile, result, expected = wgrad_kernels(N)
        wgrad = kernel(profile, "conv2d_implicit_gemm_wgrad<float")
        assert wgrad.blocks == N
        assert torch.equal(result, expected)
        sums = [k for k in profile.kernels if "add_chunks" in k.kernel]
        assert len(sums) == (N > 1)
        for added in sums:  # each chunk's sums once, and the weights
            assert added.global_load.bytes == 4 * N * 8 * 36
            assert added.global_store.bytes == 4 * 8 * 36


# ---------------------------------------------------------------- what they ask of a GPU


def fprop_profile(C: int, K: int, layout: str = "contiguous") -> KernelProfile:
    """3x3 filters on 8 x 16 pixels."""
    tensors = torch.randn(1, C, 8, 16), torch.randn(K, C, 3, 3)
    with cnnkernels.profile() as profile, cnnkernels.algorithm("implicit_gemm"):
        ours.conv2d(*map(LAYOUTS[layout], tensors), padding=1)
    return kernel(profile, "conv2d_implicit_gemm_fprop<float")


def difference(count: Callable[[KernelProfile], int], *profiles: KernelProfile) -> int:
    more, less = profiles
    return count(more) - count(less)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("K", [32, 64])
def test_the_hot_loop_has_no_bank_conflicts(K, layout):
    """Depths 144 and 252 differ in 7 turns of the loop alone: both fill 3 halves of the table."""
    profiles = fprop_profile(28, K, layout), fprop_profile(16, K, layout)
    for traffic in ("shared_load", "shared_store"):
        units = difference(lambda k: getattr(k, traffic).units, *profiles)  # noqa: B023
        assert units == difference(lambda k: getattr(k, traffic).ideal, *profiles) > 0  # noqa: B023


def test_the_largest_tile_has_no_bank_conflicts():
    """128 pixels, each an image, have remainder 0 by the stride; none has another. 73 channels make
    no packs."""

    def dgrad(K: int) -> KernelProfile:
        tensors = torch.randn(128, 73, 1, 1), torch.randn(K, 73, 1, 1), torch.randn(K)
        grad_output = torch.randn(128, K, 1, 1)
        profile = profile_all_passes(tensors, grad_output, dict(stride=14))
        return kernel(profile, "conv2d_implicit_gemm_dgrad<float, Plain<float>, 128, 128, false>")

    profiles = dgrad(40), dgrad(24)
    for traffic in ("shared_load", "shared_store"):
        units = difference(lambda k: getattr(k, traffic).units, *profiles)  # noqa: B023
        assert units == difference(lambda k: getattr(k, traffic).ideal, *profiles) > 0  # noqa: B023
    # Two stages more, of 8 warps: 128 x 8 elements of either side, which are stored 32 at once.
    assert difference(lambda k: k.shared_store.requests, *profiles) == 2 * 8 * (4 + 4)
    assert difference(lambda k: k.fma, *profiles) == 2 * 8 * 128 * 128


@pytest.mark.parametrize("name", PASSES)
def test_global_memory_is_asked_for_no_more_than_the_tiles_want(name):
    """Model A's second layer: a tile's rows and columns are loaded once for each depth."""
    shape, filters, kwargs = (2, 16, 14, 14), (32, 5, 5), dict(padding=2)
    tensors = operands(shape, filters, kwargs, torch.float32, "cpu")
    grad_output = grad_of_output(F.conv2d, tensors, kwargs)
    found = kernel(
        profile_all_passes(tensors, grad_output, kwargs), f"conv2d_implicit_gemm_{name}<float"
    )
    rows, columns, depth = {
        "fprop": (2 * 14 * 14, 32, 16 * 25),
        "dgrad": (2 * 14 * 14, 16, 32 * 25),
        "wgrad": (16 * 25, 32, 2 * 14 * 14),
    }[name]
    tiles = -(-rows // 128)
    # Rows beyond the last repeat another; padding is not loaded.
    assert found.global_load.bytes <= 4 * tiles * (128 + 32) * depth
    assert found.fma >= rows * columns * depth
    # Warps load 32 pixels in a row, 4 sectors and those at its ends, or 8 depths of 4 filters. 32
    # taps of wgrad lie in 7 or 8 rows of 5.
    sectors = {"fprop": 5, "dgrad": 5, "wgrad": 8}[name]
    assert found.global_load.units <= sectors * found.global_load.requests


def test_packs_are_whole_sectors():
    """8 channels of a pixel, or of a tap of a filter, are one sector: 16 of a request."""
    fprop = fprop_profile(32, 32, "channels_last")
    assert fprop.kernel == "conv2d_implicit_gemm_fprop<float, 128, 32, true>"
    assert fprop.global_load.bytes == 32 * fprop.global_load.units
    assert fprop.global_store.units == 4 * fprop.global_store.requests


def test_unsupported_and_unsuited_problems_are_left_to_others():
    def candidate(shape, filters, dtype=torch.float32, **kwargs):
        input = torch.zeros(1, dtype=dtype).expand(shape)
        weight = torch.zeros(1, dtype=dtype).expand(filters)
        with cnnkernels.emulate_cuda():
            found = cnnkernels.algorithms("conv2d", input, weight, **kwargs)
        return next(c for c in found if c.algorithm == "implicit_gemm")

    usual = (2, 16, 14, 14), (32, 16, 5, 5)
    assert candidate(*usual).unsupported is candidate(*usual).unsuited is None
    assert candidate(*usual, dtype=torch.float16).unsupported == "16-bit types"
    large = candidate((1, 16, 30, 30), (32, 16, 16, 1))
    assert large.unsupported == "filters larger than 15x15"
    huge = candidate((1, 16, 2**16, 2**16), (32, 16, 1, 1))
    assert huge.unsupported == "more than 2^31 pixels or taps"
    strided = candidate((1, 16, 400, 400), (32, 16, 1, 1), stride=300)
    assert strided.unsupported == "strides larger than a grid"

    depthwise = candidate((2, 16, 14, 14), (16, 1, 3, 3), groups=16)
    assert depthwise.unsuited == "fewer than 8 filters a group"
    shallow = candidate((2, 8, 14, 14), (32, 8, 1, 1))
    assert shallow.unsuited == "filters of fewer than 16 taps"
    assert candidate((1, 16, 5, 5), (32, 16, 1, 1)).unsuited == "fewer than 32 outputs a filter"


def test_elements_too_far_apart_are_left_to_others():
    input = torch.empty(1).as_strided((1, 16, 8, 8), (0, 0, 0, 0))
    weight = torch.zeros(32, 16, 3, 3)
    far = torch.empty(0).set_(torch.UntypedStorage(0), 0, (1, 16, 8, 8), (0, 2**28, 8, 1))
    with cnnkernels.emulate_cuda():
        near_candidates = cnnkernels.algorithms("conv2d", input, weight)
        far_candidates = cnnkernels.algorithms("conv2d", far, weight)
    reasons = {c.algorithm: c.unsupported for c in far_candidates}
    assert reasons["implicit_gemm"] == "elements too far apart for offsets of 32 bits"
    assert {c.algorithm: c.unsupported for c in near_candidates}["implicit_gemm"] is None
