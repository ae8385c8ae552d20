"""What the rest of the package knows of a model."""

from collections.abc import Callable
from typing import NamedTuple

from torch import nn


class ModelSpec(NamedTuple):
    """How to build a model, and what goes in and out: (N, *input_shape) to logits (N, classes).

    `build` takes the number of classes; `classes` is what the model was published for.
    """

    build: Callable[[int], nn.Module]
    input_shape: tuple[int, int, int]
    classes: int
