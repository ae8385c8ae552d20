"""Modules over :mod:`cnnkernels.functional`, each a subclass of its namesake in :mod:`torch.nn`.

Constructors, attributes and ``state_dict`` are torch's; only the call that computes is ours.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from cnnkernels import functional


class Conv2d(nn.Conv2d):
    """2-D convolution, :class:`torch.nn.Conv2d`: same arguments, parameters and errors.

    Takes (N, C, H, W) or (C, H, W) of the weight's dtype, gives (N, K, P, Q) or (K, P, Q); see
    :func:`cnnkernels.functional.conv2d`.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        return self._convolve(input, weight, bias, self.stride, padding, self.dilation, self.groups)

    def _convolve(self, *args) -> Tensor:
        return functional.conv2d(*args)


class ConvReLU2d(Conv2d):
    """``relu(conv2d(input))`` in one kernel; arguments, parameters and shapes as of Conv2d."""

    def _convolve(self, *args) -> Tensor:
        return functional.conv2d_relu(*args)

    def extra_repr(self) -> str:
        """What stands between the brackets of ``repr``."""
        return f"{super().extra_repr()}, relu=True"


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
