"""The reference networks, in plain :mod:`torch.nn`: ``cnnkernels.convert`` brings our kernels in.

One file per family, each with a table of names and builders.
"""

from collections.abc import Callable

from torch import nn

from cnnkernels.models import mnist

_BUILDERS: dict[str, Callable[[], nn.Module]] = {**mnist.BUILDERS}


def model_names() -> list[str]:
    """The names that :func:`build_model` knows."""
    return list(_BUILDERS)


def build_model(name: str) -> nn.Module:
    """A new model with torch's default initialisation, float32 on the CPU.

    Raises:
        ValueError: there is no model of that name.
    """
    if name not in _BUILDERS:
        raise ValueError(f"model {name!r}: not one of {', '.join(_BUILDERS)}")
    return _BUILDERS[name]()
