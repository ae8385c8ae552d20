"""Index arithmetic past 2^31 elements, and the ranges that kernels walk, without the memory."""

import ctypes
import itertools
import random
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parent.parent
LARGEST = 2**31 - 1


@pytest.fixture(scope="module")
def arithmetic(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    library = tmp_path_factory.mktemp("indexing") / "indexing.so"
    flags = ["-std=c++17", "-O1", "-fPIC", "-shared", f"-I{ROOT / 'csrc'}"]
    flags += ["-fsanitize=undefined", "-fno-sanitize-recover=all", "-static-libubsan"]
    source = ROOT / "tests/indexing/indexing.cpp"
    subprocess.run(["g++", *flags, str(source), "-o", str(library)], check=True)
    loaded = ctypes.CDLL(str(library), mode=ctypes.RTLD_LOCAL)
    for name in ("offset", "blocks", "conv_output", "pool_output"):
        getattr(loaded, name).restype = ctypes.c_int64
    return loaded


def int64s(*values):
    return (ctypes.c_int64 * len(values))(*values)


def long(value):
    return ctypes.c_int64(value)


def strides_of(N, C, H, W, channels_last):
    return (H * W * C, 1, W * C, C) if channels_last else (C * H * W, H * W, W, 1)


SHAPES = [(3, 70000, 300, 301), (100_000, 3, 224, 224), (2, 1, 65536, 65536), (5, LARGEST, 1, 2)]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_offsets_and_positions_past_2_to_the_31(arithmetic, shape, channels_last):
    strides = strides_of(*shape, channels_last)
    order = (0, 2, 3, 1) if channels_last else (0, 1, 2, 3)
    assert shape[0] * shape[1] * shape[2] * shape[3] > 2**31
    generator = random.Random(0)
    for trial in range(200):
        at = tuple(generator.randrange(size) if trial else size - 1 for size in shape)
        offset = sum(i * stride for i, stride in zip(at, strides, strict=True))
        assert arithmetic.offset(int64s(*strides), *map(long, at)) == offset

        index = 0  # the place in the order in which memory runs
        for dimension in order:
            index = index * shape[dimension] + at[dimension]
        result = int64s(0, 0, 0, 0)
        sizes = (ctypes.c_int * 3)(*shape[1:])
        arithmetic.position(long(index), sizes, int64s(*strides), result)
        assert tuple(result) == at


def test_a_grid_has_a_thread_for_each_of_many_items(arithmetic):
    for items in (1, 255, 256, 257, 2**31, 2**36 + 1):
        assert arithmetic.blocks(long(items)) == -(-items // 256)


def test_conv_output_sizes_are_torchs(arithmetic):
    for in_, pad, size, stride, dilation in itertools.product(
        (1, 2, 7, 16, 1_000_003), (0, 1, 5), (1, 2, 3, 7), (1, 2, 3), (1, 2, 4)
    ):
        if in_ + 2 * pad < dilation * (size - 1) + 1:
            continue
        input = torch.empty(1, 1, in_, 1, device="meta")
        weight = torch.empty(1, 1, size, 1, device="meta")
        expected = F.conv2d(input, weight, None, (stride, 1), (pad, 0), (dilation, 1)).shape[2]
        result = arithmetic.conv_output(*map(long, (in_ + 2 * pad, size, stride, dilation)))
        assert result == expected


def test_pool_output_sizes_are_torchs(arithmetic):
    for in_, size, stride, dilation, ceil_mode in itertools.product(
        (1, 2, 5, 16, 1_000_003), (1, 2, 3, 8), (1, 2, 3, 5), (1, 2, 3), (False, True)
    ):
        for pad in range(size // 2 + 1):
            arguments = map(long, (in_, pad, size, stride, dilation))
            result = arithmetic.pool_output(*arguments, ceil_mode)
            input = torch.empty(1, 1, in_, 1, device="meta")
            pool = ((size, 1), (stride, 1), (pad, 0), (dilation, 1), ceil_mode)
            if result < 1:
                with pytest.raises(RuntimeError, match="too small"):
                    F.max_pool2d(input, *pool)
            else:
                assert result == F.max_pool2d(input, *pool).shape[2]


def as_range(function, *arguments):
    result = (ctypes.c_int * 2)()
    function(*arguments, result)
    return list(range(*result))


def test_ranges_are_those_of_the_definition(arithmetic):
    for size, taps, dilation, stride, pad in itertools.product(
        (1, 2, 5, 9), (1, 2, 3, 7), (1, 2, 4), (1, 2, 3, 6), (0, 1, 4)
    ):
        extent = dilation * (taps - 1) + 1
        count = max(1, (size + 2 * pad - extent) // stride + 1)
        for p in range(count):
            start = p * stride - pad
            inside = [t for t in range(taps) if 0 <= start + t * dilation < size]
            assert as_range(arithmetic.taps, start, taps, dilation, size) == inside
        for x in range(size):
            starts = [p * stride - pad for p in range(count)]
            over = [p for p, start in enumerate(starts) if start <= x < start + extent]
            assert as_range(arithmetic.windows, x, pad, extent, stride, count) == over
            for t in range(taps):
                readers = [p for p, start in enumerate(starts) if start + t * dilation == x]
                offset = t * dilation - pad
                assert arithmetic.reader(x, offset, stride, count) == (readers or [-1])[0]


def test_ranges_near_the_largest_int(arithmetic):
    assert as_range(arithmetic.windows, LARGEST - 3, 3, 3, 3, LARGEST // 3 + 1) == [LARGEST // 3]
    assert arithmetic.reader(LARGEST - 1, -1, 1, LARGEST) == -1
    assert arithmetic.reader(LARGEST - 2, -1, 1, LARGEST) == LARGEST - 1


def adaptive_window(i, size, count):
    return list(range(i * size // count, -(-(i + 1) * size // count)))


def test_adaptive_windows_are_those_of_the_definition(arithmetic):
    for size, count in itertools.product(range(1, 40), repeat=2):
        windows = [adaptive_window(i, size, count) for i in range(count)]
        for i, window in enumerate(windows):
            assert as_range(arithmetic.adaptive, i, size, count) == window
        assert arithmetic.longest_adaptive(size, count) == max(map(len, windows))
        for x in range(size):
            over = [i for i, window in enumerate(windows) if x in window]
            assert as_range(arithmetic.adaptive, x, count, size) == over


def test_adaptive_windows_near_the_largest_int(arithmetic):
    for size, count in ((LARGEST, LARGEST), (1, LARGEST), (LARGEST, LARGEST // 2), (LARGEST, 3)):
        last = count - 1
        expected = range(last * size // count, size)
        result = (ctypes.c_int * 2)()
        arithmetic.adaptive(last, size, count, result)
        assert range(*result) == expected
