"""override_torch(): our kernels for code that calls torch's functions itself."""

from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cnnkernels import functional as ours


# Their own `return_indices`, the last argument, says nothing.
def _max_pool2d_with_indices(*args: Any, **kwargs: Any) -> Any:
    return ours.max_pool2d(*args[:6], **kwargs | {"return_indices": True})


def _adaptive_max_pool2d_with_indices(*args: Any, **kwargs: Any) -> Any:
    return ours.adaptive_max_pool2d(*args[:2], **kwargs | {"return_indices": True})


# Modules call these functions, too; torch.conv2d and others of torch's are the same objects.
FUNCTIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    F.conv2d: ours.conv2d,
    F.max_pool2d: ours.max_pool2d,
    torch.max_pool2d: ours.max_pool2d,
    F.max_pool2d_with_indices: _max_pool2d_with_indices,
    F.avg_pool2d: ours.avg_pool2d,
    F.adaptive_max_pool2d: ours.adaptive_max_pool2d,
    F.adaptive_max_pool2d_with_indices: _adaptive_max_pool2d_with_indices,
    F.adaptive_avg_pool2d: ours.adaptive_avg_pool2d,
}


class override_torch(TorchFunctionMode):  # noqa: N801, a function as its users see it
    """Inside the ``with``, torch's 2-D convolutions and pools are computed by our kernels.

    For models that :func:`cnnkernels.convert` cannot change: those that call
    ``torch.nn.functional``, or whose modules are subclasses. Nothing is fused. Results and errors
    are those of :mod:`cnnkernels.functional`; calls for which it has no kernels (other dtypes and
    devices, subclasses of Tensor) stay torch's. A backward pass may lie outside of the ``with``.
    Of this thread alone, and not of what ``torch.compile`` captured earlier.

    Example:
        >>> with cnnkernels.override_torch() as override:
        ...     model(images)
        >>> override.calls
        Counter({'conv2d': 2, 'max_pool2d': 2})

    Attributes:
        calls: how often each function of :mod:`cnnkernels.functional` was called.
    """

    calls: Counter[str]

    def __init__(self) -> None:
        super().__init__()
        self.calls = Counter()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call ours in the place of `func`, if it is one of torch's."""
        kwargs = kwargs or {}
        if func not in FUNCTIONS or not _has_kernels(types, args, kwargs):
            return func(*args, **kwargs)
        self.calls[func.__name__.removesuffix("_with_indices")] += 1
        return FUNCTIONS[func](*args, **kwargs)


def _has_kernels(types: Iterable[type], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    input = args[0] if args else kwargs.get("input")
    return (
        isinstance(input, Tensor)
        and all(kind in (Tensor, nn.Parameter) for kind in types)
        and input.dtype in ours.DTYPES
        and input.device.type in ours.DEVICES
    )


@cache
def replacement(func: Callable[..., Any]) -> Callable[..., Any]:
    """One of FUNCTIONS as a function that calls ours where there are kernels, and else itself."""

    def call(*args: Any, **kwargs: Any) -> Any:
        types = [type(arg) for arg in (*args, *kwargs.values()) if isinstance(arg, Tensor)]
        return (FUNCTIONS[func] if _has_kernels(types, args, kwargs) else func)(*args, **kwargs)

    call.__name__ = func.__name__
    return call
