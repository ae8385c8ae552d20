"""Modules over :mod:`cnnkernels.functional`, each a subclass of its namesake in :mod:`torch.nn`.

Constructors, attributes and ``state_dict`` are torch's; only the call that computes is ours.
"""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from cnnkernels import functional


class Conv2d(nn.Conv2d):
    """2-D convolution, :class:`torch.nn.Conv2d`: same arguments, parameters and errors.

    Takes (N, C, H, W) or (C, H, W) of the weight's dtype, gives (N, K, P, Q) or (K, P, Q); see
    :func:`cnnkernels.functional.conv2d`.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self.convolve(functional.conv2d, input, weight, bias)

    def convolve(
        self,
        function: Callable[..., Tensor],
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        **kwargs: Any,
    ) -> Tensor:
        """Call a function of :mod:`cnnkernels.functional` with this module's settings."""
        padding = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        geometry = (self.stride, padding, self.dilation, self.groups)
        return function(input, weight, bias, *geometry, **kwargs)


class ConvReLU2d(Conv2d):
    """``relu(conv2d(input))`` in one kernel; arguments, parameters and shapes as of Conv2d."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self.convolve(functional.conv2d_relu, input, weight, bias)

    def extra_repr(self) -> str:
        """What stands between the brackets of ``repr``."""
        return f"{super().extra_repr()}, relu=True"


def pool_settings(pool: nn.MaxPool2d | nn.AvgPool2d) -> tuple[str, dict[str, Any]]:
    """A pool's kind, "max" or "avg", and its settings as the fused functions take them."""
    if isinstance(pool, nn.MaxPool2d):
        if pool.return_indices:
            raise ValueError("a pool that returns indices cannot be fused")
        kind, settings = "max", {"pool_dilation": pool.dilation}
    else:
        kind = "avg"
        settings = {n: getattr(pool, n) for n in ("count_include_pad", "divisor_override")}
    settings |= {f"pool_{n}": getattr(pool, n) for n in ("kernel_size", "stride", "padding")}
    return kind, settings | {"ceil_mode": pool.ceil_mode}


class ConvReLUPool2d(Conv2d):
    """``pool(relu(conv2d(input)))`` in one kernel.

    Takes the arguments of Conv2d and, by keyword, the pool whose settings it takes over. Parameters
    and ``state_dict`` are Conv2d's.

    Args:
        pool: a :class:`torch.nn.MaxPool2d` that returns no indices or a
            :class:`torch.nn.AvgPool2d`, ours or torch's.
    """

    def __init__(self, *args, pool: nn.MaxPool2d | nn.AvgPool2d, **kwargs):
        super().__init__(*args, **kwargs)
        self.pool, self.pool_settings = pool_settings(pool)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        function = getattr(functional, f"conv2d_relu_{self.pool}_pool2d")
        return self.convolve(function, input, weight, bias, **self.pool_settings)

    def extra_repr(self) -> str:
        """What stands between the brackets of ``repr``."""
        settings = ", ".join(f"{name}={value}" for name, value in self.pool_settings.items())
        return f"{super().extra_repr()}, relu=True, pool={self.pool}, {settings}"


class MaxPool2d(nn.MaxPool2d):
    """2-D max pooling, :class:`torch.nn.MaxPool2d`: same arguments and errors.

    Takes (N, C, H, W) or (C, H, W), gives (N, C, P, Q) or (C, P, Q), and with `return_indices`
    int64 indices beside it; see :func:`cnnkernels.functional.max_pool2d`.
    """

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """The maximum of each window."""
        return functional.max_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            ceil_mode=self.ceil_mode,
            return_indices=self.return_indices,
        )


class AvgPool2d(nn.AvgPool2d):
    """2-D average pooling, :class:`torch.nn.AvgPool2d`: same arguments and errors.

    Takes (N, C, H, W) or (C, H, W), gives (N, C, P, Q) or (C, P, Q); see
    :func:`cnnkernels.functional.avg_pool2d`.
    """

    def forward(self, input: Tensor) -> Tensor:
        """The average of each window."""
        return functional.avg_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )


class AdaptiveMaxPool2d(nn.AdaptiveMaxPool2d):
    """2-D max pooling to a given size, :class:`torch.nn.AdaptiveMaxPool2d`: same arguments, errors.

    Takes (N, C, H, W) or (C, H, W), gives (N, C, P, Q) or (C, P, Q), and with `return_indices`
    int64 indices beside it; see :func:`cnnkernels.functional.adaptive_max_pool2d`.
    """

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """The maximum of each window."""
        return functional.adaptive_max_pool2d(input, self.output_size, self.return_indices)


class AdaptiveAvgPool2d(nn.AdaptiveAvgPool2d):
    """2-D average pooling to a given size, :class:`torch.nn.AdaptiveAvgPool2d`: same arguments.

    Takes (N, C, H, W) or (C, H, W), gives (N, C, P, Q) or (C, P, Q); see
    :func:`cnnkernels.functional.adaptive_avg_pool2d`.
    """

    def forward(self, input: Tensor) -> Tensor:
        """The average of each window."""
        return functional.adaptive_avg_pool2d(input, self.output_size)
