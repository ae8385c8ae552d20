"""What is measured: one table of problems, in the words of torch.nn.functional."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ConvCase:
    """A convolution: input (N, C, H, W), filters (K, R, S)."""

    name: str
    input: tuple[int, int, int, int]
    filters: tuple[int, int, int]
    kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def weight(self) -> tuple[int, int, int, int]:
        K, R, S = self.filters
        return K, self.input[1] // self.kwargs.get("groups", 1), R, S


@dataclass(frozen=True)
class FusedCase(ConvCase):
    """A convolution, ReLU, and a pool of windows that lie side by side."""

    pool: str = "max"
    window: int = 2


@dataclass(frozen=True)
class PoolCase:
    """A pooling of input (N, C, H, W)."""

    name: str
    input: tuple[int, int, int, int]
    kwargs: dict[str, Any]


CONVOLUTIONS = [
    ConvCase("model a conv1", (100, 1, 28, 28), (16, 5, 5), dict(padding=2)),
    ConvCase("model a conv2", (100, 16, 14, 14), (32, 5, 5), dict(padding=2)),
    ConvCase("vgg-16 conv1_1", (1, 3, 224, 224), (64, 3, 3), dict(padding=1)),
    ConvCase("vgg-16 conv3_2", (1, 256, 56, 56), (256, 3, 3), dict(padding=1)),
    ConvCase("resnet-18 strided", (1, 64, 56, 56), (128, 3, 3), dict(stride=2, padding=1)),
    ConvCase("resnet-18 1x1", (1, 64, 56, 56), (128, 1, 1), dict(stride=2)),
    ConvCase("mobilenet depthwise", (1, 96, 112, 112), (96, 3, 3), dict(padding=1, groups=96)),
]

FUSED = [
    FusedCase("model a block1", (100, 1, 28, 28), (16, 5, 5), dict(padding=2)),
    FusedCase("model a block2", (100, 16, 14, 14), (32, 5, 5), dict(padding=2)),
    FusedCase("lenet-5 block1", (100, 1, 32, 32), (6, 5, 5), pool="avg"),
    FusedCase("vgg-16 block1", (1, 64, 224, 224), (64, 3, 3), dict(padding=1)),
]

POOLS = [
    PoolCase("model a pool1", (100, 16, 28, 28), dict(kernel_size=2)),
    PoolCase("model a pool2", (100, 32, 14, 14), dict(kernel_size=2)),
    PoolCase("vgg-16 pool1", (1, 64, 224, 224), dict(kernel_size=2)),
    PoolCase("resnet-18 pool", (1, 64, 112, 112), dict(kernel_size=3, stride=2, padding=1)),
]

ADAPTIVE_POOLS = [
    PoolCase("vgg-16 avgpool", (1, 512, 7, 7), dict(output_size=7)),
    PoolCase("resnet-18 avgpool", (32, 512, 7, 7), dict(output_size=1)),
    PoolCase("global 56x56", (1, 256, 56, 56), dict(output_size=1)),
    PoolCase("overlapping 13 to 6", (8, 256, 13, 13), dict(output_size=6)),
]
