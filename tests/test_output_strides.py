"""Results have torch's strides for every pair of input and weight formats.

Torch's rule: a convolution's results are channels_last if its input or its weight is, whatever the
dtype; a pool follows its input. Where a size of 1 leaves the format open, it is the one that
``Tensor.suggest_memory_format`` names. These of torch's habits are not followed:

- In a gradient of the weight, the strides of dimensions of size 1, which place nothing in memory,
  differ between the libraries that torch picks by dtype, sizes and number of threads.
- A gradient without elements takes the strides of the tensor it is for.
- The gradient of a global average (adaptive, to size 1) is contiguous whatever the input's format;
  ours has the input's, as those of all other pools.
"""

import itertools
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

import cnnkernels
import cnnkernels.functional as ours


def channels_last(tensor):
    """With that format's strides also where C = 1, which .contiguous() would leave alone."""
    return torch.empty_like(tensor, memory_format=torch.channels_last).copy_(tensor)


def cropped(tensor):
    return F.pad(tensor, (1, 2, 2, 1))[..., 2:-1, 1:-2]


LAYOUTS = {
    "contiguous": lambda t: t,
    "channels_last": channels_last,
    "cropped": cropped,
    "channels_last_cropped": lambda t: channels_last(F.pad(t, (1, 2, 2, 1)))[..., 2:-1, 1:-2],
    "channels_sliced": lambda t: t.repeat_interleave(2, 1)[:, ::2],
    "transposed": lambda t: t.transpose(-1, -2).contiguous().transpose(-1, -2),
    "expanded": lambda t: t[:1].expand_as(t),
}

# Input, weight, keyword arguments: among them those whose strides are ambiguous.
CONVOLUTIONS = {
    "plain": ((2, 6, 9, 8), (4, 6, 3, 3), {}),
    "one_channel": ((2, 1, 9, 8), (4, 1, 3, 3), {}),
    "one_image": ((1, 6, 9, 8), (4, 6, 3, 3), dict(stride=2, padding=1)),
    "one_pixel": ((2, 6, 1, 1), (4, 6, 1, 1), {}),
    "one_of_all": ((1, 1, 1, 1), (1, 1, 1, 1), {}),
    "one_filter": ((2, 6, 9, 8), (1, 6, 3, 3), {}),
    "pointwise": ((2, 6, 9, 8), (4, 6, 1, 1), {}),
    "depthwise": ((2, 6, 9, 8), (6, 1, 3, 3), dict(groups=6)),
    "groups": ((2, 6, 9, 8), (4, 3, 3, 3), dict(groups=2)),
    "dilated": ((2, 6, 9, 8), (4, 6, 3, 3), dict(dilation=2)),
    "one_output_pixel": ((2, 6, 3, 3), (4, 6, 3, 3), {}),
    "many_images": ((16, 6, 9, 8), (4, 6, 3, 3), {}),
    "same": ((2, 6, 9, 8), (4, 6, 3, 2), dict(padding="same")),
    "empty_batch": ((0, 6, 9, 8), (4, 6, 3, 3), {}),
}
POOLS = {
    "plain": ((2, 6, 9, 8), {}),
    "one_channel": ((2, 1, 9, 8), {}),
    "one_image": ((1, 6, 9, 8), dict(stride=1)),
    "one_output_pixel": ((2, 6, 2, 2), {}),
    "ceil": ((2, 6, 9, 9), dict(ceil_mode=True)),
    "one_pixel": ((2, 6, 1, 1), dict(padding=1)),
    "one_pixel_one_channel": ((2, 1, 1, 1), dict(padding=1, stride=1)),
    "row": ((2, 6, 1, 8), dict(padding=1)),
    "empty_batch": ((0, 6, 9, 8), {}),
}


def layout_of(tensor):
    """Strides where they mean something: of dimensions larger than one."""
    pairs = zip(tensor.stride(), tensor.shape, strict=True)
    return [stride if size > 1 else None for stride, size in pairs]


@pytest.mark.parametrize("emulate", [False, True], ids=["native", "emulated"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_conv2d(case, dtype, emulate):
    """Strides to the letter; of grad_weight where its sizes are not one."""
    shape, weight_shape, kwargs = CONVOLUTIONS[case]
    for layout, weight_layout in itertools.product(LAYOUTS, LAYOUTS):
        input = LAYOUTS[layout](torch.randn(shape, dtype=dtype)).requires_grad_()
        weight = LAYOUTS[weight_layout](torch.randn(weight_shape, dtype=dtype)).requires_grad_()
        expected = F.conv2d(input, weight, **kwargs)
        with cnnkernels.emulate_cuda() if emulate else nullcontext():
            output = ours.conv2d(input, weight, **kwargs)
        assert output.stride() == expected.stride(), (layout, weight_layout)
        if case == "empty_batch":
            continue
        grads = torch.autograd.grad(output, (input, weight), torch.ones_like(output))
        references = torch.autograd.grad(expected, (input, weight), torch.ones_like(expected))
        assert grads[0].stride() == references[0].stride(), (layout, weight_layout)
        assert layout_of(grads[1]) == layout_of(references[1]), (layout, weight_layout)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("pool", ["max_pool2d", "avg_pool2d"])
@pytest.mark.parametrize("case", POOLS)
def test_pools(backend, case, pool, dtype):
    shape, kwargs = POOLS[case]
    for layout in LAYOUTS:
        input = LAYOUTS[layout](torch.randn(shape, dtype=dtype, device=backend.device))
        without_gradient = getattr(ours, pool)(input, 2, **kwargs)
        input.requires_grad_()
        output = getattr(ours, pool)(input, 2, **kwargs)
        expected = getattr(F, pool)(input, 2, **kwargs)
        assert output.stride() == without_gradient.stride() == expected.stride(), layout
        for grad_layout in ("contiguous", "channels_last"):
            grad_output = LAYOUTS[grad_layout](torch.ones_like(output))
            (grad,) = torch.autograd.grad(output, input, grad_output, retain_graph=True)
            (reference,) = torch.autograd.grad(expected, input, grad_output, retain_graph=True)
            assert grad.stride() == reference.stride(), (layout, grad_layout)
        if pool == "max_pool2d":
            _, indices = ours.max_pool2d(input, 2, **kwargs, return_indices=True)
            _, expected = F.max_pool2d(input, 2, **kwargs, return_indices=True)
            assert indices.stride() == expected.stride(), layout


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("pool", ["adaptive_max_pool2d", "adaptive_avg_pool2d"])
@pytest.mark.parametrize("size", [1, 2, (1, 3), (None, 1), (3, 5)], ids=str)
@pytest.mark.parametrize("shape", [shape for shape, _ in POOLS.values()], ids=str)
def test_adaptive_pools(backend, shape, size, pool, dtype):
    for layout in LAYOUTS:
        input = LAYOUTS[layout](torch.randn(shape, dtype=dtype, device=backend.device))
        without_gradient = getattr(ours, pool)(input, size)
        with FakeTensorMode() as mode:
            fake = getattr(ours, pool)(mode.from_tensor(input), size)
        input.requires_grad_()
        output = getattr(ours, pool)(input, size)
        expected = getattr(F, pool)(input, size)
        assert output.stride() == without_gradient.stride() == expected.stride(), layout
        assert fake.stride() == output.stride(), layout
        is_global = pool == "adaptive_avg_pool2d" and output.shape[2:] == (1, 1)
        for grad_layout in ("contiguous", "channels_last"):
            grad_output = LAYOUTS[grad_layout](torch.ones_like(output))
            (grad,) = torch.autograd.grad(output, input, grad_output, retain_graph=True)
            like = ours.avg_pool2d(input, 1) if is_global else expected
            (reference,) = torch.autograd.grad(
                like, input, grad_output.expand_as(like), retain_graph=True
            )
            assert grad.stride() == reference.stride(), (layout, grad_layout)
        if pool == "adaptive_max_pool2d":
            _, indices = ours.adaptive_max_pool2d(input, size, return_indices=True)
            _, expected = F.adaptive_max_pool2d(input, size, return_indices=True)
            assert indices.stride() == expected.stride(), layout


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_fake_kernels_agree(case):
    shape, weight_shape, kwargs = CONVOLUTIONS[case]
    for layout, weight_layout in itertools.product(LAYOUTS, LAYOUTS):
        input, weight = LAYOUTS[layout](torch.randn(shape)), torch.randn(weight_shape)
        weight = LAYOUTS[weight_layout](weight)
        real = ours.conv2d(input, weight, **kwargs)
        with FakeTensorMode() as mode:
            fake = ours.conv2d(mode.from_tensor(input), mode.from_tensor(weight), **kwargs)
        assert fake.stride() == real.stride(), (layout, weight_layout)
