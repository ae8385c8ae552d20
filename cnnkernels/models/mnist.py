"""Networks for 28x28 grey images, such as MNIST's: (N, 1, 28, 28) to logits (N, classes).

Their cross entropy, by which they are trained, is the negative log-likelihood of their
log-softmax. Weights are initialised as torch does by default.
"""

from torch import nn

from cnnkernels.models.spec import ModelSpec

_IMAGE_SIZE = 28
_HIDDEN = 512
_DROPOUT = 0.2


def model_a(classes: int = 10) -> nn.Sequential:
    """Two padded 5x5 convolutions with ReLU, each followed by 2x2 max pooling."""
    return _two_layers(classes, padding=2, pool=nn.MaxPool2d)


def model_b(classes: int = 10) -> nn.Sequential:
    """As Model A, with average pooling."""
    return _two_layers(classes, padding=2, pool=nn.AvgPool2d)


def model_c(classes: int = 10) -> nn.Sequential:
    """As Model B, without padding."""
    return _two_layers(classes, padding=0, pool=nn.AvgPool2d)


def convnet(classes: int = 10) -> nn.Sequential:
    """As Model A, with neither padding nor pooling."""
    return _two_layers(classes, padding=0, pool=None)


def net(classes: int = 10) -> nn.Sequential:
    """One 5x5 convolution with ReLU and 2x2 max pooling: enough for Fashion-MNIST's clothes."""
    size = (_IMAGE_SIZE - 4) // 2
    return nn.Sequential(
        nn.Conv2d(1, 32, kernel_size=5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * size * size, classes),
    )


def mlp(classes: int = 10) -> nn.Sequential:
    """No convolution at all, for comparison: two hidden layers, each with ReLU and dropout."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(_IMAGE_SIZE**2, _HIDDEN),
        nn.ReLU(),
        nn.Dropout(_DROPOUT),
        nn.Linear(_HIDDEN, _HIDDEN),
        nn.ReLU(),
        nn.Dropout(_DROPOUT),
        nn.Linear(_HIDDEN, classes),
    )


def _two_layers(classes: int, padding: int, pool: type[nn.Module] | None) -> nn.Sequential:
    def layer(channels: int, filters: int) -> list[nn.Module]:
        convolution = nn.Conv2d(channels, filters, kernel_size=5, padding=padding)
        return [convolution, nn.ReLU(), *([pool(2)] if pool else [])]

    size = _IMAGE_SIZE
    for _ in range(2):
        size = (size + 2 * padding - 4) // (2 if pool else 1)
    return nn.Sequential(
        *layer(1, 16), *layer(16, 32), nn.Flatten(), nn.Linear(32 * size * size, classes)
    )


_BUILDERS = {
    "a": model_a,
    "b": model_b,
    "c": model_c,
    "convnet": convnet,
    "net": net,
    "mlp": mlp,
}

MODELS = {
    name: ModelSpec(build, (1, _IMAGE_SIZE, _IMAGE_SIZE), 10) for name, build in _BUILDERS.items()
}
