"""Fusion: a convolution and what follows it in a module's forward, run by one kernel.

A module's tree stays as it is: children keep their types, names and parameters, and each still
computes what it did. What changes is the parent whose ``forward`` calls them in a row: its class is
mixed with :class:`Fused`, which runs that forward as torch.fx traced it, each row as one call.

Rows are a convolution and then, each at most once and in this order, BatchNorm2d, ReLU and a max or
average pool (a pool only after a ReLU), where nothing else uses what lies between. ReLU and pool
may be functions. Whether a row runs fused is decided at each call: a hook on one of its modules,
or batch statistics, and it runs one after the other.

A trace holds for the state in which it was made: another one (training, an attribute, a child
added) is traced anew. Where tracing fails, or cannot tell, the module's own forward runs.
"""

import inspect
import random
import threading
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial, wraps
from operator import is_
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.overrides import TorchFunctionMode

from cnnkernels import functional, override
from cnnkernels.autograd import recorded
from cnnkernels.nn import AvgPool2d, Conv2d, MaxPool2d, pool_settings
from cnnkernels.settings import settings

# ---------------------------------------------------------------- a row at work


class Row:
    """A convolution and its followers, as one call: ``row(input, conv, norm=..., ...)``.

    The modules are arguments, since a copy of the parent has others. Functions in the row are
    modules of its own, with the same settings.
    """

    def __init__(self, names: tuple[str, ...], relu: nn.Module | None, pool: nn.Module | None):
        self.names = names
        self.relu = relu
        self.pool = pool
        self.__name__ = "row"  # what torch.fx calls a function in its code
        self.__module__ = __name__

    def __call__(
        self,
        input: Tensor,
        conv: Conv2d,
        norm: nn.BatchNorm2d | None = None,
        relu: nn.Module | None = None,
        pool: nn.Module | None = None,
    ) -> Tensor:
        """What the modules give, called one after the other."""
        relu = self.relu if relu is None else relu
        pool = self.pool if pool is None else pool
        steps = [step for step in (conv, norm, relu, pool) if step is not None]
        if _observers:
            return _observers[-1](steps, lambda: self._run(input, steps, conv, norm, relu, pool))
        return self._run(input, steps, conv, norm, relu, pool)

    @staticmethod
    def _run(
        input: Tensor,
        steps: list[nn.Module],
        conv: Conv2d,
        norm: nn.BatchNorm2d | None,
        relu: nn.Module | None,
        pool: nn.Module | None,
    ) -> Tensor:
        tensors = _weights(input, conv, norm) if all(map(_is_plain, steps)) else None
        if tensors is None:
            for step in steps:
                input = step(input)
            return input
        if pool is not None:
            kind, kwargs = pool_settings(pool)
            function = getattr(functional, f"conv2d_relu_{kind}_pool2d")
            return conv.convolve(function, input, *tensors, **kwargs)
        function = functional.conv2d if relu is None else functional.conv2d_relu
        return conv.convolve(function, input, *tensors)


# What is called in the place of a row, with its modules and a function that runs it.
Observer = Callable[[list[nn.Module], Callable[[], Tensor]], Tensor]
_observers: list[Observer] = []


@contextmanager
def observing(observer: Observer) -> Iterator[None]:
    """Watch rows at work, which hooks would stop; hooks on all modules do not, meanwhile."""
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)


_FOLLOWERS = {nn.BatchNorm2d: "norm", nn.ReLU: "relu", MaxPool2d: "pool", AvgPool2d: "pool"}
_PLAIN = frozenset({Conv2d, *_FOLLOWERS})


def _is_plain(module: nn.Module) -> bool:
    """Whether a call of the module is its type's own, which nobody watches."""
    return type(module) in _PLAIN and not (
        module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_pre_hooks
        or module._backward_hooks
        or "forward" in vars(module)
    )


def _weights(
    input: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d | None
) -> tuple[Tensor, Tensor | None] | None:
    """Weight and bias of the convolution, with the normalisation folded into them.

    None where it is not to be folded. Nothing is kept from call to call: no version counter tells
    of a change through ``.data``. So a fold must cost less than the pass over the output that it
    spares: it is done where there are more outputs than weights. With derivatives there would be
    nothing to gain, and 16-bit weights would be rounded once more.
    """
    weight, bias = conv.weight, conv.bias
    if norm is None:
        return weight, bias
    var = norm.running_var
    if norm.training or var is None or weight.dtype not in (torch.float32, torch.float64):
        return None
    if input.dim() != 4 or not input.dtype == weight.dtype == var.dtype:
        return None
    gamma, beta = norm.weight, norm.bias
    if torch._C._is_any_autocast_enabled() or recorded(input, weight, bias, gamma, beta):
        return None
    N, _, H, W = input.shape
    if N * H * W * weight.shape[0] < weight.numel() * conv.stride[0] * conv.stride[1]:
        return None
    return folded(weight, bias, norm.running_mean, var, gamma, beta, norm.eps)


def folded(
    weight: Tensor,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """The weight (K, C, R, S) and bias (K,) of a convolution with batch normalisation after it.

    By the running mean and variance: gamma * (conv(x) + bias - mean) / sqrt(var + eps) + beta.
    """
    scale = (var + eps).rsqrt_()
    scale = scale if gamma is None else scale * gamma
    shift = -mean if bias is None else bias - mean
    shift = shift * scale if beta is None else torch.addcmul(beta, shift, scale)
    return weight * scale.view(-1, 1, 1, 1), shift


# ---------------------------------------------------------------- a module that runs its trace


class Fused:
    """Mixed into the class of a module, in the place of whose forward its trace runs."""

    def __reduce_ex__(self, protocol: int) -> tuple:
        # Pickle finds classes by their names: it gets the module's own, to be mixed again.
        _, _, *state = super().__reduce_ex__(protocol)
        return _restored, (_own_class(self),), *state


def fuse(module: nn.Module) -> None:
    """Let a module run its trace, if that has anything of ours. Changes its class in place.

    Its children are to be fused before it: the trace rests on their classes, too.
    """
    if isinstance(module, Fused) or not _is_traceable(module):
        return
    plans = _Plans({mode: _plan_in_mode(module, mode) for mode in (True, False)})
    if any(plan.is_ours for plan in plans.values()):
        module.__class__ = _fused_class(type(module))
        vars(module)[_PLANS] = plans


def _plan_in_mode(module: nn.Module, training: bool) -> "_Plan":
    before, module.training = module.training, training
    try:
        return _Plan(module)
    finally:
        module.training = before


def rows(module: nn.Module) -> list[Row]:
    """Those in the module's forward, in its present state."""
    return _plan_of(module).rows if isinstance(module, Fused) else []


def obstacle(module: nn.Module) -> str | None:
    """Why the module's forward cannot be traced in its present state, or None."""
    return (_plan_of(module) if isinstance(module, Fused) else _Plan(module)).obstacle


def _is_traceable(module: nn.Module) -> bool:
    """Whether the class is a user's or a Sequential, and its instance like any other."""
    cls = type(module)
    is_torchs = cls.__module__.startswith(("torch.", "cnnkernels.nn"))
    return (
        any(True for _ in module.children())
        and (not is_torchs or cls.forward is nn.Sequential.forward)
        and not isinstance(module, (torch.jit.ScriptModule, fx.GraphModule))
        and not overrides(module)
        and isinstance(cls.forward, types.FunctionType)
        and cls.__reduce__ is object.__reduce__
        and cls.__reduce_ex__ is object.__reduce_ex__
    )


def overrides(module: nn.Module) -> list[str]:
    """The instance attributes that hide one of the class.

    A module as torch makes it has none; `forward` is one where someone has set it, and
    `_compiled_call_impl` after Module.compile().
    """
    return [name for name in vars(module) if hasattr(type(module), name)]


@cache
def _fused_class(cls: type[nn.Module]) -> type[nn.Module]:
    """The class that torch's modules know by its name, with our forward."""

    @wraps(cls.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        plan = _plan_of(self)
        watched = _has_any_global_hook() and not _observers
        if plan.run is None or kwargs or watched or not plan.takes(args):
            return cls.forward(self, *args, **kwargs)
        return plan.run(self, *args)

    members = {"forward": forward, _OWN: cls.forward}
    members |= {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    return types.new_class(cls.__name__, (Fused, cls), exec_body=lambda body: body.update(members))


def _own_class(module: nn.Module) -> type[nn.Module]:
    return type(module).__bases__[1]


def _restored(cls: type[nn.Module]) -> nn.Module:
    return cls.__new__(_fused_class(cls))


_PLANS, _OWN = "_fusion_plans", "_own_forward"
_PARTS = frozenset({*vars(nn.Module()), _PLANS})
_tracing = threading.RLock()  # torch.fx patches nn.Module meanwhile


def _plan_of(module: nn.Module) -> "_Plan":
    plans = vars(module).get(_PLANS)
    if plans is None:  # a new module of the mixed class, such as a slice of a Sequential
        plans = vars(module)[_PLANS] = _Plans()
    plan = plans.get(module.training)
    if plan is None or not plan.holds(module):
        if torch.compiler.is_compiling():  # dynamo traces no tracing
            return _NO_PLAN
        plan = plans[module.training] = _Plan(module)
    return plan


class _Plans(dict[bool, "_Plan"]):
    """By training mode. In a copy there are none: they are made when they are needed."""

    def __reduce__(self) -> tuple:
        return _Plans, ()


class _Plan:
    """A module's forward as it was traced, and what the trace rests on.

    Attributes:
        run: The forward, of a module and the tensors that it takes; None where its own one runs.
        rows: What it fuses.
        is_ours: Whether it has rows, or functions that ours replace.
        obstacle: Why there is no trace, or None.
    """

    def __init__(self, module: nn.Module | None = None) -> None:
        self.run: Callable[..., Any] | None = None
        self.rows: list[Row] = []
        self.is_ours = False
        self.obstacle: str | None = None
        self._arity = 0
        self._names: list[str] = []
        self._containers: list[str] = []
        self._state: list[Any] = []
        if module is not None:
            self._trace(module)

    def holds(self, module: nn.Module) -> bool:
        """Whether the module's state is that of the trace."""
        return _same(_state(module, self._names, self._containers), self._state)

    def takes(self, args: tuple[Any, ...]) -> bool:
        """Whether these are the arguments that the trace stood for."""
        return len(args) == self._arity and all(type(arg) in _TENSORS for arg in args)

    def _trace(self, module: nn.Module) -> None:
        try:
            graph = _traced(module)
        except Exception as error:  # whatever a user's forward does with what is no tensor
            self.obstacle = str(error).splitlines()[0] if str(error) else type(error).__name__
        else:
            self._arity = sum(node.op == "placeholder" for node in graph.nodes)
            self._containers = sorted(set(_containers(graph)))
            self.rows = _fuse_rows(module, graph)
            self.is_ours = _replace_functions(graph) or bool(self.rows)
            self.run = _compiled(graph) if self.is_ours else None
        # Not those that are added later, as torch.compile does.
        self._names = [name for name in vars(module) if name not in _PARTS]
        self._state = _state(module, self._names, self._containers)


_TENSORS = (Tensor, nn.Parameter)
_NO_PLAN = _Plan()


def _state(module: nn.Module, names: Iterable[str], containers: Iterable[str]) -> list[Any]:
    """What decisions of a forward may rest on, as objects to be compared by identity.

    The attributes of those names; which children and parameters the module has, and the modules
    between it and the ones that it calls.
    """
    found: list[Any] = [vars(module).get(name) for name in names]
    found += [parameter is None for parameter in module._parameters.values()]
    for owner in (module, *map(module.get_submodule, containers)):
        found += owner._modules
        found += map(type, owner._modules.values())
    return found


def _same(objects: list[Any], others: list[Any]) -> bool:
    return len(objects) == len(others) and all(map(is_, objects, others))


def _compiled(graph: fx.Graph) -> Callable[..., Any]:
    code = graph.python_code("self")
    exec(compile(code.src, "<a fused forward>", "exec"), code.globals)
    return code.globals["forward"]


# ---------------------------------------------------------------- tracing


class _Untraceable(Exception):
    pass


class _Proxy(fx.Proxy):
    """Says that it is a tensor, as what it stands for will be."""

    @property
    def __class__(self) -> type:
        return Tensor


class _Tracer(fx.Tracer):
    """Records what a forward does with its children and torch's functions.

    Refuses what a graph would not repeat: modes that are entered, tensors that are made.
    """

    proxy_buffer_attributes = True

    def __init__(self) -> None:
        super().__init__()
        self.modes = _modes()

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return True

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_arg(self, value: Any) -> Any:
        if issubclass(type(value), fx.Proxy):
            return value.node
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            raise _Untraceable("its forward uses a tensor that is no buffer")
        return super().create_arg(value)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _modes() != self.modes:
            raise _Untraceable("its forward enters a mode, such as no_grad")
        return super().create_node(*args, **kwargs)


def _modes() -> tuple:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_enabled("cuda"),
        settings.kernels,
    )


class _NoNewTensors(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if not any(issubclass(kind, fx.Proxy) for kind in types):
            raise _Untraceable(f"its forward calls {getattr(func, '__name__', func)} on its own")
        return func(*args, **(kwargs or {}))


@contextmanager
def _kept(module: nn.Module) -> Iterator[None]:
    """Takes back what the block changes of the module, and then raises."""
    tables = [vars(module), module._parameters, module._buffers, module._modules]
    before = [dict(table) for table in tables]
    try:
        yield
    finally:
        changed = False
        for table, kept in zip(tables, before, strict=True):
            if not _same([*table, *table.values()], [*kept, *kept.values()]):
                table.clear()
                table.update(kept)
                changed = True
    if changed:
        raise _Untraceable("its forward changes the module")


def _traced(module: nn.Module) -> fx.Graph:
    """The graph of the module's own forward, its children as leaves.

    Raises:
        Exception: of any kind; the message tells what cannot be traced.
    """
    dice = random.getstate()
    with _tracing, _kept(module), _NoNewTensors():
        tracer = _Tracer()
        tracer.traced_func_name = _OWN if isinstance(module, Fused) else "forward"
        graph = tracer.trace(module)
    if dice != random.getstate():
        raise _Untraceable("its forward draws random numbers")
    if any(str(node.target).startswith("*") for node in graph.nodes if node.op == "placeholder"):
        raise _Untraceable("its forward takes any number of arguments")
    return graph


# ---------------------------------------------------------------- rows in a graph


def _fuse_rows(module: nn.Module, graph: fx.Graph) -> list[Row]:
    """Put one call in the place of each row."""

    def part_of(node: fx.Node) -> str | None:
        return _FOLLOWERS.get(type(step(node, module)))

    found = []
    for node in list(graph.nodes):
        if isinstance(step(node, module), Conv2d) and (after := followers(node, part_of)):
            found.append(_replace(module, graph, node, after))
    return found


# What may have come before a part of a row.
_BEFORE = {"norm": ([],), "relu": ([], ["norm"]), "pool": (["relu"], ["norm", "relu"])}


def followers(conv: fx.Node, part_of: Callable[[fx.Node], str | None]) -> dict[str, fx.Node]:
    """The calls that make a row with a convolution, by their parts in it."""
    found: dict[str, fx.Node] = {}
    node = conv
    while len(node.users) == 1:
        (user,) = node.users
        part = part_of(user)
        if part is None or user.args[:1] != (node,) or list(found) not in _BEFORE[part]:
            break
        found[part] = node = user
    return found


def step(node: fx.Node, module: nn.Module | None = None) -> nn.Module | None:
    """The module that a node of its forward calls, or one that does what its function does."""
    if not node.args or node.all_input_nodes != [node.args[0]]:  # of other settings than constants
        return None
    if module is not None and node.op == "call_module":
        called = module.get_submodule(node.target)
        return None if getattr(called, "return_indices", False) else called
    target = node.target
    if node.op == "call_method":
        target = {"relu": torch.relu, "relu_": torch.relu_}.get(target)
    make = _FUNCTIONS.get(target)
    return make and make(*node.args[1:], **node.kwargs)


def _pool(
    cls: type[nn.Module], function: Callable[..., Any], *args: Any, **kwargs: Any
) -> nn.Module | None:
    """The pool module with a function's settings; None where it returns indices, too."""
    settings = inspect.signature(function).bind(None, *args, **kwargs).arguments
    del settings["input"]
    return None if settings.get("return_indices") else cls(**settings)


_FUNCTIONS: dict[Any, Callable[..., nn.Module | None]] = {
    F.relu: nn.ReLU,
    torch.relu: nn.ReLU,
    torch.relu_: partial(nn.ReLU, inplace=True),
    F.max_pool2d: partial(_pool, MaxPool2d, functional.max_pool2d),
    torch.max_pool2d: partial(_pool, MaxPool2d, functional.max_pool2d),
    F.avg_pool2d: partial(_pool, AvgPool2d, functional.avg_pool2d),
}


def _replace(module: nn.Module, graph: fx.Graph, conv: fx.Node, after: dict[str, fx.Node]) -> Row:
    """One call for a row, where its convolution stood."""
    functions = {
        part: step(node, module) for part, node in after.items() if node.op != "call_module"
    }
    calls = [conv, *after.values()]
    names = tuple(node.target if node.op == "call_module" else node.name for node in calls)
    row = Row(names, functions.get("relu"), functions.get("pool"))
    with graph.inserting_before(conv):
        modules = {
            part: graph.get_attr(node.target)
            for part, node in after.items()
            if part not in functions
        }
        call = graph.call_function(row, (conv.args[0], graph.get_attr(conv.target)), modules)
    replace_calls(graph, calls, call)
    return row


def replace_calls(graph: fx.Graph, calls: list[fx.Node], new: fx.Node) -> None:
    """Put a node in the place of calls of which each one takes the result of the last."""
    calls[-1].replace_all_uses_with(new)
    for node in reversed(calls):
        graph.erase_node(node)


def _replace_functions(graph: fx.Graph) -> bool:
    """Put ours in the place of torch's functions; whether there were any."""
    found = [n for n in graph.nodes if n.op == "call_function" and n.target in override.FUNCTIONS]
    for node in found:
        node.target = override.replacement(node.target)
    return bool(found)


def _containers(graph: fx.Graph) -> Iterator[str]:
    """The modules between the root and those that it calls."""
    for node in graph.nodes:
        if node.op == "call_module":
            parts = node.target.split(".")[:-1]
            yield from (".".join(parts[: i + 1]) for i in range(len(parts)))
