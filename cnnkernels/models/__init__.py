"""The reference networks, in plain :mod:`torch.nn`: ``cnnkernels.convert`` brings our kernels in.

One file per family, each with a table of its models.
"""

from torch import nn

from cnnkernels.models import mnist, vgg
from cnnkernels.models.spec import ModelSpec

MODELS: dict[str, ModelSpec] = {**mnist.MODELS, **vgg.MODELS}


def model_names() -> list[str]:
    """The names that :func:`build_model` knows."""
    return list(MODELS)


def build_model(name: str) -> nn.Module:
    """A new model, freshly initialised, float32 on the CPU.

    Raises:
        ValueError: there is no model of that name.
    """
    if name not in MODELS:
        raise ValueError(f"model {name!r}: not one of {', '.join(MODELS)}")
    return MODELS[name].build()
