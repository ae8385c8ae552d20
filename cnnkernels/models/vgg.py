"""VGG (Simonyan and Zisserman, 2015): 3x3 convolutions with ReLU in blocks, max pooling between.

`vgg11`, `vgg13`, `vgg16` and `vgg19` map (N, 3, 224, 224) to logits (N, classes). They are
torchvision's: the same architecture, initialisation and state_dict, so its pretrained weights fit.
`vgg11-32` and its like map (N, 3, 32, 32) to logits: the same features, of which a 32x32 image
leaves one pixel, so that they need no pooling before the classifier, and a linear layer classifies.
"""

from functools import partial

import torch
from torch import Tensor, nn

from cnnkernels.models.spec import ModelSpec

# How many convolutions each block has: the paper's configurations A, B, D and E.
_DEPTHS = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
_FILTERS = (64, 128, 256, 512, 512)


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


def vgg(name: str, classes: int = 1000) -> VGG:
    """The configuration of that name for 224x224 images."""
    features = _features(name)  # first, as in torchvision: a seed then gives the same weights
    classifier = nn.Sequential(
        nn.Linear(512 * 7 * 7, 4096),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(4096, 4096),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(4096, classes),
    )
    return VGG(features, nn.AdaptiveAvgPool2d(7), classifier)


def small_vgg(name: str, classes: int = 10) -> VGG:
    """The configuration of that name for 32x32 images."""
    return VGG(_features(name), nn.Identity(), nn.Linear(512, classes))


def _features(name: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for filters, depth in zip(_FILTERS, _DEPTHS[name], strict=True):
        for _ in range(depth):
            layers += [nn.Conv2d(channels, filters, 3, padding=1), nn.ReLU(inplace=True)]
            channels = filters
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


MODELS = {
    **{name: ModelSpec(partial(vgg, name), (3, 224, 224), 1000) for name in _DEPTHS},
    **{f"{name}-32": ModelSpec(partial(small_vgg, name), (3, 32, 32), 10) for name in _DEPTHS},
}
