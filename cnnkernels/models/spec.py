"""What the rest of the package knows of a model."""

from collections.abc import Callable
from typing import NamedTuple

from torch import nn


class ModelSpec(NamedTuple):
    """How to build a model, and what goes in and out: (N, *input_shape) to logits (N, classes)."""

    build: Callable[[], nn.Module]
    input_shape: tuple[int, int, int]
    classes: int
