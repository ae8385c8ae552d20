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
    channels_last: bool = False

    @property
    def weight(self) -> tuple[int, int, int, int]:
        """The weight's shape."""
        K, R, S = self.filters
        return K, self.input[1] // self.kwargs.get("groups", 1), R, S


@dataclass(frozen=True)
class FusedCase(ConvCase):
    """A convolution, ReLU, and a pool of windows that lie side by side."""

    pool: str = "max"
    window: int = 2


@dataclass(frozen=True)
class PoolCase:
    """A pooling of input (N, C, H, W), by maximum and by average."""

    name: str
    input: tuple[int, int, int, int]
    kwargs: dict[str, Any]
    channels_last: bool = False


@dataclass(frozen=True)
class ModelCase:
    """A network on a batch of images: one of cnnkernels.models, or `zoo`, of torchvision."""

    name: str
    model: str
    batch: int
    passes: tuple[str, ...] = ("inference", "step")
    fast_math: bool = False  # of ours
    zoo: bool = False


# VGG-16's convolutions: which they are, C, K, and the image's size; and those before a pool.
_VGG_16 = [
    ("conv1_1", 3, 64, 224),
    ("conv1_2", 64, 64, 224),
    ("conv2_1", 64, 128, 112),
    ("conv2_2", 128, 128, 112),
    ("conv3_1", 128, 256, 56),
    ("conv3_2, conv3_3", 256, 256, 56),
    ("conv4_1", 256, 512, 28),
    ("conv4_2, conv4_3", 512, 512, 28),
    ("conv5_1, conv5_2, conv5_3", 512, 512, 14),
]
_POOLED = ("1_2", "2_2", "3_3", "4_3", "5_3")
_VGG_16_POOLED = [layer for layer in _VGG_16 if layer[0].endswith(_POOLED)]
_BATCHES = (1, 8)


def _resnet_18(name: str, filters: tuple[int, int], padding: int) -> list[ConvCase]:
    """The layers that halve the image between its blocks."""
    return [
        ConvCase(
            f"resnet-18 layer{i} {name}",
            (8, C, size, size),
            (2 * C, *filters),
            dict(stride=2, padding=padding),
        )
        for i, C, size in ((2, 64, 56), (3, 128, 28), (4, 256, 14))
    ]


CONVOLUTIONS = [
    ConvCase("model a conv1, model b conv1", (100, 1, 28, 28), (16, 5, 5), dict(padding=2)),
    ConvCase("model a conv2, model b conv2", (100, 16, 14, 14), (32, 5, 5), dict(padding=2)),
    ConvCase("model c conv1", (100, 1, 28, 28), (16, 5, 5)),
    ConvCase("model c conv2", (100, 16, 12, 12), (32, 5, 5)),
    ConvCase("convnet conv1", (128, 1, 28, 28), (16, 5, 5)),
    ConvCase("convnet conv2", (128, 16, 24, 24), (32, 5, 5)),
    *(
        ConvCase(f"vgg-16 {name}, batch {N}", (N, C, size, size), (K, 3, 3), dict(padding=1))
        for N in _BATCHES
        for name, C, K, size in _VGG_16
    ),
    ConvCase("alexnet conv1", (8, 3, 224, 224), (64, 11, 11), dict(stride=4, padding=2)),
    *_resnet_18("strided", (3, 3), 1),
    *_resnet_18("1x1", (1, 1), 0),
    *(
        ConvCase(
            f"mobilenet depthwise {C}, stride {stride}",
            (8, C, size, size),
            (C, 3, 3),
            dict(padding=1, stride=stride, groups=C),
        )
        for C, size, stride in (
            (32, 112, 1),
            (64, 112, 2),
            (128, 56, 1),
            (128, 56, 2),
            (256, 28, 1),
            (512, 14, 1),
            (1024, 7, 1),
        )
    ),
    ConvCase("7x7 channels_last", (8, 64, 56, 56), (64, 7, 7), dict(padding=3), channels_last=True),
    ConvCase("7x7 depthwise", (8, 96, 56, 56), (96, 7, 7), dict(padding=3, groups=96)),
    ConvCase("31x31 depthwise", (1, 128, 56, 56), (128, 31, 31), dict(padding=15, groups=128)),
]

FUSED = [
    FusedCase("model a block1", (100, 1, 28, 28), (16, 5, 5), dict(padding=2)),
    FusedCase("model a block2", (100, 16, 14, 14), (32, 5, 5), dict(padding=2)),
    FusedCase("model b block1", (100, 1, 28, 28), (16, 5, 5), dict(padding=2), pool="avg"),
    FusedCase("model b block2", (100, 16, 14, 14), (32, 5, 5), dict(padding=2), pool="avg"),
    FusedCase("model c block1", (100, 1, 28, 28), (16, 5, 5), pool="avg"),
    FusedCase("model c block2", (100, 16, 12, 12), (32, 5, 5), pool="avg"),
    FusedCase("mnist first", (100, 1, 28, 28), (32, 5, 5), dict(padding=2)),
    FusedCase("lenet-5 block1", (100, 1, 32, 32), (6, 5, 5), pool="avg"),
    *(
        FusedCase(
            f"vgg-16 {name}, batch {N}",
            (N, C, size, size),
            (K, 3, 3),
            dict(padding=1),
        )
        for N in _BATCHES
        for name, C, K, size in _VGG_16_POOLED
    ),
]

POOLS = [
    PoolCase("model a pool1, model b pool1", (100, 16, 28, 28), dict(kernel_size=2)),
    PoolCase("model a pool2, model b pool2", (100, 32, 14, 14), dict(kernel_size=2)),
    PoolCase("model c pool1", (100, 16, 24, 24), dict(kernel_size=2)),
    PoolCase("model c pool2", (100, 32, 8, 8), dict(kernel_size=2)),
    *(
        PoolCase(f"vgg-16 pool{i}, batch {N}", (N, K, size, size), dict(kernel_size=2))
        for N in _BATCHES
        for i, (_, _, K, size) in enumerate(_VGG_16_POOLED, 1)
    ),
    *(
        PoolCase(
            f"resnet-18 pool{', channels_last' if channels_last else ''}",
            (8, 64, 112, 112),
            dict(kernel_size=3, stride=2, padding=1),
            channels_last,
        )
        for channels_last in (False, True)
    ),
]

ADAPTIVE_POOLS = [
    PoolCase("vgg-16 avgpool, batch 8", (8, 512, 7, 7), dict(output_size=7)),
    PoolCase("resnet-18 avgpool", (32, 512, 7, 7), dict(output_size=1)),
    PoolCase("global 56x56", (1, 256, 56, 56), dict(output_size=1)),
    PoolCase("overlapping 13 to 6", (8, 256, 13, 13), dict(output_size=6)),
    PoolCase("overlapping 13 to 6 channels_last", (8, 256, 13, 13), dict(output_size=6), True),
]

MODELS = [
    ModelCase("model a", "a", 100),
    ModelCase("model b", "b", 100),
    ModelCase("model c", "c", 100),
    ModelCase("convnet", "convnet", 128),
    ModelCase("vgg-16, batch 1", "vgg16", 1, ("inference",)),
    ModelCase("vgg-16, batch 4", "vgg16", 4),
    *(
        ModelCase(f"vgg-16 fast_math, batch {N}", "vgg16", N, ("inference",), fast_math=True)
        for N in (1, 4)
    ),
]

ZOO = [
    ModelCase(f"{model}, batch {N}", model, N, ("inference",), zoo=True)
    for model in ("vgg16", "resnet18", "mobilenet_v2", "squeezenet1_1", "alexnet")
    for N in _BATCHES
]
