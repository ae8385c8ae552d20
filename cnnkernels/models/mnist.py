"""Networks for ten classes of 28x28 grey images: (N, 1, 28, 28) to logits (N, 10)."""

from torch import nn


def model_a() -> nn.Sequential:
    """Two 5x5 convolutions, each with ReLU and 2x2 max pooling, and a linear classifier."""
    return nn.Sequential(
        nn.Conv2d(1, 16, kernel_size=5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, kernel_size=5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 10),
    )


BUILDERS = {"a": model_a}
