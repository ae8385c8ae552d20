"""A small network for 32x32 colour images, such as CIFAR-10's: (N, 3, 32, 32) to (N, classes)."""

from torch import nn

from cnnkernels.models.spec import ModelSpec

_DROPOUT = 0.25


def cifar(classes: int = 10) -> nn.Sequential:
    """Three 3x3 convolutions with ReLU and 2x2 max pooling, two linear layers with dropout."""
    layers: list[nn.Module] = []
    channels = 3
    for filters in (16, 32, 64):
        layers += [nn.Conv2d(channels, filters, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        channels = filters
    return nn.Sequential(
        *layers,
        nn.Flatten(),
        nn.Dropout(_DROPOUT),
        nn.Linear(64 * 4 * 4, 500),
        nn.ReLU(),
        nn.Dropout(_DROPOUT),
        nn.Linear(500, classes),
    )


MODELS = {"cifar": ModelSpec(cifar, (3, 32, 32), 10)}
