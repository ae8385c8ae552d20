"""convert(model): put our modules in the place of torch's, and fuse what stands in a row."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.modules import conv, pooling
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from cnnkernels.functional import DEVICES, DTYPES
from cnnkernels.nn import (
    AdaptiveAvgPool2d,
    AdaptiveMaxPool2d,
    AvgPool2d,
    Conv2d,
    ConvReLU2d,
    ConvReLUPool2d,
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

# Rows of modules, named by their types after replacement, and what makes one module of them. It
# takes the first one's position; the others' positions get nn.Identity, so that names stay.
_FUSIONS: dict[tuple[type[nn.Module], ...], Callable[..., nn.Module]] = {
    (Conv2d, nn.ReLU): lambda conv, relu: _remake(conv, ConvReLU2d),
    (Conv2d, nn.ReLU, MaxPool2d): lambda conv, relu, pool: _remake_with_pool(conv, pool),
    (Conv2d, nn.ReLU, AvgPool2d): lambda conv, relu, pool: _remake_with_pool(conv, pool),
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


class _Match(NamedTuple):
    """A row of slots in a Sequential that one of the fusions takes."""

    pattern: tuple[type[nn.Module], ...]
    slots: list[_Slot]


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
        fuse: make one ConvReLU2d of a Conv2d and the ReLU right after it in an nn.Sequential, and
            one ConvReLUPool2d if a MaxPool2d or AvgPool2d comes next. The others' positions get an
            nn.Identity: the output of the Sequential is the same, that of its Conv2d alone is
            not. A Conv2d that is also used elsewhere, without what follows here, is not fused.
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
    fusions = _fusions(slots) if fuse else {}
    new = {
        module: _remake(module, _REPLACEMENTS[type(module)])
        for module in model.modules()
        if type(module) in _REPLACEMENTS and _obstacle(module) is None
    }
    vacated = []
    for head, matches in fusions.items():
        pattern, row = matches[0]
        new[head] = _FUSIONS[pattern](*(slot.module for slot in row))
        vacated += [slot for match in matches for slot in match.slots[1:]]
    for parent, name, module in slots:
        if module in new:
            new.get(parent, parent)._modules[name] = new[module]
    for parent, name, module in vacated:
        parent._modules[name] = nn.Identity().train(module.training)
    return new.get(model, model)


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
    overrides = _overrides(module)
    return f"its {overrides[0]} is set on the instance" if overrides else None


def _overrides(module: nn.Module) -> list[str]:
    """The instance attributes that hide one of the class.

    A module as torch makes it has none; `forward` is one where someone has set it, and
    `_compiled_call_impl` after Module.compile().
    """
    return [name for name in vars(module) if hasattr(type(module), name)]


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


def _remake_with_pool(conv: nn.Module, pool: nn.Module) -> ConvReLUPool2d:
    new = _remake(conv, ConvReLUPool2d)
    new.take_over(pool)
    return new


# ---------------------------------------------------------------- fusion


def _fusions(slots: list[_Slot]) -> dict[nn.Module, list[_Match]]:
    """The modules to fuse with what follows them, each with its match in every slot it stands in.

    A module of which one slot has no match, or another one, is left out: it stays one module.
    """
    matches = defaultdict(list)
    for parent, row in _rows(slots).items():
        for position, slot in enumerate(row):
            matches[slot.module].append(_match(row[position:]) if _runs_in_a_row(parent) else None)
    return {
        module: found
        for module, found in matches.items()
        if None not in found and len({match.pattern for match in found}) == 1
    }


def _rows(slots: list[_Slot]) -> dict[nn.Module, list[_Slot]]:
    rows = defaultdict(list)
    for slot in slots:
        rows[slot.parent].append(slot)
    return rows


def _match(row: list[_Slot]) -> _Match | None:
    """The longest fusion of which these slots are the beginning."""
    for pattern in sorted(_FUSIONS, key=len, reverse=True):
        head = row[: len(pattern)]
        types = tuple(_REPLACEMENTS.get(type(slot.module), type(slot.module)) for slot in head)
        if types == pattern and _is_fusible(*(slot.module for slot in head)):
            return _Match(pattern, head)
    return None


def _runs_in_a_row(parent: nn.Module) -> bool:
    """Whether a call of `parent` is nn.Sequential's own loop over its children."""
    own = ("forward", "__iter__", "__call__", "_call_impl")
    return not _overrides(parent) and all(
        getattr(type(parent), name) is getattr(nn.Sequential, name) for name in own
    )


def _is_fusible(head: nn.Module, *followers: nn.Module) -> bool:
    """Followers must be without state, since nn.Identity takes their places."""
    if any(_customisation(module) or _tensor_obstacle(module) for module in (head, *followers)):
        return False
    if any(getattr(module, "return_indices", False) for module in followers):
        return False
    return not any(module._parameters or module._buffers or module._modules for module in followers)
