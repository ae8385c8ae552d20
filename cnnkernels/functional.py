"""What :mod:`torch.nn.functional` calls these ops: same arguments, same results, same errors.

All functions take float32, float64, float16 or bfloat16 tensors (sums of 16-bit ones are kept in
float32) on the CPU or a CUDA device, in any strides, of shape (N, C, H, W) or unbatched (C, H, W).
They are differentiable to any order, in reverse and forward mode, under torch.func's transforms,
too. Under autocast convolutions cast their operands, and pools do not, as in torch.

An input of any other dtype is handed on to torch's own function, which has kernels for some
integers and an error for the rest.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cnnkernels import autograd
from cnnkernels.settings import settings

_autocast_enabled = torch._C._is_any_autocast_enabled

Size = int | Sequence[int]
OptionalSize = int | Sequence[int | None]


def _is_int(value: Any) -> bool:
    return isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)


def _check_int(function: str, name: str, value: Any) -> None:
    if not _is_int(value):
        raise TypeError(f"{function}(): argument '{name}' must be int, not {type(value).__name__}")


def _pair(function: str, name: str, value: Any) -> Sequence[int]:
    kind = type(value)
    if kind is int:
        return value, value
    if kind is tuple and len(value) == 2 and type(value[0]) is int and type(value[1]) is int:
        return value
    return _unusual_pair(function, name, value)


# What there are kernels for; on "meta" they tell sizes alone.
DTYPES = frozenset({torch.float32, torch.float64, torch.float16, torch.bfloat16})
DEVICES = frozenset({"cpu", "cuda", "meta"})


def _unusual_pair(function: str, name: str, value: Any) -> Sequence[int]:
    if _is_int(value):
        return value, value
    if isinstance(value, (list, tuple, torch.Size)) and all(
        isinstance(item, (int, torch.SymInt)) for item in value
    ):
        if len(value) == 1:
            return value[0], value[0]
        if len(value) == 2:
            return value
        raise RuntimeError(f"{function}: {name} must be one int or two, but got {tuple(value)}")
    raise TypeError(
        f"{function}(): argument '{name}' must be int or tuple of ints, not {type(value).__name__}"
    )


def _not_a_tensor(function: str, name: str, value: Any) -> TypeError:
    return TypeError(f"{function}(): argument '{name}' must be Tensor, not {type(value).__name__}")


def _bool(function: str, name: str, value: Any) -> bool:
    if value is True or value is False:
        return value
    if type(value).__name__ not in ("bool", "bool_"):  # of Python or numpy
        raise TypeError(f"{function}(): argument '{name}' must be bool, not {type(value).__name__}")
    return bool(value)


def _is_ours(function: str, input: Any) -> bool:
    """Whether there are kernels for the input's dtype."""
    if not isinstance(input, Tensor):
        raise _not_a_tensor(function, "input", input)
    return input.dtype in DTYPES


def _batch(function: str, input: Tensor) -> Tensor:
    """The input with its batch dimension."""
    rank = input.dim()
    if rank == 4:
        return input
    if rank == 3:
        return input.unsqueeze(0)
    if "pool" in function:
        problem = f"{function}(): non-empty 3D or 4D (batch mode) tensor expected for input"
    else:
        problem = f"Expected 3D (unbatched) or 4D (batched) input to {function}"
    raise RuntimeError(f"{problem}, but got input of size: {list(input.shape)}")


def _unbatch(result: Any) -> Any:
    """A function's result, one tensor or several, without the batch dimension."""
    if isinstance(result, Tensor):
        return result.squeeze(0)
    return tuple(tensor.squeeze(0) for tensor in result)


# ---------------------------------------------------------------- convolution


def _conv_padding(
    padding: str | Size, weight: Tensor, stride: Sequence[int], dilation: Sequence[int]
) -> Sequence[int]:
    """Top, bottom, left, right."""
    if not isinstance(padding, str):
        height, width = _pair("conv2d", "padding", padding)
        return height, height, width, width
    if padding == "valid":
        return 0, 0, 0, 0
    if padding != "same":
        raise RuntimeError(f"Invalid padding string: '{padding}'")
    if tuple(stride) != (1, 1):
        raise RuntimeError("padding='same' is not supported for strided convolutions")
    total = [d * (size - 1) for d, size in zip(dilation, weight.shape[2:], strict=True)]
    return [side for t in total for side in (t // 2, t - t // 2)]


def _autocast(tensor: Tensor | None) -> Tensor | None:
    """An operand as torch's autocast gives it to a convolution: float64 stays as it is.

    Unlike torch's, weights are cast anew at each call.
    """
    if tensor is None or not tensor.is_floating_point() or tensor.dtype == torch.float64:
        return tensor
    device = tensor.device.type
    if device not in ("cpu", "cuda") or not torch.is_autocast_enabled(device):
        return tensor
    return tensor.to(torch.get_autocast_dtype(device))


def _conv_operands(
    function: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Size,
    padding: str | Size,
    dilation: Size,
    groups: int,
) -> tuple[Any, ...]:
    """Input, weight, bias and geometry as the ops take them."""
    batched = _batch(function, input)
    if not isinstance(weight, Tensor):
        raise _not_a_tensor(function, "weight", weight)
    if bias is not None and not isinstance(bias, Tensor):
        raise _not_a_tensor(function, "bias", bias)
    if type(groups) is not int:
        _check_int(function, "groups", groups)
    if weight.dim() != 4:
        raise RuntimeError(f"{function}: expected 4D weight, but got {list(weight.shape)}")
    if type(stride) is type(padding) is type(dilation) is int:  # most calls, and 0.6 us less
        padding = padding, padding, padding, padding
        geometry = (stride, stride, *padding, dilation, dilation, groups)
    else:
        stride = _pair(function, "stride", stride)
        dilation = _pair(function, "dilation", dilation)
        padding = _conv_padding(padding, weight, stride, dilation)
        geometry = (*stride, *padding, *dilation, groups)
    if _autocast_enabled():
        batched, weight, bias = map(_autocast, (batched, weight, bias))
    return batched, weight, bias, *geometry


def _torch_allows_tf32() -> bool:
    """Whether torch's switches let cuDNN round a convolution's operands to TF32."""
    switch = getattr(torch.backends.cudnn, "conv", None)
    if hasattr(switch, "fp32_precision"):  # then reading allow_tf32 may raise
        return switch.fp32_precision == "tf32"
    return torch.backends.cudnn.allow_tf32


# A captured graph keeps the answer. What torch.compiler.assume_constant_result does, which would
# import all of torch.compile.
_torch_allows_tf32._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _conv_kernels(input: Tensor) -> str | None:
    """The settings' kernels; of float32 on a GPU, with what torch's switches say of TF32."""
    if input.is_cuda and input.dtype == torch.float32 and _torch_allows_tf32():
        return f"{settings.kernels or ':'}:tf32"
    return settings.kernels


def _conv2d(function: str, relu: bool, input: Tensor, *rest: Any) -> Tensor:
    operands = _conv_operands(function, input, *rest)
    args = (*operands, relu, _conv_kernels(operands[0]))
    if autograd.recorded(*operands[:3]):
        output = autograd.apply(autograd.Conv2d, *args)
    else:
        output = autograd.call("conv2d", *args)
    return output if input.dim() == 4 else _unbatch(output)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: str | Size = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Tensor:
    """2-D convolution, :func:`torch.nn.functional.conv2d`.

    Args:
        input: (N, C, H, W) or (C, H, W).
        weight: (K, C / groups, R, S), of the input's dtype and device.
        bias: (K,) or None.
        stride: one int, or one for each of height and width; likewise `dilation`.
        padding: zeros at either side: one int, two ints, 'valid' (none) or 'same' (output of the
            input's size, for stride 1; of an odd total the far side gets one more).
        dilation: distance between the taps of a filter.
        groups: the input's channels and the filters are cut into that many groups, each of which
            sees only its own.

    Returns:
        (N, K, P, Q) or (K, P, Q) with P = (H + padding - dilation * (R - 1) - 1) // stride + 1.

    Raises:
        TypeError: an argument of the wrong type.
        RuntimeError: sizes, dtypes or devices that do not fit, values out of range.
    """
    if not _is_ours("conv2d", input):
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    return _conv2d("conv2d", False, input, weight, bias, stride, padding, dilation, groups)


def conv2d_relu(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: str | Size = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Tensor:
    """``relu(conv2d(...))`` in one kernel: the convolution's own output is never stored.

    Arguments, result and errors as in :func:`conv2d`. NaN passes the ReLU, forward and backward.
    """
    if not _is_ours("conv2d_relu", input):
        return F.relu(F.conv2d(input, weight, bias, stride, padding, dilation, groups))
    return _conv2d("conv2d_relu", True, input, weight, bias, stride, padding, dilation, groups)


# ---------------------------------------------------------------- pooling


def _window(function: str, kernel_size: Size, stride: Size | None, padding: Size) -> Sequence[int]:
    kernel_size = _pair(function, "kernel_size", kernel_size)
    if stride is None or stride in ([], ()):
        stride = kernel_size
    else:
        stride = _pair(function, "stride", stride)
    return *kernel_size, *stride, *_pair(function, "padding", padding)


def _max_pool(
    op: str,
    function: type[torch.autograd.Function],
    input: Tensor,
    geometry: Sequence[int],
    return_indices: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    if autograd.recorded(input):
        args = (input, *geometry, bool(return_indices), settings.kernels)
        outputs = autograd.apply(function, *args)
        return outputs if return_indices else outputs[0]
    if return_indices:
        return autograd.call(f"{op}_with_argmax", input, *geometry, True, settings.kernels)
    return autograd.call(op, input, *geometry, settings.kernels)


def max_pool2d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """2-D max pooling, :func:`torch.nn.functional.max_pool2d`.

    Of equal values the first one wins; NaN beats all, and of several the last one gives the index.

    Args:
        input: (N, C, H, W) or (C, H, W).
        kernel_size: the window, one int or height and width.
        stride: distance between windows; `kernel_size` where None.
        padding: implicit -inf at either side, at most half of the window.
        dilation: distance between the elements of a window.
        ceil_mode: also count a last window that is only partly inside.
        return_indices: also return the maxima's indices, h * W + w in their input plane.

    Returns:
        (N, C, P, Q) or (C, P, Q); with `return_indices` a pair of it and an int64 tensor.

    Raises:
        TypeError: an argument of the wrong type.
        RuntimeError: values out of range, an input too small, an unsupported dtype.
    """
    if not _is_ours("max_pool2d", input):
        return F.max_pool2d(
            input, kernel_size, stride, padding, dilation, ceil_mode, return_indices
        )
    batched = _batch("max_pool2d", input)
    geometry = (
        *_window("max_pool2d", kernel_size, stride, padding),
        *_pair("max_pool2d", "dilation", dilation),
        _bool("max_pool2d", "ceil_mode", ceil_mode),
    )
    result = _max_pool("max_pool2d", autograd.MaxPool2d, batched, geometry, return_indices)
    return result if batched is input else _unbatch(result)


def avg_pool2d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """2-D average pooling, :func:`torch.nn.functional.avg_pool2d`.

    Args:
        input: (N, C, H, W) or (C, H, W).
        kernel_size: the window, one int or height and width.
        stride: distance between windows; `kernel_size` where None.
        padding: implicit zeros at either side, at most half of the window.
        ceil_mode: also count a last window that is only partly inside.
        count_include_pad: whether padding counts in the divisor.
        divisor_override: divide by this instead; not zero.

    Returns:
        (N, C, P, Q) or (C, P, Q).

    Raises:
        TypeError: an argument of the wrong type.
        RuntimeError: values out of range, an input too small, an unsupported dtype.
    """
    if not _is_ours("avg_pool2d", input):
        return F.avg_pool2d(
            input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
        )
    batched = _batch("avg_pool2d", input)
    window = _window("avg_pool2d", kernel_size, stride, padding)
    if divisor_override is not None:
        _check_int("avg_pool2d", "divisor_override", divisor_override)

    args = (
        batched,
        *window,
        _bool("avg_pool2d", "ceil_mode", ceil_mode),
        _bool("avg_pool2d", "count_include_pad", count_include_pad),
        divisor_override,
    )
    output = autograd.differentiable(autograd.AvgPool2d, *args, settings.kernels)
    return output if batched is input else _unbatch(output)


def _output_size(function: str, input: Tensor, output_size: Any) -> Sequence[int]:
    """Height and width; None stands for the input's."""
    if _is_int(output_size):
        size = [output_size, output_size]
    elif isinstance(output_size, (list, tuple, torch.Size)):
        if input.dim() <= len(output_size):
            raise ValueError(f"Input dimension should be at least {len(output_size) + 1}")
        own = input.shape[-len(output_size) :]
        size = [o if n is None else n for n, o in zip(output_size, own, strict=False)]
    else:
        size = [output_size]
    for item in size:
        if not _is_int(item):
            raise TypeError(
                f"{function}(): argument 'output_size' must be int or tuple of ints, not "
                f"{type(item).__name__}"
            )
    if len(size) != 2:
        raise RuntimeError(f"{function}: output_size must be 2, but got {tuple(size)}")
    return size


def adaptive_max_pool2d(
    input: Tensor, output_size: OptionalSize, return_indices: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """2-D max pooling to a given size, :func:`torch.nn.functional.adaptive_max_pool2d`.

    Output row p is of the input rows from floor(p * H / P) to ceil((p + 1) * H / P); likewise the
    columns. Of equal values the first one wins; NaN beats all, and of several the last one gives
    the index.

    Args:
        input: (N, C, H, W) or (C, H, W).
        output_size: P and Q, or one int for both; None for the input's.
        return_indices: also return the maxima's indices, h * W + w in their input plane, as
            :class:`torch.nn.MaxUnpool2d` takes them.

    Returns:
        (N, C, P, Q) or (C, P, Q); with `return_indices` a pair of it and an int64 tensor.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an input of two dimensions or less.
        RuntimeError: values out of range, an empty input, an unsupported dtype.
    """
    if not _is_ours("adaptive_max_pool2d", input):
        return F.adaptive_max_pool2d(input, output_size, return_indices)
    size = _output_size("adaptive_max_pool2d", input, output_size)
    if input.dim() == 4 and input.shape[1] == 0:  # an average of no channels is one, to torch
        raise RuntimeError(
            "adaptive_max_pool2d(): Expected input to have non-zero size for non-batch "
            f"dimensions, but input has sizes {list(input.shape)} with dimension 1 being empty"
        )
    batched = _batch("adaptive_max_pool2d", input)
    function = autograd.AdaptiveMaxPool2d
    result = _max_pool("adaptive_max_pool2d", function, batched, size, return_indices)
    return result if batched is input else _unbatch(result)


def adaptive_avg_pool2d(input: Tensor, output_size: OptionalSize) -> Tensor:
    """2-D average pooling to a given size, :func:`torch.nn.functional.adaptive_avg_pool2d`.

    Windows as in :func:`adaptive_max_pool2d`; to size 1 it is global average pooling.

    Args:
        input: (N, C, H, W) or (C, H, W).
        output_size: P and Q, or one int for both; None for the input's.

    Returns:
        (N, C, P, Q) or (C, P, Q).

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an input of two dimensions or less.
        RuntimeError: values out of range, an empty input, an unsupported dtype.
    """
    if not _is_ours("adaptive_avg_pool2d", input):
        return F.adaptive_avg_pool2d(input, output_size)
    size = _output_size("adaptive_avg_pool2d", input, output_size)
    batched = _batch("adaptive_avg_pool2d", input)
    output = autograd.differentiable(autograd.AdaptiveAvgPool2d, batched, *size, settings.kernels)
    return output if batched is input else _unbatch(output)


# ---------------------------------------------------------------- convolution, ReLU and pool

# Of the fused op's codes: csrc/problem.h.
_MOST_AVERAGE_TAPS = 32


def _is_fused(average: bool, window: Sequence[int]) -> bool:
    """Whether one kernel runs the whole: under transforms, and for large averages, none does."""
    if autograd.transformed():
        return False
    return not average or window[0] * window[1] <= _MOST_AVERAGE_TAPS


def _conv2d_relu_pool2d(
    function: str, average: bool, input: Tensor, conv: tuple[Any, ...], pool: tuple[Any, ...]
) -> Tensor:
    """`pool`: its window, dilation and ceil_mode, then how to divide."""
    operands = _conv_operands(function, input, *conv)
    geometry = (*pool[:9], average, *pool[9:])
    kernels = _conv_kernels(operands[0])
    if not _is_fused(average, pool[:2]):
        args = (*operands, *geometry, kernels)
        output = autograd.conv2d_relu_then_pool2d(*args)
    elif autograd.recorded(*operands[:3]):
        args = (*operands, *geometry, True, kernels)
        output = autograd.apply(autograd.Conv2dReluPool2d, *args)[0]
    else:
        args = (*operands, *geometry, False, kernels)
        output = autograd.call("conv2d_relu_pool2d", *args)[0]
    return output if input.dim() == 4 else _unbatch(output)


def conv2d_relu_max_pool2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: str | Size = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    pool_kernel_size: Size,
    pool_stride: Size | None = None,
    pool_padding: Size = 0,
    pool_dilation: Size = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """``max_pool2d(relu(conv2d(...)))`` in one kernel.

    The convolution's output is never stored; training keeps one byte for each pooled output (four,
    of windows over 254 elements). Input and weight are kept for a second derivative.

    Args:
        input: As of :func:`conv2d`, and so to `groups`.
        weight: The filters.
        bias: Of each filter, or None.
        stride: The convolution's.
        padding: The convolution's.
        dilation: The convolution's.
        groups: The convolution's.
        pool_kernel_size: As of :func:`max_pool2d`, and so are the rest.
        pool_stride: Distance between windows; `pool_kernel_size` where None.
        pool_padding: Implicit -inf at either side of the convolution's output.
        pool_dilation: Distance between the elements of a window.
        ceil_mode: Also count a last window that is only partly inside.

    Returns:
        What the three functions return in a row.

    Raises:
        TypeError, RuntimeError: as they do.
    """
    name = "conv2d_relu_max_pool2d"
    conv = (weight, bias, stride, padding, dilation, groups)
    if not _is_ours(name, input):
        window = (pool_kernel_size, pool_stride, pool_padding, pool_dilation, ceil_mode)
        return F.max_pool2d(F.relu(F.conv2d(input, *conv)), *window)
    pool = (
        *_window(name, pool_kernel_size, pool_stride, pool_padding),
        *_pair(name, "pool_dilation", pool_dilation),
        _bool(name, "ceil_mode", ceil_mode),
        True,
        None,
    )
    return _conv2d_relu_pool2d(name, False, input, conv, pool)


def conv2d_relu_avg_pool2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: str | Size = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    pool_kernel_size: Size,
    pool_stride: Size | None = None,
    pool_padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """``avg_pool2d(relu(conv2d(...)))`` in one kernel.

    As :func:`conv2d_relu_max_pool2d`. Training keeps a bit for each element of a window, in a byte
    or four; windows of more than 32 elements run one function after the other.

    Args:
        input: As of :func:`conv2d`, and so to `groups`.
        weight: The filters.
        bias: Of each filter, or None.
        stride: The convolution's.
        padding: The convolution's.
        dilation: The convolution's.
        groups: The convolution's.
        pool_kernel_size: As of :func:`avg_pool2d`, and so are the rest.
        pool_stride: Distance between windows; `pool_kernel_size` where None.
        pool_padding: Implicit zeros at either side of the convolution's output.
        ceil_mode: Also count a last window that is only partly inside.
        count_include_pad: Whether padding counts in the divisor.
        divisor_override: Divide by this instead; not zero.

    Returns:
        What the three functions return in a row.

    Raises:
        TypeError, RuntimeError: as they do.
    """
    name = "conv2d_relu_avg_pool2d"
    conv = (weight, bias, stride, padding, dilation, groups)
    if not _is_ours(name, input):
        window = (pool_kernel_size, pool_stride, pool_padding, ceil_mode)
        divisor = (count_include_pad, divisor_override)
        return F.avg_pool2d(F.relu(F.conv2d(input, *conv)), *window, *divisor)
    if divisor_override is not None:
        _check_int(name, "divisor_override", divisor_override)
    pool = (
        *_window(name, pool_kernel_size, pool_stride, pool_padding),
        1,
        1,
        _bool(name, "ceil_mode", ceil_mode),
        _bool(name, "count_include_pad", count_include_pad),
        divisor_override,
    )
    return _conv2d_relu_pool2d(name, True, input, conv, pool)
