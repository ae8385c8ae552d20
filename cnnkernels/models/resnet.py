"""ResNet (He, Zhang, Ren and Sun, "Deep residual learning for image recognition", 2016).

Maps (N, 3, 224, 224) to logits (N, classes). It is torchvision's, which strides in a bottleneck's
3x3 convolution: the same architecture, initialisation and state_dict, so its pretrained weights
fit. Unlike there, each ReLU is a module of its own, so that hooks see each one.
"""

from functools import partial

import torch
from torch import Tensor, nn

from cnnkernels.models.spec import ModelSpec


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, and the input added to what they give."""

    expansion = 1

    def __init__(self, channels: int, filters: int, stride: int, downsample: nn.Module | None):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, filters, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(filters)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(filters, filters, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(filters)
        self.relu2 = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to (N, filters, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(y)) + shortcut)


class Bottleneck(nn.Module):
    """A 1x1 convolution to fewer channels, a 3x3 one, a 1x1 one to four times as many."""

    expansion = 4

    def __init__(self, channels: int, filters: int, stride: int, downsample: nn.Module | None):
        super().__init__()
        wide = filters * self.expansion
        self.conv1 = nn.Conv2d(channels, filters, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(filters)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(filters, filters, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(filters)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(filters, wide, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(wide)
        self.relu3 = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to (N, 4 * filters, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.relu2(self.bn2(self.conv2(y)))
        return self.relu3(self.bn3(self.conv3(y)) + shortcut)


class ResNet(nn.Module):
    """Four layers of so many blocks, each but the first halving the image."""

    def __init__(
        self, block: type[BasicBlock | Bottleneck], depths: tuple[int, ...], classes: int = 1000
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        channels = 64
        for i, depth in enumerate(depths):
            layer = _layer(block, channels, 64 << i, depth, stride=1 if i == 0 else 2)
            setattr(self, f"layer{i + 1}", layer)
            channels = (64 << i) * block.expansion
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Logits of each image."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def _layer(
    block: type[BasicBlock | Bottleneck], channels: int, filters: int, depth: int, stride: int
) -> nn.Sequential:
    wide = filters * block.expansion
    downsample = None
    if stride != 1 or channels != wide:
        downsample = nn.Sequential(
            nn.Conv2d(channels, wide, 1, stride, bias=False), nn.BatchNorm2d(wide)
        )
    first = block(channels, filters, stride, downsample)
    return nn.Sequential(first, *(block(wide, filters, 1, None) for _ in range(depth - 1)))


_CONFIGURATIONS = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}

MODELS = {
    name: ModelSpec(partial(ResNet, *configuration), (3, 224, 224), 1000)
    for name, configuration in _CONFIGURATIONS.items()
}
