"""The pooling kernels that move 16 bytes at a time: what they move, what they leave to others."""

import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_accurate, integers
from test_pool2d import with_gradient

import cnnkernels
import cnnkernels.functional as ours

NAN, INF = float("nan"), float("inf")
FORMATS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def kernels_of(pool, input, *args, **kwargs):
    """The profiles of the forward and, if the input wants a gradient, the backward kernel."""
    with cnnkernels.profile() as p:
        output = getattr(ours, pool)(input, *args, **kwargs)
        if input.requires_grad:
            output.backward(torch.ones_like(output))
    return p.kernels


# ---------------------------------------------------------------- traffic


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("pool", ["max_pool2d", "avg_pool2d"])
def test_each_byte_moves_once_in_whole_sectors(pool, dtype, format):
    """2x2 windows, as in VGG: inputs, outputs, and a byte for each maximum's place; no more.

    A warp's 32 threads take 16 bytes of inputs each from one row, or pixel: 512 bytes, 16 sectors.
    A row of either input, 224 bytes, is whole sectors. In NCHW half as many outputs belong to them.
    """
    size = dtype.itemsize
    shape = (2, 64, 28, 224 // size)
    input = torch.randn(shape, dtype=dtype).contiguous(memory_format=FORMATS[format])
    forward, backward = kernels_of(pool, input.requires_grad_(), 2)
    along = dict(nchw="AlongColumns", channels_last="AlongChannels")[format]
    of = {torch.float32: "float", torch.float16: "cuda::__half"}[dtype]
    assert forward.kernel.startswith(f"{pool}_vector_forward<{of}, {along}")
    assert backward.kernel.startswith(f"{pool}_vector_backward<{of}, {along}")

    inputs, outputs = input.numel(), input.numel() // 4
    codes = outputs if pool == "max_pool2d" else 0
    strip = 32 * 16 // size  # inputs that a warp takes at a time
    windows = strip if format == "channels_last" else strip // 2
    stores = outputs // windows  # of outputs, and of codes
    assert outputs % windows == 0

    assert forward.global_load.bytes == inputs * size
    assert forward.global_load.requests == inputs // strip
    assert forward.global_store.bytes == outputs * size + codes
    assert forward.global_store.requests == stores * (2 if codes else 1)
    # Backward, the same the other way.
    assert backward.global_load.bytes == outputs * size + codes
    assert backward.global_load.requests == stores * (2 if codes else 1)
    assert backward.global_store.bytes == inputs * size
    assert backward.global_store.requests == inputs // strip
    for kernel in (forward, backward):
        moved = kernel.global_load.bytes + kernel.global_store.bytes
        assert moved == kernel.minimal_bytes == (inputs + outputs) * size + codes
        assert kernel.sector_bytes == moved
        assert kernel.global_load.units * 32 == kernel.global_load.bytes


@pytest.mark.parametrize("pool", ["max_pool2d", "avg_pool2d"])
def test_overlapping_windows_are_read_pixel_by_pixel(pool):
    """3x3 windows every 2 pixels in channels_last: a tap of a warp is 2 pixels of 64 channels."""
    input = torch.randn(1, 64, 15, 15).contiguous(memory_format=torch.channels_last)
    forward, backward = kernels_of(pool, input.requires_grad_(), 3, 2)
    windows = 7 * 7 * 64
    assert forward.kernel.startswith(f"{pool}_vector_forward<float, AlongChannels")
    assert forward.global_load.bytes == 9 * windows * 4
    assert forward.bytes_read == input.numel() * 4
    assert forward.global_load.units == 9 * windows * 4 // 32
    assert backward.kernel.startswith(f"{pool}_vector_backward_overlapping<float")
    # A pixel is read by 1, 2 or 4 windows, by their size.
    asked = 9 * windows * (5 if pool == "max_pool2d" else 4)
    assert backward.global_load.bytes == asked
    assert backward.bytes_written == backward.global_store.bytes == input.numel() * 4


# ---------------------------------------------------------------- who takes what

TAKEN = [
    # Shape, format, dtype, window and stride, kernel.
    ((1, 4, 6, 5), "channels_last", torch.float32, (3, 2), "vector_forward<float, AlongChannels"),
    (
        (1, 8, 6, 5),
        "channels_last",
        torch.float16,
        (3, 2),
        "vector_forward<cuda::__half, AlongChannels",
    ),
    ((1, 2, 6, 5), "channels_last", torch.float64, (3, 2), "vector_forward<double, AlongChannels"),
    ((1, 3, 6, 8), "nchw", torch.float32, (2, 2), "vector_forward<float, AlongColumns"),
    (
        (1, 3, 6, 8),
        "nchw",
        torch.bfloat16,
        (2, 2),
        "vector_forward<cuda::__nv_bfloat16, AlongColumns",
    ),
    ((1, 4, 6, 5), "channels_last", torch.float16, (3, 2), "direct_forward<cuda::__half"),
    ((1, 3, 6, 5), "channels_last", torch.float32, (3, 2), "direct_forward<float"),
    ((1, 3, 6, 6), "nchw", torch.float32, (2, 2), "direct_forward<float"),
    ((1, 3, 6, 8), "nchw", torch.float32, (3, 2), "direct_forward<float"),
    ((1, 4, 6, 8), "nchw", torch.float32, (2, 1), "direct_forward<float"),
]


@pytest.mark.parametrize(("shape", "format", "dtype", "window", "kernel"), TAKEN, ids=str)
def test_who_takes_what(shape, format, dtype, window, kernel):
    input = torch.randn(shape, dtype=dtype).contiguous(memory_format=FORMATS[format])
    for pool in ("max_pool2d", "avg_pool2d"):
        (forward,) = kernels_of(pool, input, *window)
        assert forward.kernel.startswith(f"{pool}_{kernel}")


def shifted(tensor, elements=1):
    """The same, a few elements behind the start of its memory."""
    memory = tensor.new_zeros(tensor.numel() + elements)
    return memory[elements:].as_strided(tensor.shape, tensor.stride()).copy_(tensor)


def sliced(tensor, dim):
    """The same, as a slice of a tensor with two more in that dimension."""
    sizes = list(tensor.shape)
    sizes[dim] += 2
    format = FORMATS["nchw" if tensor.is_contiguous() else "channels_last"]
    larger = torch.zeros(sizes, dtype=tensor.dtype).contiguous(memory_format=format)
    return larger.narrow(dim, 2, tensor.shape[dim]).copy_(tensor)


@pytest.mark.parametrize("pool", ["max_pool2d", "avg_pool2d"])
@pytest.mark.parametrize("format", FORMATS)
def test_what_does_not_lie_in_vectors_is_left_to_direct(pool, format):
    whole = torch.randn(2, 8, 8, 8).contiguous(memory_format=FORMATS[format])
    across, along = (2, 3) if format == "nchw" else (3, 1)
    for input, algorithm in (
        (whole, "vector"),
        (shifted(whole), "direct"),
        (shifted(whole, 4), "vector"),
        (sliced(whole, 0), "vector"),
        (sliced(whole, across), "vector"),
        (sliced(whole, along), "direct"),
        (whole[:, :1].expand_as(whole), "direct" if format == "channels_last" else "vector"),
    ):
        (forward,) = kernels_of(pool, input, 2)
        assert forward.kernel.startswith(f"{pool}_{algorithm}_forward"), input.stride()
        with cnnkernels.emulate_cuda(check=True):
            result = getattr(ours, pool)(input, 2)
        assert torch.equal(result, getattr(F, pool)(input, 2))


# ---------------------------------------------------------------- results

# Shape, arguments: whole and broken vectors, pixels that no window has, that many have.
CASES = {
    "halved": ((2, 3, 8, 16), dict(kernel_size=2)),
    "a_row_left": ((1, 2, 7, 16), dict(kernel_size=2)),
    "a_column_left": ((1, 16, 6, 7), dict(kernel_size=2)),
    "rows_overlap": ((2, 3, 9, 16), dict(kernel_size=(3, 2), stride=(1, 2), padding=(1, 0))),
    "rows_dilated": ((1, 3, 9, 16), dict(kernel_size=2, stride=2, dilation=(3, 1))),
    "gaps_between_rows": ((1, 3, 11, 16), dict(kernel_size=2, stride=(5, 2))),
    "gaps": ((1, 8, 11, 9), dict(kernel_size=2, stride=(3, 4))),
    "apart_and_padded": ((1, 8, 10, 13), dict(kernel_size=4, padding=2)),
    "apart_ceil": ((1, 8, 10, 7), dict(kernel_size=3, ceil_mode=True)),
    "overlapping": ((2, 8, 7, 5), dict(kernel_size=3, stride=2, padding=1)),
    "dilated": ((1, 8, 9, 8), dict(kernel_size=3, stride=2, padding=1, dilation=(2, 3))),
    "large": ((1, 8, 16, 17), dict(kernel_size=(8, 17))),
    "window_255": ((1, 8, 15, 17), dict(kernel_size=(15, 17))),
    "one_column": ((2, 24, 9, 1), dict(kernel_size=(2, 1))),
    "one_pixel": ((3, 16, 1, 1), dict(kernel_size=1)),
    "primes": ((2, 7, 13, 11), dict(kernel_size=(2, 3))),
    "vector_and_a_half": ((2, 12, 6, 12), dict(kernel_size=2)),
    "no_images": ((0, 8, 6, 8), dict(kernel_size=2)),
    "adaptive_halves": ((2, 8, 6, 16), dict(output_size=(3, 8))),
    "adaptive": ((2, 8, 7, 16), dict(output_size=(3, 5))),
    "adaptive_larger": ((1, 8, 3, 4), dict(output_size=(7, 9))),
    "global": ((2, 8, 5, 6), dict(output_size=1)),
}


def pools(kind, kwargs):
    name = f"{'adaptive_' if 'output_size' in kwargs else ''}{kind}_pool2d"
    return getattr(ours, name), getattr(F, name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("case", CASES)
def test_max_equals_torch_bit_for_bit(case, format, dtype):
    shape, kwargs = CASES[case]
    values = torch.tensor([NAN, INF, -INF, 0, 0, 1, 1, 1, 2], dtype=dtype)
    own, torchs = pools("max", kwargs)
    for first in (0, 1, 3):  # of the values: with NaN and infinities, without NaN, without either
        input = values[first:][torch.randint(len(values) - first, shape)]
        input = input.contiguous(memory_format=FORMATS[format])
        expected = torchs(input, **kwargs)
        grad = integers(*expected.shape, dtype=dtype).contiguous(memory_format=FORMATS[format])
        wide = with_gradient(torchs, input.double(), grad.double(), kwargs)
        with cnnkernels.emulate_cuda(check=True):
            results = with_gradient(own, input, grad, kwargs)
        torch.testing.assert_close(results[0], expected, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(results[1], wide[1].to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("case", [name for name in CASES if "dilated" not in name])
def test_averages(case, format, dtype):
    shape, kwargs = CASES[case]
    own, torchs = pools("avg", kwargs)
    input = torch.randn(shape, dtype=dtype).contiguous(memory_format=FORMATS[format])
    grad = torch.randn_like(torchs(input, **kwargs)).contiguous(memory_format=FORMATS[format])
    with cnnkernels.emulate_cuda(check=True):
        results = with_gradient(own, input, grad, kwargs)
    torchs_own = with_gradient(torchs, input, grad, kwargs)
    references = with_gradient(torchs, input.double(), grad.double(), kwargs)
    for result, other, reference in zip(results, torchs_own, references, strict=True):
        assert_accurate(result, other, reference)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("window", [[0, 1, NAN, 2], [NAN, 5, NAN, 1], [-INF] * 4, [3, 3, 3, 3]])
def test_the_first_maximum_wins_and_the_last_nan(window, format):
    """The place shows where the gradient goes."""
    input = torch.tensor(window, dtype=torch.float32).view(1, 1, 2, 2).repeat(1, 8, 3, 4)
    input = input.contiguous(memory_format=FORMATS[format])
    _, indices = F.max_pool2d(input, 2, return_indices=True)
    with cnnkernels.emulate_cuda(check=True):
        output, grad = with_gradient(
            ours.max_pool2d, input, torch.ones(1, 8, 3, 4), dict(kernel_size=2)
        )
    torch.testing.assert_close(output, F.max_pool2d(input, 2), rtol=0, atol=0, equal_nan=True)
    assert torch.equal(grad.flatten(2).nonzero(), chosen(indices))


def chosen(indices):
    """Image, channel and pixel of each index, in order."""
    N, C = indices.shape[:2]
    taken = torch.zeros(N, C, 6 * 8).scatter_(2, indices.flatten(2), 1.0)
    return taken.nonzero()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", ["max", "avg"])
@pytest.mark.parametrize("case", ["halved", "overlapping", "adaptive"])
def test_same_bits_in_any_order_of_the_blocks(case, kind, format):
    """And the same as from `direct`, which takes what is not aligned."""
    (_, C, H, W), kwargs = CASES[case]
    input = torch.randn(9, 8 * C, H, W).contiguous(memory_format=FORMATS[format])
    own, torchs = pools(kind, kwargs)
    grad = torch.randn_like(torchs(input, **kwargs))
    threads = torch.get_num_threads()
    results = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            with cnnkernels.emulate_cuda():
                results.append(with_gradient(own, input, grad, kwargs))
    finally:
        torch.set_num_threads(threads)
    with cnnkernels.emulate_cuda():
        output, gradient = with_gradient_as_it_lies(own, shifted(input), shifted(grad), kwargs)
    for result in results:
        assert torch.equal(result[0], output) and torch.equal(result[1], gradient)


def with_gradient_as_it_lies(function, input, grad_output, kwargs):
    input = input.detach().requires_grad_()
    output = function(input, **kwargs)
    return output.detach(), torch.autograd.grad(output, input, grad_output)[0]
