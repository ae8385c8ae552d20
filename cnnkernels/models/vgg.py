"""VGG (Simonyan and Zisserman, 2015): 3x3 convolutions with ReLU in blocks, max pooling between.

`vgg11` and `vgg16` map (N, 3, 224, 224) to logits (N, 1000). They are torchvision's: the same
architecture, initialisation and state_dict, so its pretrained weights fit. `vgg11-32` and
`vgg16-32` map (N, 3, 32, 32) to logits (N, 10): the same features, of which a 32x32 image leaves
one pixel, so that they need no pooling before the classifier, and a linear layer classifies.
"""

from functools import partial

import torch
from torch import Tensor, nn

from cnnkernels.models.spec import ModelSpec

# Filters of each block's convolutions: the paper's configurations A and D.
_BLOCKS = {
    "vgg11": ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    "vgg16": ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)),
}


class VGG(nn.Module):
    """Features, pooling to a fixed size and a classifier."""

    def __init__(self, features: nn.Module, avgpool: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.avgpool = avgpool
        self.classifier = classifier
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of each image."""
        return self.classifier(torch.flatten(self.avgpool(self.features(images)), 1))


def vgg(name: str) -> VGG:
    """The configuration of that name for 224x224 images and 1,000 classes."""
    features = _features(name)  # first, as in torchvision: a seed then gives the same weights
    classifier = nn.Sequential(
        nn.Linear(512 * 7 * 7, 4096),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(4096, 4096),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(4096, 1000),
    )
    return VGG(features, nn.AdaptiveAvgPool2d(7), classifier)


def small_vgg(name: str) -> VGG:
    """The configuration of that name for 32x32 images and ten classes."""
    return VGG(_features(name), nn.Identity(), nn.Linear(512, 10))


def _features(name: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for block in _BLOCKS[name]:
        for filters in block:
            layers += [nn.Conv2d(channels, filters, 3, padding=1), nn.ReLU(inplace=True)]
            channels = filters
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


MODELS = {
    **{name: ModelSpec(partial(vgg, name), (3, 224, 224), 1000) for name in _BLOCKS},
    **{f"{name}-32": ModelSpec(partial(small_vgg, name), (3, 32, 32), 10) for name in _BLOCKS},
}
