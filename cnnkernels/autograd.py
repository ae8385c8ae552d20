"""Derivatives of the ops, and how a call is recorded.

Each op has one ``autograd.Function`` whose backward is made of the same set of ops, so every
order of derivative exists. The convolution is bilinear: with ``g`` the gradient of its output,

    conv2d_backward(g, input, weight) = (dgrad(g, weight), wgrad(g, input), sum(g))

and each of dgrad and wgrad is again bilinear, its derivatives being conv2d, dgrad and wgrad of
the other operands. The pools are linear in their input once the positions of the maxima are fixed.
So the tangents of forward mode are made of the same ops, too. Under vmap the new dimension is
folded into one that is there, and the op is called once.

The formulas are registered twice: as Functions, for calls from :mod:`cnnkernels.functional`, and
with ``torch.library`` on the raw ops, for graphs that hold them.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format
from torch.autograd import Function, forward_ad
from torch.autograd.function import _SingleLevelFunction

from cnnkernels import _C

_OPS = (
    "conv2d",
    "conv2d_backward",
    "conv2d_relu_pool2d",
    "conv2d_relu_pool2d_backward",
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


class _Missing:
    """Stands for an op of a library that did not load."""

    def __call__(self, *_: Any) -> None:
        _C.check_loaded()

    _op = __call__


_op: dict[str, Any] = {
    name: getattr(torch.ops.cnnkernels, name).default if _C.load_error is None else _Missing()
    for name in _OPS
}

# Those that are called only where no derivative is wanted: none is registered.
_INFERENCE_OPS = {"max_pool2d", "adaptive_max_pool2d"}

# Bound once: looked up on each call, these names cost as much as some of what they name does.
_functorch_active = torch._C._are_functorch_transforms_active
_is_compiling = torch.compiler.is_compiling
_BelowAutograd = torch._C._AutoDispatchBelowAutograd


# ---------------------------------------------------------------- how a call is made


def transformed() -> bool:
    """Whether a functorch transform or a forward-mode level is active."""
    return _functorch_active() or forward_ad._current_level >= 0


def forward_mode() -> bool:
    """Whether a forward-mode level is active: :func:`torch.func.jvp`, dual tensors."""
    return forward_ad._current_level >= 0


def recorded(*tensors: Tensor | None) -> bool:
    """Whether a call on these tensors must be differentiable."""
    if torch.is_grad_enabled():
        for tensor in tensors:  # any() with a generator takes three times as long
            if tensor is not None and tensor.requires_grad:
                return True
    return _functorch_active() or forward_ad._current_level >= 0  # transformed()


def call(name: str, *args: Any) -> Any:
    """Call an op without recording it: below its Autograd registration, which costs 6 us."""
    op = _op[name]
    if _is_compiling():
        return op(*args)
    if name in _INFERENCE_OPS:
        return op._op(*args)  # what op() calls
    guard = _BelowAutograd()  # works while it lives; as a context manager it takes twice as long
    try:
        return op._op(*args)
    finally:
        del guard


def apply(function: type[Function], *args: Any) -> Any:
    """Call a differentiable op.

    torch.compile gets the raw op, whose registered formulas it knows. It cannot trace a jvp, and of
    the raw op forward mode would get no tangent: under a transform it breaks the graph here.

    A Function with ``setup_context`` serves functorch's transforms, but costs twice what one with
    a plain ``forward(ctx, ...)`` does. So each has a plain twin for the rest.
    """
    if transformed():
        if _is_compiling():
            return torch.compiler.disable(function.apply)(*args)
        return function.apply(*args)
    if _is_compiling():
        return function.forward(*args)
    return _plain(function).apply(*args)


_PLAIN: dict[type[Function], type[_SingleLevelFunction]] = {}


def _plain(function: type[Function]) -> type[_SingleLevelFunction]:
    if function not in _PLAIN:

        def forward(ctx: Any, *args: Any) -> Any:
            output = function.forward(*args)
            function.setup_context(ctx, args, output)
            return output

        # The base of Function, whose apply() asks for transforms once more.
        members = {"forward": staticmethod(forward), "backward": staticmethod(function.backward)}
        _PLAIN[function] = type(function.__name__, (_SingleLevelFunction,), members)
    return _PLAIN[function]


def _save(ctx: Any, *tensors: Tensor | None) -> None:
    """Keep tensors for backward, and in forward mode for jvp."""
    ctx.save_for_backward(*tensors)
    if forward_mode():
        ctx.save_for_forward(*tensors)


def _jvp(formula: Callable[..., Any]) -> staticmethod:
    """The jvp of a Function from formula(ctx, saved tensors, *tangents).

    Torch turns forward mode off around a jvp: of jvp inside of jvp, it would silently lose the
    outer tangents. So it is turned on again, and what this level saved goes without its tangents.
    """

    @wraps(formula)
    def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
        with forward_ad._set_fwd_grad_enabled(True):
            saved = [
                t if t is None else forward_ad.unpack_dual(t).primal for t in ctx.saved_tensors
            ]
            return formula(ctx, saved, *tangents)

    return staticmethod(jvp)


def _is_channels_last(*tensors: Tensor) -> bool:
    for t in tensors:
        # The first condition follows from the second, and tells most of NCHW in a tenth of the time
        if t.stride(1) <= t.stride(3) and suggest_memory_format(t) == torch.channels_last:
            return True
    return False


# ---------------------------------------------------------------- vmap


def _fold(tensor: Tensor, batch_dim: int, axis: int, outer: int = 1) -> Tensor:
    """Merge the batch dimension into `axis` of the rest, inside of its first `outer` parts."""
    parts = tensor.movedim(batch_dim, 0).unflatten(axis + 1, (outer, -1))
    return parts.movedim(0, axis + 1).flatten(axis, axis + 2)


def _unfold(tensor: Tensor, batch_size: int, axis: int, outer: int = 1) -> Tensor:
    """Undo _fold; the batch dimension comes first."""
    parts = tensor.unflatten(axis, (outer, batch_size, -1))
    return parts.movedim(axis + 1, 0).flatten(axis + 1, axis + 2)


class PlanewiseFunction(Function):
    """A Function that treats all planes alike, so that vmap can fold its dimension into N."""

    @classmethod
    def vmap(cls, info, in_dims, *args):
        def fold(arg, dim):
            if not isinstance(arg, Tensor):
                return arg
            arg = arg.expand(info.batch_size, *arg.shape) if dim is None else arg.movedim(dim, 0)
            return arg.flatten(0, 1)

        outputs = differentiable(cls, *map(fold, args, in_dims))
        if isinstance(outputs, Tensor):
            return _unfold(outputs, info.batch_size, 0), 0
        return tuple(_unfold(output, info.batch_size, 0) for output in outputs), (0,) * len(outputs)


# What a batch of convolutions folds its dimension into: the axis that grows in each tensor and, in
# how many parts that axis is cut before (None: one for each group). A pass sums over one of N, C
# and K; a dimension that only one of its operands has goes into the other one of that operand's
# own. One that both have makes more groups.
_FOLDS: dict[str | None, dict[str, tuple[int, int | None]]] = {
    None: {},
    "N": {"input": (0, 1), "output": (0, 1)},
    "C": {"input": (1, None), "weight": (1, 1)},
    "K": {"weight": (0, None), "bias": (0, None), "output": (1, None)},
    "groups": {"input": (1, 1), "weight": (0, 1), "bias": (0, 1), "output": (1, 1)},
}


def _choose_fold(first: tuple[bool, str], second: tuple[bool, str]) -> str | None:
    """The fold of a pass: for each operand, is it batched, and where does it go if it alone is."""
    if first[0] and second[0]:
        return "groups"
    return next((dimension for batched, dimension in (first, second) if batched), None)


class _ConvFold:
    """One of _FOLDS, for a batch size and a number of groups."""

    def __init__(self, dimension: str | None, batch_size: int, groups: int):
        self.batch_size = batch_size
        self.groups = groups * batch_size if dimension == "groups" else groups
        self.places = {
            role: (axis, outer or groups) for role, (axis, outer) in _FOLDS[dimension].items()
        }

    def fold(self, role: str, tensor: Tensor | None, batch_dim: int | None) -> Tensor | None:
        if tensor is None or role not in self.places:
            return tensor
        if batch_dim is None:
            tensor, batch_dim = tensor.expand(self.batch_size, *tensor.shape), 0
        return _fold(tensor, batch_dim, *self.places[role])

    def unfold(self, role: str, tensor: Tensor) -> tuple[Tensor, int | None]:
        """A result, and its batch dimension."""
        if role not in self.places:
            return tensor, None
        return _unfold(tensor, self.batch_size, *self.places[role]), 0


# ---------------------------------------------------------------- convolution


class Conv2d(Function):
    """conv2d(input, weight, bias, *geometry, relu, kernels); see ops.cpp for the geometry."""

    @staticmethod
    def forward(*args):
        return call("conv2d", *args)

    @staticmethod
    def setup_context(ctx, inputs, output):
        input, weight, _, *ctx.geometry, relu, ctx.kernels = inputs
        need_input, need_weight, *_ = ctx.needs_input_grad
        _save(
            ctx,
            output if relu else None,
            input if need_weight or forward_mode() else None,
            weight if need_input or forward_mode() else None,
        )
        ctx.like = (*input.shape[1:], *weight.shape[2:], _is_channels_last(input, weight))
        if forward_mode():
            ctx.output_size = output.shape
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, grad_output):
        if grad_output is None:
            return (None,) * 14
        relu_output, input, weight = ctx.saved_tensors
        need_bias = ctx.needs_input_grad[2]
        rest = (input, weight, *ctx.like, *ctx.geometry, need_bias, ctx.kernels)
        if recorded(grad_output, input, weight):
            if relu_output is not None:
                grad_output = torch.ops.aten.threshold_backward(grad_output, relu_output, 0)
            grads = apply(Conv2dBackward, grad_output, None, *rest)
        else:
            grads = call("conv2d_backward", grad_output, relu_output, *rest)
        return *grads, *(None,) * 11

    @_jvp
    def jvp(ctx, saved, input_tangent, weight_tangent, bias_tangent, *_):
        relu_output, input, weight = saved

        def conv2d(input, weight):
            return differentiable(Conv2d, input, weight, None, *ctx.geometry, False, ctx.kernels)

        terms = []
        if input_tangent is not None:
            terms.append(conv2d(input_tangent, weight))
        if weight_tangent is not None:
            terms.append(conv2d(input, weight_tangent))
        if bias_tangent is not None:
            terms.append(bias_tangent.view(1, -1, 1, 1).expand(ctx.output_size))
        tangent = sum(terms[1:], terms[0])
        if relu_output is None:
            return tangent
        return torch.ops.aten.threshold_backward(tangent, relu_output, 0)

    @staticmethod
    def vmap(info, in_dims, input, weight, bias, *rest):
        *geometry, groups, relu, kernels = rest
        input_dim, weight_dim, bias_dim, *_ = in_dims
        batched_filters = weight_dim is not None or bias_dim is not None
        dimension = _choose_fold((input_dim is not None, "N"), (batched_filters, "K"))
        fold = _ConvFold(dimension, info.batch_size, groups)
        output = differentiable(
            Conv2d,
            fold.fold("input", input, input_dim),
            fold.fold("weight", weight, weight_dim),
            fold.fold("bias", bias, bias_dim),
            *geometry,
            fold.groups,
            relu,
            kernels,
        )
        return fold.unfold("output", output)


class Conv2dBackward(Function):
    """conv2d_backward; differentiable without relu_output, whose part Conv2d.backward takes."""

    @staticmethod
    def forward(*args):
        return call("conv2d_backward", *args)

    @staticmethod
    def setup_context(ctx, inputs, output):
        grad_output, relu_output, input, weight = inputs[:4]
        ctx.like = inputs[4:10]
        *ctx.geometry, ctx.need_bias, ctx.kernels = inputs[10:]
        if relu_output is not None and (any(ctx.needs_input_grad) or forward_mode()):
            raise NotImplementedError("conv2d_backward with relu_output is not differentiable")
        _save(ctx, grad_output, input, weight)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, grad_grad_input, grad_grad_weight, grad_grad_bias):
        grad_output, input, weight = ctx.saved_tensors
        need_grad_output, _, need_input, need_weight, *_ = ctx.needs_input_grad

        def conv2d(input, weight):
            return differentiable(Conv2d, input, weight, None, *ctx.geometry, False, ctx.kernels)

        def backward(input, weight):
            rest = (*ctx.like, *ctx.geometry, False, ctx.kernels)
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
            *(None,) * 17,
        )

    @_jvp
    def jvp(ctx, saved, grad_tangent, _, input_tangent, weight_tangent, *rest):
        grad_output, input, weight = saved

        def backward(grad_output, input, weight, need_bias):
            rest = (*ctx.like, *ctx.geometry, need_bias, ctx.kernels)
            return differentiable(Conv2dBackward, grad_output, None, input, weight, *rest)

        terms = []
        if grad_tangent is not None:
            terms.append(backward(grad_tangent, input, weight, ctx.need_bias))
        if input_tangent is not None or weight_tangent is not None:
            terms.append(backward(grad_output, input_tangent, weight_tangent, False))
        input_size, weight_size = _conv_sizes(grad_output, *ctx.like, ctx.geometry[-1])
        results = (
            (weight is not None, input_size),
            (input is not None, weight_size),
            (ctx.need_bias, weight_size[:1]),
        )
        return tuple(
            sum((term[i] for term in terms if term[i] is not None), grad_output.new_zeros(size))
            if wanted
            else None
            for i, (wanted, size) in enumerate(results)
        )

    @staticmethod
    def vmap(info, in_dims, grad_output, relu_output, input, weight, *rest):
        like, geometry, (groups, need_bias, kernels) = rest[:6], rest[6:14], rest[14:]
        grad_dim, relu_dim, input_dim, weight_dim, *_ = in_dims
        batched_grad = grad_dim is not None or relu_dim is not None

        def gradient(index, role, dimension, input=None, weight=None, need_bias=False):
            fold = _ConvFold(dimension, info.batch_size, groups)
            gradients = differentiable(
                Conv2dBackward,
                fold.fold("output", grad_output, grad_dim),
                fold.fold("output", relu_output, relu_dim),
                fold.fold("input", input, input_dim),
                fold.fold("weight", weight, weight_dim),
                like[0] * (info.batch_size if dimension in ("C", "groups") else 1),
                *like[1:],
                *geometry,
                fold.groups,
                need_bias,
                kernels,
            )
            return fold.unfold(role, gradients[index])

        results = [(None, None)] * 3
        if weight is not None:
            dimension = _choose_fold((batched_grad, "N"), (weight_dim is not None, "C"))
            results[0] = gradient(0, "input", dimension, weight=weight)
        if input is not None:
            dimension = _choose_fold((batched_grad, "K"), (input_dim is not None, "C"))
            results[1] = gradient(1, "weight", dimension, input=input)
        if need_bias:
            results[2] = gradient(2, "bias", "K" if batched_grad else None, need_bias=True)
        return tuple(zip(*results, strict=True))


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

    class Pool(PlanewiseFunction):
        """<name>_with_argmax(input, *geometry, indices, kernels)."""

        @staticmethod
        def forward(*args):
            return call(f"{name}_with_argmax", *args)

        @staticmethod
        def setup_context(ctx, inputs, output):
            input, *ctx.geometry, _, ctx.kernels = inputs
            _, argmax = output
            ctx.mark_non_differentiable(argmax)
            ctx.set_materialize_grads(False)
            _save(ctx, argmax)
            ctx.like = (*input.shape[2:], _is_channels_last(input))

        @staticmethod
        def backward(ctx, grad_output, _):
            others = (None,) * (len(ctx.geometry) + 2)
            if grad_output is None:
                return None, *others
            (argmax,) = ctx.saved_tensors
            rest = (argmax, *ctx.like, *ctx.geometry, ctx.kernels)
            return differentiable(PoolBackward, grad_output, *rest), *others

        @_jvp
        def jvp(ctx, saved, tangent, *_):
            rest = (*saved, *ctx.geometry, ctx.kernels)
            return differentiable(PoolGather, tangent, *rest), None

    class PoolBackward(PlanewiseFunction):
        """<name>_backward(grad_output, argmax, H, W, channels_last, *geometry, kernels)."""

        @staticmethod
        def forward(*args):
            return call(f"{name}_backward", *args)

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.like = inputs[2:5]
            *ctx.geometry, ctx.kernels = inputs[5:]
            _save(ctx, inputs[1])

        @staticmethod
        def backward(ctx, grad_grad_input):
            (argmax,) = ctx.saved_tensors
            rest = (argmax, *ctx.geometry, ctx.kernels)
            others = (None,) * (len(ctx.geometry) + 5)
            return differentiable(PoolGather, grad_grad_input, *rest), *others

        @_jvp
        def jvp(ctx, saved, tangent, *_):
            rest = (*saved, *ctx.like, *ctx.geometry, ctx.kernels)
            return differentiable(PoolBackward, tangent, *rest)

    class PoolGather(PlanewiseFunction):
        """<name>_gather(input, argmax, *geometry, kernels)."""

        @staticmethod
        def forward(*args):
            return call(f"{name}_gather", *args)

        @staticmethod
        def setup_context(ctx, inputs, output):
            input, argmax, *ctx.geometry, ctx.kernels = inputs
            _save(ctx, argmax)
            ctx.like = (*input.shape[2:], _is_channels_last(input))

        @staticmethod
        def backward(ctx, grad_output):
            (argmax,) = ctx.saved_tensors
            rest = (argmax, *ctx.like, *ctx.geometry, ctx.kernels)
            others = (None,) * (len(ctx.geometry) + 2)
            return differentiable(PoolBackward, grad_output, *rest), *others

        @_jvp
        def jvp(ctx, saved, tangent, *_):
            rest = (*saved, *ctx.geometry, ctx.kernels)
            return differentiable(PoolGather, tangent, *rest)

    return _named(name, Pool, PoolBackward, PoolGather)


def _avg_pool(name: str) -> tuple[type[Function], ...]:
    """The Functions of <name> and <name>_backward; `kernels` ends their geometry."""

    class Pool(PlanewiseFunction):
        """<name>(input, *geometry)."""

        @staticmethod
        def forward(*args):
            return call(name, *args)

        @staticmethod
        def setup_context(ctx, inputs, output):
            input, *ctx.geometry = inputs
            ctx.like = (*input.shape[2:], _is_channels_last(input))

        @staticmethod
        def backward(ctx, grad_output):
            rest = (*ctx.like, *ctx.geometry)
            others = (None,) * len(ctx.geometry)
            return differentiable(PoolBackward, grad_output, *rest), *others

        @_jvp
        def jvp(ctx, saved, tangent, *_):
            return differentiable(Pool, tangent, *ctx.geometry)

    class PoolBackward(PlanewiseFunction):
        """<name>_backward(grad_output, H, W, channels_last, *geometry)."""

        @staticmethod
        def forward(*args):
            return call(f"{name}_backward", *args)

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.like, ctx.geometry = inputs[1:4], inputs[4:]

        @staticmethod
        def backward(ctx, grad_grad_input):
            others = (None,) * (len(ctx.geometry) + 3)
            return differentiable(Pool, grad_grad_input, *ctx.geometry), *others

        @_jvp
        def jvp(ctx, saved, tangent, *_):
            return differentiable(PoolBackward, tangent, *ctx.like, *ctx.geometry)

    return _named(name, Pool, PoolBackward)


MaxPool2d, MaxPool2dBackward, MaxPool2dGather = _max_pool("max_pool2d")
AvgPool2d, AvgPool2dBackward = _avg_pool("avg_pool2d")
AdaptiveMaxPool2d, AdaptiveMaxPool2dBackward, AdaptiveMaxPool2dGather = _max_pool(
    "adaptive_max_pool2d"
)
AdaptiveAvgPool2d, AdaptiveAvgPool2dBackward = _avg_pool("adaptive_avg_pool2d")


class Conv2dReluPool2d(Function):
    """conv2d_relu_pool2d(input, weight, bias, *conv, *pool, average, *divisor, keep_code, kernels).

    For plain reverse mode alone: functional.py composes the ops where anything else is active. The
    second derivative is that of the composition, computed anew.
    """

    @staticmethod
    def forward(*args):
        return call("conv2d_relu_pool2d", *args)

    @staticmethod
    def setup_context(ctx, inputs, output):
        input, weight, bias = inputs[:3]
        ctx.geometry, ctx.kernels = inputs[3:-2], inputs[-1]
        ctx.like = (*input.shape[1:], *weight.shape[2:], _is_channels_last(input, weight))
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[1], input, weight, bias)

    @staticmethod
    def backward(ctx, grad_output, _):
        others = (None,) * (len(ctx.geometry) + 2)
        if grad_output is None:
            return None, None, None, *others
        code, input, weight, bias = ctx.saved_tensors
        needs = ctx.needs_input_grad[:3]
        if recorded(grad_output, input, weight, bias):
            return *_grads_of_composition(ctx, grad_output, (input, weight, bias), needs), *others
        operands = (input if needs[1] else None, weight if needs[0] else None)
        rest = (*operands, *ctx.like, *ctx.geometry, needs[2], ctx.kernels)
        return *call("conv2d_relu_pool2d_backward", grad_output, code, *rest), *others


def _grads_of_composition(ctx, grad_output, tensors, needs):
    with torch.enable_grad():
        output = conv2d_relu_then_pool2d(*tensors, *ctx.geometry, ctx.kernels)
    wanted = [tensor for tensor, need in zip(tensors, needs, strict=True) if need]
    grads = iter(torch.autograd.grad(output, wanted, grad_output, create_graph=True))
    return [next(grads) if need else None for need in needs]


def conv2d_relu_then_pool2d(input, weight, bias, *rest):
    """What the fused op computes, by one op after the other: differentiable in every way."""
    conv, window, dilation, ceil_mode = rest[:9], rest[9:15], rest[15:17], rest[17]
    average, *divisor, kernels = rest[18:]
    output = differentiable(Conv2d, input, weight, bias, *conv, True, kernels)
    if average:
        return differentiable(AvgPool2d, output, *window, ceil_mode, *divisor, kernels)
    args = (output, *window, *dilation, ceil_mode)
    if recorded(output):
        return apply(MaxPool2d, *args, False, kernels)[0]
    return call("max_pool2d", *args, kernels)


def differentiable(function: type[Function], *args: Any) -> Any:
    """Call `function`, recorded only if it has to be."""
    if transformed() or (
        torch.is_grad_enabled()
        and any(arg.requires_grad for arg in args if isinstance(arg, Tensor))
    ):
        return apply(function, *args)
    return function.forward(*args)


# ---------------------------------------------------------------- the raw ops


def _conv_sizes(grad_output, C, H, W, R, S, _, groups):
    """Of input and weight."""
    N, K, *_ = grad_output.shape
    return (N, C, H, W), (K, C // groups, R, S)


def _aten_conv_operands(input, top, bottom, left, right):
    """Input and symmetric padding for aten; what 'same' pads at the far side only goes first."""
    if bottom == top and right == left:
        return input, [top, left]
    return torch.constant_pad_nd(input, [left, right, top, bottom]), [0, 0]


def _check_kinds(input, **others):
    """What aten's meta function does not ask."""
    for name, tensor in others.items():
        if tensor is None:
            continue
        if tensor.device != input.device:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but Input and {name} are not"
            )
        if tensor.dtype != input.dtype:
            raise RuntimeError(
                f"Input type ({input.dtype}) and {name} type ({tensor.dtype}) should be the same"
            )


def _conv2d_fake(input, weight, bias, *rest):
    stride, padding, dilation, groups = rest[:2], rest[2:6], rest[6:8], rest[8]
    _check_kinds(input, weight=weight, bias=bias)
    if any(size <= 0 for size in stride):
        raise RuntimeError("non-positive stride is not supported")
    input, padding = _aten_conv_operands(input, *padding)
    return torch.ops.aten.convolution(
        input, weight, bias, stride, padding, dilation, False, [0, 0], groups
    )


def _empty(like, size, channels_last, dtype=None):
    format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(size, dtype=dtype or like.dtype, device=like.device, memory_format=format)


def _conv2d_backward_fake(grad_output, relu_output, input, weight, *rest):
    like, (groups, need_bias, _) = rest[:6], rest[-3:]
    input_size, weight_size = _conv_sizes(grad_output, *like, groups)
    channels_last = like[-1]
    return (
        None if weight is None else _empty(grad_output, input_size, channels_last),
        None if input is None else _empty(grad_output, weight_size, channels_last),
        grad_output.new_empty(weight_size[:1]) if need_bias else None,
    )


def _conv2d_relu_pool2d_fake(input, weight, bias, *rest):
    conv, pool, average, (keep_code, kernels) = rest[:9], rest[9:18], rest[18], rest[21:]
    output = _conv2d_fake(input, weight, bias, *conv, True, kernels)
    output = _max_pool2d_fake(output, *pool, kernels)
    if not keep_code:
        return output, None
    wide = pool[0] * pool[1] > (8 if average else 254)
    return output, torch.empty_like(output, dtype=torch.int32 if wide else torch.uint8)


def _argmax_like(index, window):
    return torch.empty_like(index, dtype=torch.uint8 if window <= 254 else torch.int32)


def _pairs(sizes):
    """Height and width of each argument of aten from those of our ops."""
    return list(zip(sizes[::2], sizes[1::2], strict=True))


def _conv2d_relu_pool2d_backward_fake(grad_output, code, *rest):
    conv = rest[:17]  # input, weight, their sizes and layout, the convolution's geometry
    return _conv2d_backward_fake(grad_output, None, *conv, *rest[-2:])


def _max_pool2d_with_argmax_fake(input, *rest):
    sizes, (ceil_mode, indices, _) = rest[:8], rest[8:]
    output, index = torch.ops.aten.max_pool2d_with_indices(input, *_pairs(sizes), ceil_mode)
    return output, index if indices else _argmax_like(index, sizes[0] * sizes[1])


def _max_pool2d_fake(input, *rest):
    return _max_pool2d_with_argmax_fake(input, *rest[:-1], True, rest[-1])[0]


def _avg_pool2d_fake(input, *rest):
    return torch.ops.aten.avg_pool2d(input, *_pairs(rest[:6]), *rest[6:-1])


def _longest_adaptive_window(size, count):  # as in csrc/problem.h
    if count == 0:
        return 0
    rest = size % count
    return size // count + (0 if rest == 0 else 1 if count % rest == 0 else 2)


def _adaptive_max_pool2d_with_argmax_fake(input, P, Q, indices, _):
    output, index = torch.ops.aten.adaptive_max_pool2d(input, (P, Q))
    if indices:
        return output, index
    R, S = map(_longest_adaptive_window, input.shape[2:], (P, Q))
    return output, _argmax_like(index, R * S)


def _adaptive_max_pool2d_fake(input, P, Q, _):
    return torch.ops.aten.adaptive_max_pool2d(input, (P, Q))[0]


def _adaptive_avg_pool2d_fake(input, P, Q, _):
    return torch.ops.aten._adaptive_avg_pool2d(input, (P, Q))


def _max_pool_backward_fake(grad_output, argmax, H, W, channels_last, *_):
    return _empty(grad_output, (*grad_output.shape[:2], H, W), channels_last)


def _max_pool_gather_fake(input, argmax, *_):
    return torch.empty_like(argmax, dtype=input.dtype)


def _avg_pool_backward_fake(grad_output, H, W, channels_last, *_):
    return _empty(grad_output, (*grad_output.shape[:2], H, W), channels_last)


def _register() -> None:
    fakes = {
        "conv2d": _conv2d_fake,
        "conv2d_backward": _conv2d_backward_fake,
        "conv2d_relu_pool2d": _conv2d_relu_pool2d_fake,
        "conv2d_relu_pool2d_backward": _conv2d_relu_pool2d_backward_fake,
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
        "conv2d_relu_pool2d": Conv2dReluPool2d,
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
