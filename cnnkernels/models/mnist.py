"""Networks for ten classes of 28x28 grey images: (N, 1, 28, 28) to logits (N, 10).

All have two 5x5 convolutions with ReLU, torch's default initialisation and a linear classifier.
"""

from torch import nn

from cnnkernels.models.spec import ModelSpec

_IMAGE_SIZE = 28
_CLASSES = 10


def model_a() -> nn.Sequential:
    """Padded convolutions, each followed by 2x2 max pooling."""
    return _two_layers(padding=2, pool=nn.MaxPool2d)


def model_b() -> nn.Sequential:
    """As Model A, with average pooling."""
    return _two_layers(padding=2, pool=nn.AvgPool2d)


def model_c() -> nn.Sequential:
    """As Model B, without padding."""
    return _two_layers(padding=0, pool=nn.AvgPool2d)


def convnet() -> nn.Sequential:
    """Neither padding nor pooling.

    Like the others it gives logits; their cross entropy, by which it is trained, is the negative
    log-likelihood of their log-softmax.
    """
    return _two_layers(padding=0, pool=None)


def _two_layers(padding: int, pool: type[nn.Module] | None) -> nn.Sequential:
    def layer(channels: int, filters: int) -> list[nn.Module]:
        convolution = nn.Conv2d(channels, filters, kernel_size=5, padding=padding)
        return [convolution, nn.ReLU(), *([pool(2)] if pool else [])]

    size = _IMAGE_SIZE
    for _ in range(2):
        size = (size + 2 * padding - 4) // (2 if pool else 1)
    return nn.Sequential(
        *layer(1, 16), *layer(16, 32), nn.Flatten(), nn.Linear(32 * size * size, _CLASSES)
    )


_BUILDERS = {"a": model_a, "b": model_b, "c": model_c, "convnet": convnet}

MODELS = {
    name: ModelSpec(build, (1, _IMAGE_SIZE, _IMAGE_SIZE), _CLASSES)
    for name, build in _BUILDERS.items()
}
