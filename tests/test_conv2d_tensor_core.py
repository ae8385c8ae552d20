"""The implicit GEMM on tensor cores: which kernel runs, how exact it is, what it asks of a GPU."""

from functools import partial

import pytest
import test_conv2d_implicit_gemm as implicit_gemm
import torch
import torch.nn.functional as F
from accuracy import assert_same_bits, error_bound, integers, relative_error
from test_conv2d import LAYOUTS, NAMES, grad_of_output, operands, with_gradients
from test_conv2d_implicit_gemm import (
    NO_PACKS,
    PROBLEMS,
    by,
    check_exactly,
    difference,
    kernels_without_packs,
)
from test_conv2d_tiled import kernel
from torch._subclasses.fake_tensor import FakeTensorMode

import cnnkernels
import cnnkernels.functional as ours
from cnnkernels.functional import _conv_kernels
from cnnkernels.profiling import KernelProfile

PASSES = ["fprop", "dgrad", "wgrad"]
CPP_NAMES = {
    torch.float32: "float",
    torch.float16: "cuda::__half",
    torch.bfloat16: "cuda::__nv_bfloat16",
}
DTYPES = list(CPP_NAMES)

# Channels and filters by 8, as packs want them, in groups too; pixels, taps and outputs beside the
# sizes of tiles, stages and tables.
PACKED = {
    "one_pack": ((1, 8, 1, 1), (8, 1, 1), {}),
    "tiles_exactly": ((1, 64, 8, 8), (64, 1, 1), {}),
    "one_more": ((1, 72, 5, 13), (72, 1, 1), {}),
    "one_less": ((1, 56, 7, 9), (56, 1, 1), {}),
    "taps": ((2, 16, 9, 7), (24, 3, 3), dict(padding=1)),
    "tables": ((1, 152, 4, 5), (8, 3, 3), dict(padding=1)),
    "strided": ((2, 16, 13, 11), (8, 3, 3), dict(stride=2, padding=1)),
    "dilated": ((1, 8, 13, 12), (16, 3, 2), dict(dilation=(2, 3), stride=(2, 1), padding=2)),
    "groups": ((2, 32, 7, 8), (16, 3, 3), dict(groups=2, padding=1)),
    "many_outputs": ((3, 8, 23, 19), (8, 3, 3), dict(padding=1)),
}


@pytest.mark.parametrize("relu", [False, True], ids=["plain", "relu"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("problem", PACKED)
def test_packs_are_exact(problem, dtype, layout, relu):
    check_exactly(PACKED[problem], dtype, LAYOUTS[layout], relu, "tensor_core")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_every_problem_is_exact(problem, dtype):
    check_exactly(PROBLEMS[problem], dtype, relu=True, algorithm="tensor_core")


@pytest.mark.parametrize("layout", ["channels_last", "sliced", "transposed"])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_every_layout_is_exact(problem, layout):
    check_exactly(
        PROBLEMS[problem], torch.float16, LAYOUTS[layout], relu=True, algorithm="tensor_core"
    )


# ---------------------------------------------------------------- how exact it is


def to_tf32(tensor: torch.Tensor) -> torch.Tensor:
    """Rounded to 10 digits behind the point, ties away from zero."""
    return ((tensor.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("problem", PACKED)
def test_follows_the_accuracy_rule(problem, layout, dtype):
    """Of float32 the operands are rounded to tf32 first, by the kernel as by the reference."""
    shape, filters, kwargs = PACKED[problem]
    tensors = operands(shape, filters, kwargs, dtype, "cpu")
    grad_output = grad_of_output(F.conv2d, tensors, kwargs)
    rounded = [*tensors, grad_output]
    if dtype == torch.float32:
        rounded = [to_tf32(tensors[0]), to_tf32(tensors[1]), tensors[2], to_tf32(grad_output)]
    doubles = [t.double() for t in rounded]
    references = with_gradients(F.conv2d, doubles[:3], doubles[3], kwargs)
    torchs = with_gradients(F.conv2d, rounded[:3], rounded[3], kwargs)
    tensors = [*map(LAYOUTS[layout], tensors[:2]), tensors[2]]
    results = by("tensor_core", with_gradients)(
        ours.conv2d, tensors, LAYOUTS[layout](grad_output), kwargs
    )
    for name, result, own, exact in list(zip(NAMES, results, torchs, references, strict=True))[:3]:
        assert relative_error(result, exact) <= error_bound(own, exact), name


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("problem", ["taps", "strided", "groups"])
def test_infinite_pixels_stay_where_they_belong(problem, layout, dtype, value):
    """What a tile computes in vain, beyond its last row, column and depth, reaches no result."""
    shape, filters, kwargs = PACKED[problem]
    tensors = operands(shape, filters, kwargs, dtype, "cpu")
    tensors[0][..., -3:, -3:] = value
    grad_output = grad_of_output(F.conv2d, tensors, kwargs)
    expected = with_gradients(F.conv2d, tensors, grad_output, kwargs)
    tensors = [LAYOUTS[layout](t) if t.dim() == 4 else t for t in tensors]
    grad_output = LAYOUTS[layout](grad_output)
    results = by("tensor_core", with_gradients)(ours.conv2d, tensors, grad_output, kwargs)
    for name, result, reference in zip(NAMES, results, expected, strict=True):
        assert torch.equal(result.isfinite(), reference.isfinite()), name
        assert torch.equal(result.isnan(), reference.isnan()), name


@pytest.mark.parametrize("N", [0, 1])
def test_empty_batch_and_no_channels(N):
    tensors = operands((N, 0, 8, 8), (9, 3, 3), {}, torch.float16, "cpu", integers)
    output = by("tensor_core", ours.conv2d)(*tensors)
    assert torch.equal(output, tensors[2].view(1, 9, 1, 1).expand(N, 9, 6, 6))
    tensors = operands((0, 3, 8, 8), (9, 3, 3), {}, torch.float16, "cpu", integers)
    grad_output = grad_of_output(F.conv2d, tensors, {})
    results = by("tensor_core", with_gradients)(ours.conv2d, tensors, grad_output, {})
    assert torch.equal(results[2], torch.zeros(9, 3, 3, 3, dtype=torch.float16))


# ---------------------------------------------------------------- when tf32 is allowed


def reason(input: torch.Tensor, weight: torch.Tensor) -> str | None:
    found = cnnkernels.algorithms("conv2d", input, weight)
    return next(c.unsupported for c in found if c.algorithm == "tensor_core")


def test_float32_takes_tensor_cores_only_where_tf32_is_allowed():
    tensors = torch.zeros(1, 8, 8, 8), torch.zeros(8, 8, 3, 3)
    with cnnkernels.emulate_cuda():
        assert reason(*tensors) == "float32, unless TF32 is allowed"
        assert reason(*(t.half() for t in tensors)) is None
        assert reason(*(t.double() for t in tensors)) == "float64"
        with cnnkernels.emulate_cuda(tf32=True):
            assert reason(*tensors) is None
        assert reason(*tensors) is not None


def test_a_backward_pass_keeps_its_forwards_tf32():
    x, weight = torch.randn(1, 16, 9, 9, requires_grad=True), torch.randn(16, 16, 3, 3)
    with cnnkernels.emulate_cuda(tf32=True):
        output = ours.conv2d(x, weight)
    with cnnkernels.profile() as profile:
        output.sum().backward()
    (dgrad,) = profile.kernels
    assert dgrad.kernel.startswith("conv2d_tensor_core_dgrad<float")


def test_a_compiled_function_keeps_tf32():
    compiled = torch.compile(ours.conv2d, backend="aot_eager", fullgraph=True)
    x, weight = torch.randn(1, 16, 9, 9), torch.randn(16, 16, 3, 3)
    ieee = by_emulator(compiled, tf32=False)(x, weight)
    tf32 = by_emulator(compiled, tf32=True)(x, weight)
    exact = F.conv2d(x.double(), weight.double())
    assert relative_error(ieee, exact) < 1e-6 < 1e-4 < relative_error(tf32, exact)


def by_emulator(function, tf32: bool):
    def emulated(*args):
        with cnnkernels.emulate_cuda(tf32=tf32):
            return function(*args)

    return emulated


@pytest.fixture
def precision():
    """torch's switch, put back at the end."""
    before = torch.backends.cudnn.conv.fp32_precision
    yield torch.backends.cudnn.conv
    torch.backends.cudnn.conv.fp32_precision = before


def test_on_a_gpu_torchs_switch_allows_tf32(precision):
    with FakeTensorMode():
        x = torch.empty(1, 3, 8, 8, device="cuda")
    precision.fp32_precision = "tf32"
    assert _conv_kernels(x) == "::tf32"
    assert _conv_kernels(x.half()) is _conv_kernels(torch.empty(1)) is None
    with cnnkernels.algorithm("tensor_core"):
        assert _conv_kernels(x) == ":tensor_core:tf32"
    precision.fp32_precision = "ieee"
    assert _conv_kernels(x) is None


# ---------------------------------------------------------------- which kernel runs


profile_all_passes = partial(implicit_gemm.profile_all_passes, algorithm="tensor_core")


def kernel_names(dtype, large: bool, packs: bool, gradient: str) -> set[str]:
    T, how = CPP_NAMES[dtype], f"{str(large).lower()}, {str(packs).lower()}"
    gradients = {
        f"conv2d_tensor_core_{name}<{T}, {how}, {gradient}<{T}> >" for name in ("dgrad", "wgrad")
    }
    return {f"conv2d_tensor_core_fprop<{T}, {how}>", *gradients}


SMALL = ((1, 24, 9, 8), (16, 3, 3), dict(padding=1))
# Many groups are many blocks, with few products each.
LARGE = ((1, 192 * 72, 1, 3), (192 * 72, 1, 1), dict(groups=192))
TWO_LARGE = ((1, 192 * 72, 11, 12), (192 * 72, 1, 1), dict(groups=192))  # of 128 and 4 rows


@pytest.mark.parametrize("relu", [False, True], ids=["plain", "relu"])
@pytest.mark.parametrize("packs", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_small_instance_runs(dtype, packs, relu):
    shape, filters, kwargs = SMALL
    tensors = operands(shape, filters, kwargs, dtype, "cpu")
    grad_output = grad_of_output(F.conv2d, tensors, kwargs)
    layout = LAYOUTS["channels_last" if packs else "contiguous"]
    tensors = [*map(layout, tensors[:2]), tensors[2]]
    function, gradient = (ours.conv2d_relu, "Masked") if relu else (ours.conv2d, "Plain")
    profile = profile_all_passes(tensors, layout(grad_output), kwargs, function=function)
    names = {kernel.kernel for kernel in profile.kernels}
    assert names >= kernel_names(dtype, False, packs, gradient)


@pytest.mark.parametrize("why", NO_PACKS)
def test_what_is_not_aligned_is_loaded_element_by_element(why):
    kernels = kernels_without_packs(why, torch.float16, "tensor_core")
    assert kernels == ["conv2d_tensor_core_fprop<cuda::__half, false, false>"]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_large_tile_is_exact(dtype, layout):
    check_exactly(LARGE, dtype, LAYOUTS[layout], True, "tensor_core")


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_large_tile_is_exact_in_its_second_row(layout):
    check_exactly(TWO_LARGE, torch.float16, LAYOUTS[layout], False, "tensor_core")


def test_many_blocks_have_the_large_tile():
    """The same with a pixel: packs of 1x1 filters too, whose strides say nothing."""
    _, filters, kwargs = LARGE
    tensors = operands((1, 192 * 72, 1, 1), filters, kwargs, torch.float16, "cpu")
    with cnnkernels.profile() as profile, cnnkernels.algorithm("tensor_core"):
        ours.conv2d(*tensors, **kwargs)
    (fprop,) = profile.kernels
    assert fprop.kernel == "conv2d_tensor_core_fprop<cuda::__half, true, true>"


def test_a_gradient_that_packs_cannot_be_stored_in_waits_elsewhere():
    """The chunk's sums are packs of taps; a contiguous gradient takes them one by one."""
    x = LAYOUTS["channels_last"](integers(1, 16, 6, 6, dtype=torch.float16))
    arguments = 16, 6, 6, 3, 3, False, *[1] * 8, 1, False, "emulated:tensor_core"
    grad_output = LAYOUTS["channels_last"](integers(1, 8, 6, 6, dtype=torch.float16))
    _, grad_weight, _ = torch.ops.cnnkernels.conv2d_backward(grad_output, None, x, None, *arguments)
    assert grad_weight.is_contiguous()
    exact = torch.nn.grad.conv2d_weight(x.double(), (8, 16, 3, 3), grad_output.double(), padding=1)
    assert torch.equal(grad_weight, exact.half())


# ---------------------------------------------------------------- what it asks of a GPU


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("problem", ["groups", "strided", "tables", "many_outputs"])
def test_no_alarm(problem, layout, dtype):
    """No race, no access out of bounds; no block reads or writes what another writes."""
    shape, filters, kwargs = PACKED[problem]
    tensors = operands(shape, filters, kwargs, dtype, "cpu")
    grad_output = LAYOUTS[layout](grad_of_output(F.conv2d, tensors, kwargs))
    tensors = [LAYOUTS[layout](t) if t.dim() == 4 else t for t in tensors]
    arguments = ours.conv2d_relu, tensors, grad_output, kwargs
    expected = by("tensor_core", with_gradients)(*arguments)
    with cnnkernels.emulate_cuda(check=True, tf32=True), cnnkernels.algorithm("tensor_core"):
        checked = with_gradients(*arguments)
    for name, a, b in zip(NAMES, expected, checked, strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_every_run(dtype, layout):
    shape, filters, kwargs = PACKED["many_outputs"]
    tensors = operands(shape, filters, kwargs, dtype, "cpu")
    grad_output = LAYOUTS[layout](grad_of_output(F.conv2d, tensors, kwargs))
    tensors = [LAYOUTS[layout](t) if t.dim() == 4 else t for t in tensors]
    run = by("tensor_core", with_gradients)
    assert_same_bits(lambda: run(ours.conv2d, tensors, grad_output, kwargs))


def growing_depth(name: str, dtype, layout: str, stages: int) -> KernelProfile:
    """A pass whose depth is 8 packs for each of the stages, all in one half of the table."""
    depth = stages * 64 // dtype.itemsize
    C, K, W = {"fprop": (depth, 64, 64), "dgrad": (64, depth, 64), "wgrad": (64, 64, depth)}[name]
    tensors = torch.randn(1, C, 1, W), torch.randn(K, C, 1, 1), torch.randn(K)
    tensors = [t.to(dtype) for t in tensors]
    grad_output = LAYOUTS[layout](torch.randn(1, K, 1, W).to(dtype))
    tensors = [*map(LAYOUTS[layout], tensors[:2]), tensors[2]]
    profile = profile_all_passes(tensors, grad_output, {})
    return kernel(profile, f"conv2d_tensor_core_{name}<")


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", PASSES)
def test_the_hot_loop_has_no_bank_conflicts(name, dtype, layout):
    profiles = [growing_depth(name, dtype, layout, stages) for stages in (3, 1)]
    for traffic in ("shared_load", "shared_store"):
        units = difference(lambda k: getattr(k, traffic).units, *profiles)  # noqa: B023
        assert units == difference(lambda k: getattr(k, traffic).ideal, *profiles) >= 0  # noqa: B023
    assert difference(lambda k: k.mma_flop, *profiles) == 2 * 2 * 64 * 64 * 64 // dtype.itemsize
    assert difference(lambda k: k.global_load.bytes, *profiles) == 2 * (64 + 64) * 64


def test_packs_are_whole_sectors():
    """4 packs of a pixel lie side by side: 64 bytes, two sectors, of 8 pixels a request."""
    tensors = [torch.randn(1, 64, 8, 8).half(), torch.randn(64, 64, 3, 3).half()]
    with cnnkernels.profile() as profile, cnnkernels.algorithm("tensor_core"):
        ours.conv2d(*map(LAYOUTS["channels_last"], tensors), padding=1)
    (fprop,) = profile.kernels
    assert fprop.kernel == "conv2d_tensor_core_fprop<cuda::__half, false, true>"
    assert fprop.global_load.bytes == 32 * fprop.global_load.units
    assert fprop.global_store.units == 16 * fprop.global_store.requests
