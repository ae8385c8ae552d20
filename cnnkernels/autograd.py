"""Derivatives of the ops, and how a call is recorded.

Each op has one ``autograd.Function`` whose backward is made of the same set of ops, so every
order of derivative exists. The convolution is bilinear: with ``g`` the gradient of its output,

    conv2d_backward(g, input, weight) = (dgrad(g, weight), wgrad(g, input), sum(g))

and each of dgrad and wgrad is again bilinear, its derivatives being conv2d, dgrad and wgrad of
the other operands. The pools are linear in their input once the positions of the maxima are fixed.

The formulas are registered twice: as Functions, for calls from :mod:`cnnkernels.functional`, and
with ``torch.library`` on the raw ops, for graphs that hold them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format
from torch.autograd import Function, forward_ad

from cnnkernels import _C

_OPS = (
    "conv2d",
    "conv2d_backward",
    "max_pool2d",
    "max_pool2d_with_argmax",
    "max_pool2d_backward",
    "max_pool2d_gather",
    "avg_pool2d",
    "avg_pool2d_backward",
    "adaptive_max_pool2d",
    "adaptive_max_pool2d_with_argmax",
    "adaptive_max_pool2d_backward",
    "adaptive_max_pool2d_gather",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool2d_backward",
)


def _missing(*_: Any) -> None:
    _C.check_loaded()


_op: dict[str, Callable[..., Any]] = {
    name: getattr(torch.ops.cnnkernels, name).default if _C.load_error is None else _missing
    for name in _OPS
}


# ---------------------------------------------------------------- how a call is made


def transformed() -> bool:
    """Whether a functorch transform or a forward-mode level is active."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def recorded(*tensors: Tensor | None) -> bool:
    """Whether a call on these tensors must be differentiable."""
    if transformed():
        return True
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def call(name: str, *args: Any) -> Any:
    """Call an op without recording it: below its Autograd registration, which costs 6 us."""
    if torch.compiler.is_compiling():
        return _op[name](*args)
    with torch._C._AutoDispatchBelowAutograd():
        return _op[name](*args)


def apply(function: type[Function], *args: Any) -> Any:
    """Call a differentiable op.

    torch.compile gets the raw op, whose registered formulas it knows.

    A Function with ``setup_context`` serves functorch's transforms, but costs twice what one with
    a plain ``forward(ctx, ...)`` does: 19 against 10 us. So each has a plain twin for the rest.
    """
    if torch.compiler.is_compiling():
        return function.forward(*args)
    return (function if transformed() else _plain(function)).apply(*args)


_PLAIN: dict[type[Function], type[Function]] = {}


def _plain(function: type[Function]) -> type[Function]:
    if function not in _PLAIN:

        def forward(ctx: Any, *args: Any) -> Any:
            output = function.forward(*args)
            function.setup_context(ctx, args, output)
            return output

        members = {"forward": staticmethod(forward), "backward": staticmethod(function.backward)}
        _PLAIN[function] = type(function.__name__, (Function,), members)
    return _PLAIN[function]


def _is_channels_last(*tensors: Tensor) -> bool:
    # The first condition follows from the second, and tells most of NCHW in a tenth of the time.
    return any(
        t.stride(1) <= t.stride(3) and suggest_memory_format(t) == torch.channels_last
        for t in tensors
    )


# ---------------------------------------------------------------- convolution


class Conv2d(Function):
    """conv2d(input, weight, bias, stride, padding, dilation, groups, relu, emulate)."""

    @staticmethod
    def forward(*args):
        return call("conv2d", *args)

    @staticmethod
    def setup_context(ctx, inputs, output):
        input, weight, _, *ctx.geometry, relu, ctx.emulate = inputs
        need_input, need_weight, *_ = ctx.needs_input_grad
        ctx.save_for_backward(
            output if relu else None,
            input if need_weight else None,
            weight if need_input else None,
        )
        ctx.like = (input.shape, weight.shape, _is_channels_last(input, weight))

    @staticmethod
    def backward(ctx, grad_output):
        relu_output, input, weight = ctx.saved_tensors
        need_bias = ctx.needs_input_grad[2]
        rest = (input, weight, *ctx.like, *ctx.geometry, need_bias, ctx.emulate)
        if recorded(grad_output, input, weight):
            if relu_output is not None:
                grad_output = torch.ops.aten.threshold_backward(grad_output, relu_output, 0)
            grads = apply(Conv2dBackward, grad_output, None, *rest)
        else:
            grads = call("conv2d_backward", grad_output, relu_output, *rest)
        return *grads, *(None,) * 6


class Conv2dBackward(Function):
    """conv2d_backward; differentiable without relu_output, whose part Conv2d.backward takes."""

    @staticmethod
    def forward(*args):
        return call("conv2d_backward", *args)

    @staticmethod
    def setup_context(ctx, inputs, output):
        grad_output, relu_output, input, weight, *_ = inputs
        *ctx.geometry, ctx.need_bias, ctx.emulate = inputs[7:]
        ctx.like = inputs[4:7]
        if relu_output is not None and any(ctx.needs_input_grad):
            raise NotImplementedError("conv2d_backward with relu_output is not differentiable")
        ctx.save_for_backward(grad_output, input, weight)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, grad_grad_input, grad_grad_weight, grad_grad_bias):
        grad_output, input, weight = ctx.saved_tensors
        need_grad_output, _, need_input, need_weight, *_ = ctx.needs_input_grad

        def conv2d(input, weight):
            return differentiable(Conv2d, input, weight, None, *ctx.geometry, False, ctx.emulate)

        def backward(input, weight):
            rest = (*ctx.like, *ctx.geometry, False, ctx.emulate)
            return differentiable(Conv2dBackward, grad_output, None, input, weight, *rest)

        terms = []
        if need_grad_output:
            if grad_grad_input is not None:
                terms.append(conv2d(grad_grad_input, weight))
            if grad_grad_weight is not None:
                terms.append(conv2d(input, grad_grad_weight))
            if grad_grad_bias is not None:
                terms.append(grad_grad_bias.view(1, -1, 1, 1).expand_as(grad_output))
        return (
            sum(terms) if terms else None,
            None,
            backward(None, grad_grad_weight)[0]
            if need_input and grad_grad_weight is not None
            else None,
            backward(grad_grad_input, None)[1]
            if need_weight and grad_grad_input is not None
            else None,
            *(None,) * 9,
        )


# ---------------------------------------------------------------- pooling


# The formulas are the same for each way to lay out windows. Its ops take them as their arguments
# between the tensors and the last ones: the `geometry`.


def _named(op: str, *functions: type[Function]) -> tuple[type[Function], ...]:
    """The Functions with the names that grad_fn shows: of adaptive_max_pool2d AdaptiveMaxPool2d."""
    title = "".join(word.capitalize() for word in op.split("_"))
    for function, suffix in zip(functions, ("", "Backward", "Gather"), strict=False):
        function.__name__ = function.__qualname__ = title + suffix
    return functions


def _max_pool(name: str) -> tuple[type[Function], ...]:
    """The Functions of <name>_with_argmax, <name>_backward and <name>_gather."""

    class Pool(Function):
        """<name>_with_argmax(input, *geometry, indices, emulate)."""

        @staticmethod
        def forward(*args):
            return call(f"{name}_with_argmax", *args)

        @staticmethod
        def setup_context(ctx, inputs, output):
            input, *ctx.geometry, _, ctx.emulate = inputs
            _, argmax = output
            ctx.mark_non_differentiable(argmax)
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(argmax)
            ctx.like = (input.shape[2:], _is_channels_last(input))

        @staticmethod
        def backward(ctx, grad_output, _):
            others = (None,) * (len(ctx.geometry) + 2)
            if grad_output is None:
                return None, *others
            (argmax,) = ctx.saved_tensors
            rest = (argmax, *ctx.like, *ctx.geometry, ctx.emulate)
            return differentiable(PoolBackward, grad_output, *rest), *others

    class PoolBackward(Function):
        """<name>_backward(grad_output, argmax, input_size, channels_last, *geometry, emulate)."""

        @staticmethod
        def forward(*args):
            return call(f"{name}_backward", *args)

        @staticmethod
        def setup_context(ctx, inputs, output):
            _, argmax, _, _, *ctx.geometry, ctx.emulate = inputs
            ctx.save_for_backward(argmax)

        @staticmethod
        def backward(ctx, grad_grad_input):
            (argmax,) = ctx.saved_tensors
            rest = (argmax, *ctx.geometry, ctx.emulate)
            others = (None,) * (len(ctx.geometry) + 4)
            return differentiable(PoolGather, grad_grad_input, *rest), *others

    class PoolGather(Function):
        """<name>_gather(input, argmax, *geometry, emulate)."""

        @staticmethod
        def forward(*args):
            return call(f"{name}_gather", *args)

        @staticmethod
        def setup_context(ctx, inputs, output):
            input, argmax, *ctx.geometry, ctx.emulate = inputs
            ctx.save_for_backward(argmax)
            ctx.like = (input.shape[2:], _is_channels_last(input))

        @staticmethod
        def backward(ctx, grad_output):
            (argmax,) = ctx.saved_tensors
            rest = (argmax, *ctx.like, *ctx.geometry, ctx.emulate)
            others = (None,) * (len(ctx.geometry) + 2)
            return differentiable(PoolBackward, grad_output, *rest), *others

    return _named(name, Pool, PoolBackward, PoolGather)


def _avg_pool(name: str) -> tuple[type[Function], ...]:
    """The Functions of <name> and <name>_backward; `emulate` ends their geometry."""

    class Pool(Function):
        """<name>(input, *geometry)."""

        @staticmethod
        def forward(*args):
            return call(name, *args)

        @staticmethod
        def setup_context(ctx, inputs, output):
            input, *ctx.geometry = inputs
            ctx.like = (input.shape[2:], _is_channels_last(input))

        @staticmethod
        def backward(ctx, grad_output):
            rest = (*ctx.like, *ctx.geometry)
            others = (None,) * len(ctx.geometry)
            return differentiable(PoolBackward, grad_output, *rest), *others

    class PoolBackward(Function):
        """<name>_backward(grad_output, input_size, channels_last, *geometry)."""

        @staticmethod
        def forward(*args):
            return call(f"{name}_backward", *args)

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.geometry = inputs[3:]

        @staticmethod
        def backward(ctx, grad_grad_input):
            others = (None,) * (len(ctx.geometry) + 2)
            return differentiable(Pool, grad_grad_input, *ctx.geometry), *others

    return _named(name, Pool, PoolBackward)


MaxPool2d, MaxPool2dBackward, MaxPool2dGather = _max_pool("max_pool2d")
AvgPool2d, AvgPool2dBackward = _avg_pool("avg_pool2d")
AdaptiveMaxPool2d, AdaptiveMaxPool2dBackward, AdaptiveMaxPool2dGather = _max_pool(
    "adaptive_max_pool2d"
)
AdaptiveAvgPool2d, AdaptiveAvgPool2dBackward = _avg_pool("adaptive_avg_pool2d")


def differentiable(function: type[Function], *args: Any) -> Any:
    """Call `function`, recorded only if it has to be."""
    if recorded(*(arg for arg in args if isinstance(arg, Tensor))):
        return apply(function, *args)
    return function.forward(*args)


# ---------------------------------------------------------------- the raw ops


def _aten_conv_operands(input, padding):
    """Input and symmetric padding for aten; what 'same' pads at the far side only goes first."""
    top, bottom, left, right = padding
    if bottom == top and right == left:
        return input, [top, left]
    return torch.constant_pad_nd(input, [left, right, top, bottom]), [0, 0]


def _conv2d_fake(input, weight, bias, stride, padding, dilation, groups, relu, emulate):
    input, padding = _aten_conv_operands(input, padding)
    return torch.ops.aten.convolution(
        input, weight, bias, stride, padding, dilation, False, [0, 0], groups
    )


def _empty(like, size, channels_last, dtype=None):
    format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(size, dtype=dtype or like.dtype, device=like.device, memory_format=format)


def _conv2d_backward_fake(
    grad_output, relu_output, input, weight, input_size, weight_size, channels_last, *rest
):
    need_bias = rest[-2]
    return (
        None if weight is None else _empty(grad_output, input_size, channels_last),
        None if input is None else _empty(grad_output, weight_size, channels_last),
        grad_output.new_empty(weight_size[:1]) if need_bias else None,
    )


def _argmax_like(index, window):
    return torch.empty_like(index, dtype=torch.uint8 if window <= 254 else torch.int32)


def _max_pool2d_with_argmax_fake(input, kernel_size, *rest):
    *geometry, indices, _ = rest
    output, index = torch.ops.aten.max_pool2d_with_indices(input, kernel_size, *geometry)
    return output, index if indices else _argmax_like(index, kernel_size[0] * kernel_size[1])


def _max_pool2d_fake(input, *geometry_emulate):
    return torch.ops.aten.max_pool2d_with_indices(input, *geometry_emulate[:-1])[0]


def _avg_pool2d_fake(input, *geometry_emulate):
    return torch.ops.aten.avg_pool2d(input, *geometry_emulate[:-1])


def _longest_adaptive_window(size, count):  # as in csrc/problem.h
    if count == 0:
        return 0
    rest = size % count
    return size // count + (0 if rest == 0 else 1 if count % rest == 0 else 2)


def _adaptive_max_pool2d_with_argmax_fake(input, output_size, indices, _):
    output, index = torch.ops.aten.adaptive_max_pool2d(input, output_size)
    if indices:
        return output, index
    R, S = map(_longest_adaptive_window, input.shape[2:], output_size)
    return output, _argmax_like(index, R * S)


def _adaptive_max_pool2d_fake(input, output_size, _):
    return torch.ops.aten.adaptive_max_pool2d(input, output_size)[0]


def _adaptive_avg_pool2d_fake(input, output_size, _):
    return torch.ops.aten._adaptive_avg_pool2d(input, output_size)


def _max_pool_backward_fake(grad_output, argmax, input_size, channels_last, *_):
    return _empty(grad_output, (*grad_output.shape[:2], *input_size), channels_last)


def _max_pool_gather_fake(input, argmax, *_):
    return torch.empty_like(argmax, dtype=input.dtype)


def _avg_pool_backward_fake(grad_output, input_size, channels_last, *_):
    return _empty(grad_output, (*grad_output.shape[:2], *input_size), channels_last)


def _register() -> None:
    fakes = {
        "conv2d": _conv2d_fake,
        "conv2d_backward": _conv2d_backward_fake,
        "max_pool2d": _max_pool2d_fake,
        "max_pool2d_with_argmax": _max_pool2d_with_argmax_fake,
        "max_pool2d_backward": _max_pool_backward_fake,
        "max_pool2d_gather": _max_pool_gather_fake,
        "avg_pool2d": _avg_pool2d_fake,
        "avg_pool2d_backward": _avg_pool_backward_fake,
        "adaptive_max_pool2d": _adaptive_max_pool2d_fake,
        "adaptive_max_pool2d_with_argmax": _adaptive_max_pool2d_with_argmax_fake,
        "adaptive_max_pool2d_backward": _max_pool_backward_fake,
        "adaptive_max_pool2d_gather": _max_pool_gather_fake,
        "adaptive_avg_pool2d": _adaptive_avg_pool2d_fake,
        "adaptive_avg_pool2d_backward": _avg_pool_backward_fake,
    }
    functions = {
        "conv2d": Conv2d,
        "conv2d_backward": Conv2dBackward,
        "max_pool2d_with_argmax": MaxPool2d,
        "max_pool2d_backward": MaxPool2dBackward,
        "max_pool2d_gather": MaxPool2dGather,
        "avg_pool2d": AvgPool2d,
        "avg_pool2d_backward": AvgPool2dBackward,
        "adaptive_max_pool2d_with_argmax": AdaptiveMaxPool2d,
        "adaptive_max_pool2d_backward": AdaptiveMaxPool2dBackward,
        "adaptive_max_pool2d_gather": AdaptiveMaxPool2dGather,
        "adaptive_avg_pool2d": AdaptiveAvgPool2d,
        "adaptive_avg_pool2d_backward": AdaptiveAvgPool2dBackward,
    }
    for name, fake in fakes.items():
        torch.library.register_fake(f"cnnkernels::{name}", fake)
    for name, function in functions.items():
        torch.library.register_autograd(
            f"cnnkernels::{name}", function.backward, setup_context=function.setup_context
        )


if _C.load_error is None:
    _register()
