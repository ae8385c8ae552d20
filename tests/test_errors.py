"""Bad input: torch's kind of error, before anything runs."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import profile

import cnnkernels
import cnnkernels.functional as ours

X, W, B = torch.zeros(2, 4, 8, 8), torch.zeros(6, 4, 3, 3), torch.zeros(6)

ADAPTIVE = {
    "no_size": (X, ()),
    "one_size": (X, (2,)),
    "three_sizes": (X, (2, None, 2)),
    "four_sizes": (X, (2, 2, 2, 2)),
    "negative_size": (X, -1),
    "negative_width": (X, (2, -1)),
    "size_none": (X, None),
    "size_text": (X, "2"),
    "size_float": (X, 2.0),
    "size_of_float": (X, (2.0, 2)),
    "size_bool": (X, True),
    "size_of_bool": (X, (True, 2)),
    "size_tensor": (X, torch.tensor(2)),
    "rank_2": (torch.zeros(8, 8), 2),
    "rank_2_pair": (torch.zeros(8, 8), (2, 2)),
    "rank_5": (torch.zeros(1, 2, 4, 8, 8), 2),
    "no_rows": (torch.zeros(2, 3, 0, 8), 2),
    "no_columns_of_no_images": (torch.zeros(0, 3, 8, 0), 2),
}

# function name, arguments, keyword arguments; torch must refuse each, too.
BAD = {
    "channels": ("conv2d", (X, torch.zeros(6, 3, 3, 3)), {}),
    "groups_do_not_divide": ("conv2d", (X, torch.zeros(6, 1, 3, 3)), dict(groups=4)),
    "no_groups": ("conv2d", (X, W), dict(groups=0)),
    "negative_groups": ("conv2d", (X, W), dict(groups=-1)),
    "filter_too_large": ("conv2d", (X, torch.zeros(6, 4, 9, 3)), {}),
    "dilated_too_large": ("conv2d", (X, W), dict(dilation=4)),
    "zero_stride": ("conv2d", (X, W), dict(stride=0)),
    "negative_stride": ("conv2d", (X, W), dict(stride=(1, -1))),
    "zero_dilation": ("conv2d", (X, W), dict(dilation=0)),
    "negative_padding": ("conv2d", (X, W), dict(padding=-1)),
    "bias_length": ("conv2d", (X, W, torch.zeros(5)), {}),
    "bias_rank": ("conv2d", (X, W, torch.zeros(6, 1)), {}),
    "no_filters": ("conv2d", (X, torch.zeros(0, 4, 3, 3)), {}),
    "rank_2": ("conv2d", (torch.zeros(4, 8), W), {}),
    "rank_5": ("conv2d", (torch.zeros(1, 2, 4, 8, 8), W), {}),
    "weight_rank": ("conv2d", (X, torch.zeros(6, 4, 3)), {}),
    "weight_dtype": ("conv2d", (X, W.double()), {}),
    "bias_dtype": ("conv2d", (X, W, B.double()), {}),
    "same_strided": ("conv2d", (X, W), dict(padding="same", stride=2)),
    "unknown_padding": ("conv2d", (X, W), dict(padding="full")),
    "three_strides": ("conv2d", (X, W), dict(stride=(1, 1, 1))),
    "stride_type": ("conv2d", (X, W), dict(stride="2")),
    "float_stride": ("conv2d", (X, W), dict(stride=1.5)),
    "input_type": ("conv2d", ([[1.0]], W), {}),
    "weight_none": ("conv2d", (X, None), {}),
    "groups_type": ("conv2d", (X, W), dict(groups=1.0)),
    "groups_bool": ("conv2d", (X, W), dict(groups=True)),
    "huge_padding": ("conv2d", (X, W), dict(padding=2**62)),
    "pool_window_too_large": ("max_pool2d", (X, 9), {}),
    "pool_zero_window": ("max_pool2d", (X, 0), {}),
    "pool_zero_stride": ("max_pool2d", (X, 2), dict(stride=0)),
    "pool_negative_stride": ("max_pool2d", (X, 2), dict(stride=-1)),
    "pool_padding_over_half": ("max_pool2d", (X, 2), dict(padding=2)),
    "pool_negative_padding": ("max_pool2d", (X, 2), dict(padding=-1)),
    "pool_zero_dilation": ("max_pool2d", (X, 2), dict(dilation=0)),
    "pool_no_channels": ("max_pool2d", (torch.zeros(2, 0, 8, 8), 2), {}),
    "pool_no_pixels": ("max_pool2d", (torch.zeros(2, 3, 0, 8), 2), {}),
    "pool_rank": ("max_pool2d", (torch.zeros(8, 8), 2), {}),
    "pool_type": ("max_pool2d", (1.0, 2), {}),
    "pool_kernel_type": ("max_pool2d", (X, "2"), {}),
    "pool_three": ("max_pool2d", (X, (2, 2, 2)), {}),
    "avg_window_too_large": ("avg_pool2d", (X, 9), {}),
    "pool_ceil_mode_type": ("max_pool2d", (X, 2), dict(ceil_mode=1)),
    "avg_ceil_mode_type": ("avg_pool2d", (X, 2), dict(ceil_mode="no")),
    "avg_include_type": ("avg_pool2d", (X, 2), dict(count_include_pad=None)),
    "avg_divisor_bool": ("avg_pool2d", (X, 2), dict(divisor_override=True)),
    "avg_zero_divisor": ("avg_pool2d", (X, 2), dict(divisor_override=0)),
    "avg_padding_over_half": ("avg_pool2d", (X, 2), dict(padding=2)),
    "avg_no_channels": ("avg_pool2d", (torch.zeros(2, 0, 8, 8), 2), {}),
    **{
        f"adaptive_{pool}_{case}": (f"adaptive_{pool}_pool2d", arguments, {})
        for pool in ("max", "avg")
        for case, arguments in ADAPTIVE.items()
    },
    "adaptive_max_no_channels": ("adaptive_max_pool2d", (torch.zeros(2, 0, 8, 8), 2), {}),
}


@pytest.mark.parametrize("emulate", [False, True], ids=["native", "emulated"])
@pytest.mark.parametrize("case", BAD)
def test_torchs_kind_of_error(case, emulate):
    name, args, kwargs = BAD[case]
    with pytest.raises(Exception) as torchs:  # noqa: PT011, B017 (its kind is what is compared)
        getattr(F, name)(*args, **kwargs)
    with pytest.raises(torchs.type):
        if emulate:
            with cnnkernels.emulate_cuda():
                getattr(ours, name)(*args, **kwargs)
        else:
            getattr(ours, name)(*args, **kwargs)


def allocations(call):
    """How many bytes a call allocates, and how many kernels it launches in the emulator."""
    with profile(profile_memory=True) as memory, cnnkernels.profile() as emulated:
        call()
    made = sum(max(event.self_cpu_memory_usage, 0) for event in memory.events())
    return made, len(emulated.kernels)


@pytest.mark.parametrize("case", BAD)
def test_errors_come_before_anything_is_allocated_or_launched(case):
    name, args, kwargs = BAD[case]

    def call():
        with contextlib.suppress(Exception):
            getattr(ours, name)(*args, **kwargs)

    assert allocations(call) == (0, 0)


def test_allocations_and_launches_are_seen():
    assert allocations(lambda: ours.conv2d(X, W, B)) == (2 * 6 * 6 * 6 * 4, 1)


OTHER_DTYPES = [torch.uint8, torch.int32, torch.int64, torch.bool, torch.complex64]
OTHER_DTYPES += [torch.float8_e4m3fn]
CALLS = {
    "conv2d": (W,),
    "max_pool2d": (2,),
    "avg_pool2d": (2,),
    "adaptive_max_pool2d": (3,),
    "adaptive_avg_pool2d": (3,),
}


@pytest.mark.parametrize("dtype", OTHER_DTYPES, ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_other_dtypes_are_torchs(name, dtype):
    """Where torch has a kernel its result, else its error."""
    x = (torch.arange(X.numel()).view(X.shape) % 7).to(dtype)
    args = [arg.to(dtype) if isinstance(arg, torch.Tensor) else arg for arg in CALLS[name]]

    def outcome(module):
        try:
            return getattr(module, name)(x, *args)
        except Exception as error:  # noqa: BLE001 (to be compared)
            return type(error), str(error)

    result, expected = outcome(ours), outcome(F)
    assert type(result) is type(expected)
    if not isinstance(result, torch.Tensor):
        assert result == expected
    elif name != "conv2d":  # of which torch leaves some dtypes' outputs unwritten
        assert torch.equal(result, expected)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool], ids=str)
def test_the_ops_name_dtypes_without_kernels(dtype):
    geometry = (1, 1, 0, 0, 0, 0, 1, 1, 1)
    with pytest.raises(RuntimeError, match="not implemented for"):
        torch.ops.cnnkernels.conv2d(X.to(dtype), W.to(dtype), None, *geometry, False, None)


def test_integers_run_torchs_pool_under_the_emulator_too():
    x = (torch.arange(X.numel()).view(X.shape) % 7).int()
    with cnnkernels.emulate_cuda():
        assert torch.equal(ours.max_pool2d(x, 2), F.max_pool2d(x, 2))


HUGE = {
    "image": lambda: ours.max_pool2d(torch.zeros(1).expand(1, 1, 1, 2**31), (1, 2)),
    "batch": lambda: ours.conv2d(torch.zeros(1).expand(2**31, 1, 1, 1), torch.zeros(1, 1, 1, 1)),
    "padding": lambda: ours.conv2d(X, W, padding=2**31),
    "padded_image": lambda: ours.conv2d(X, W, padding=2**30 - 1, dilation=2**28),
    "window": lambda: ours.avg_pool2d(X, 2**31),
    "output": lambda: ours.adaptive_avg_pool2d(X, 2**31),
}


@pytest.mark.parametrize("case", HUGE)
def test_sizes_over_the_limit_are_named(case):
    """A kernel counts in 32 bits along each dimension."""
    with pytest.raises(RuntimeError, match=r"over the limit of 2\^31 - 1"):
        HUGE[case]()


LAYOUTS = {
    "sparse_input": lambda: (X.to_sparse(), W),
    "sparse_weight": lambda: (X, W.to_sparse()),
    "sparse_bias": lambda: (X, W, B.to_sparse()),
    "mkldnn_input": lambda: (X.to_mkldnn(), W),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_mixed_and_foreign_layouts_are_refused(case):
    with pytest.raises(NotImplementedError, match="Could not run"):
        ours.conv2d(*LAYOUTS[case]())


def test_messages_name_what_is_wrong():
    with pytest.raises(RuntimeError, match=r"expected input\[2, 4, 8, 8\] to have 3 channels"):
        ours.conv2d(X, torch.zeros(6, 3, 3, 3))
    with pytest.raises(RuntimeError, match=r"\(8 x 8\)\. Kernel size: \(9 x 3\)"):
        ours.conv2d(X, torch.zeros(6, 4, 9, 3))
    with pytest.raises(RuntimeError, match="expected bias to be 1-dimensional with 6 elements"):
        ours.conv2d(X, W, torch.zeros(5))
    with pytest.raises(RuntimeError, match="at most half of effective kernel size"):
        ours.max_pool2d(X, 2, padding=2)


def test_a_library_that_does_not_load_says_so_at_first_use(tmp_path):
    import shutil
    import subprocess
    import sys
    from pathlib import Path

    package = tmp_path / "cnnkernels"
    shutil.copytree(
        Path(cnnkernels.__file__).parent, package, ignore=shutil.ignore_patterns("*.so")
    )
    (package / "libcnnkernels.so").write_bytes(b"not a library")
    program = (
        "import torch, cnnkernels; print(cnnkernels.info()['load_error'])\n"
        "try: cnnkernels.functional.conv2d(torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 3, 3))\n"
        "except ImportError as error: print('ImportError', error)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    lines = result.stdout.splitlines()
    assert "libcnnkernels.so" in lines[0]
    assert lines[1].startswith("ImportError cnnkernels has no compiled kernels:")


def test_on_meta_tensors_too():
    """As torch.compile asks, before anything runs."""
    x, w = X.to("meta"), W.to("meta")
    for weight, bias, match in ((W, None, "same device"), (w, B.to("meta").half(), "bias type")):
        with pytest.raises(RuntimeError, match=match):
            ours.conv2d(x, weight, bias)
    with pytest.raises(RuntimeError, match="non-positive stride"):
        ours.conv2d(x, w, stride=0)
