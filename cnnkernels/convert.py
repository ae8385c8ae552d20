"""convert(model): put our modules in the place of torch's, and fuse what stands in a row."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.modules import conv, pooling
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from cnnkernels import fusion
from cnnkernels.functional import DEVICES, DTYPES
from cnnkernels.nn import (
    AdaptiveAvgPool2d,
    AdaptiveMaxPool2d,
    AvgPool2d,
    Conv2d,
    MaxPool2d,
)

# Which of our types replaces which of torch's.
_REPLACEMENTS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: Conv2d,
    nn.MaxPool2d: MaxPool2d,
    nn.AvgPool2d: AvgPool2d,
    nn.AdaptiveMaxPool2d: AdaptiveMaxPool2d,
    nn.AdaptiveAvgPool2d: AdaptiveAvgPool2d,
}

_CONVOLUTIONS_AND_POOLS = (
    conv._ConvNd,
    pooling._MaxPoolNd,
    pooling._MaxUnpoolNd,
    pooling._AvgPoolNd,
    pooling._LPPoolNd,
    pooling._AdaptiveMaxPoolNd,
    pooling._AdaptiveAvgPoolNd,
    pooling.FractionalMaxPool2d,
    pooling.FractionalMaxPool3d,
)


class Unconverted(NamedTuple):
    """A convolution or pooling module that is not ours.

    Its name in the tree ('' is the root), its type, and why it is not.
    """

    name: str
    type: type[nn.Module]
    reason: str


class _Slot(NamedTuple):
    """A place in the tree. One module may stand in several."""

    parent: nn.Module
    name: str
    module: nn.Module


def convert(model: nn.Module, fuse: bool = True, strict: bool = False) -> nn.Module:
    """Replace the 2-D convolutions and pools of :mod:`torch.nn` by ours, anywhere in `model`.

    The tree is changed in place. Parameters and buffers stay the same objects, so an optimizer
    made before still holds them; names, ``state_dict`` and training flags stay too. A module that
    stands in several places still is one module. Only exact types are replaced, and no module
    that someone has changed (by hooks, parametrizations, a method set on the instance): see
    :func:`unconverted` for what was left and why. To convert again changes nothing.

    Convert before ``torch.compile``, ``torch.jit`` or a parallel wrapper, which may hold on to the
    modules they were given.

    Args:
        model: a module or a tree of modules.
        fuse: run a convolution and the ReLU, or ReLU and pool, that follow it in the forward of a
            module by one kernel; in eval mode with a BatchNorm2d between them, too. Modules stay
            where and what they are: see :mod:`cnnkernels.fusion`.
        strict: raise if anything cannot be replaced.

    Returns:
        `model`, or its replacement if the root itself was replaced.

    Raises:
        RuntimeError: `strict`, and a convolution or pooling module cannot be replaced; the message
            lists them all, and nothing was changed.
    """
    if strict:
        _require_convertible(model)
    slots = [
        _Slot(parent, name, module)
        for parent in model.modules()
        for name, module in parent._modules.items()
        if module is not None
    ]
    new = {
        module: _remake(module, _REPLACEMENTS[type(module)])
        for module in model.modules()
        if type(module) in _REPLACEMENTS and _obstacle(module) is None
    }
    for parent, name, module in slots:
        if module in new:
            new.get(parent, parent)._modules[name] = new[module]
    model = new.get(model, model)
    if fuse:
        for module in reversed([*model.modules()]):
            fusion.fuse(module)
    return model


def unconverted(model: nn.Module) -> list[Unconverted]:
    """The convolution and pooling modules of torch.nn in `model` that are not ours, and why.

    Changes nothing. A module that stands in several places is listed once.
    """
    return [
        Unconverted(name, type(module), _obstacle(module) or "convert() was not called")
        for name, module in _foreign(model)
    ]


def _require_convertible(model: nn.Module) -> None:
    stuck = [
        f"  {name or '(root)'}: {type(module).__name__}: {reason}"
        for name, module in _foreign(model)
        if (reason := _obstacle(module)) is not None
    ]
    if stuck:
        raise RuntimeError("\n".join(["convert: cannot replace these modules:", *stuck]))


def _foreign(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    ours = tuple(_REPLACEMENTS.values())
    for name, module in model.named_modules():
        is_ours = isinstance(module, ours)
        if issubclass(_eager_type(module), _CONVOLUTIONS_AND_POOLS) and not is_ours:
            yield name, module


def _eager_type(module: nn.Module) -> type:
    """The module's type, or torch's type of which torch.jit made a ScriptModule."""
    if isinstance(module, torch.jit.ScriptModule):
        eager = getattr(nn, module.original_name, None)
        return eager if isinstance(eager, type) else type(module)
    return type(module)


# ---------------------------------------------------------------- what stands in the way


def _obstacle(module: nn.Module) -> str | None:
    """Why a convolution or pooling module cannot be replaced, or None if it can."""
    return _type_obstacle(module) or _customisation(module) or _tensor_obstacle(module)


def _type_obstacle(module: nn.Module) -> str | None:
    if type(module) in _REPLACEMENTS:
        return None
    if isinstance(module, torch.jit.ScriptModule):
        return "compiled by torch.jit"
    if isinstance(module, LazyModuleMixin):
        return "not initialised yet"
    if parametrize.is_parametrized(module):
        return "has parametrizations"
    for base in _REPLACEMENTS:
        if isinstance(module, base):
            return f"a subclass of {base.__name__}, which may compute something else"
    return "no kernels for this type"


def _customisation(module: nn.Module) -> str | None:
    """What was done to this one instance that its type does not tell, or None."""
    for name, value in vars(module).items():
        if name.endswith("_hooks") and value:
            return f"has hooks ({name.strip('_')})"
    overrides = fusion.overrides(module)
    return f"its {overrides[0]} is set on the instance" if overrides else None


def _tensor_obstacle(module: nn.Module) -> str | None:
    for name, tensor in module.named_parameters(recurse=False):
        if type(tensor) is not nn.Parameter:
            return f"{name} is of type {type(tensor).__name__}"
        if tensor.dtype not in DTYPES or tensor.device.type not in DEVICES:
            return f"{name} is {tensor.dtype} on {tensor.device.type}"
    return None


# ---------------------------------------------------------------- making modules


def _remake(module: nn.Module, cls: type[nn.Module]) -> nn.Module:
    """A `cls` with all of a module's attributes.

    Parameters and buffers are shared, the tables that hold them are not, so that neither module
    sees what is later registered on the other.
    """
    new = cls.__new__(cls)
    for name, value in vars(module).items():
        vars(new)[name] = value.copy() if isinstance(value, (dict, set)) else value
    return new
