"""explain(model, input): which kernels run a network's convolutions and pools, layer by layer."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from cnnkernels import _C, fusion, selection
from cnnkernels.convert import unconverted
from cnnkernels.demo import table
from cnnkernels.nn import MaxPool2d


@dataclass(frozen=True)
class Step:
    """One call of a convolution or pool.

    Attributes:
        layer: The module's name in the tree; of a function, that of the module that calls it.
        op: What is computed, such as "conv2d + norm + relu".
        algorithm: Ours that runs it, or "torch".
        note: The other modules that are computed with it, or why it is torch's.
    """

    layer: str
    op: str
    algorithm: str
    note: str


@dataclass
class Explanation:
    """A network's steps, in the order of their calls; prints as a table."""

    steps: list[Step] = field(default_factory=list)

    def __str__(self) -> str:
        rows = [(s.layer or "(root)", s.op, s.algorithm, s.note) for s in self.steps]
        return table(("layer", "op", "algorithm", "note"), rows, left=True)


def explain(what: str | nn.Module, *args: Any, **kwargs: Any) -> str | Explanation:
    """Which algorithms run a call, or a network, and why.

    Args:
        what: The name of a function of :mod:`cnnkernels.functional`, or a module. A module is run
            once, without gradients, in the mode that it is in.
        args: Its arguments.
        kwargs: Its keyword arguments.

    Returns:
        Of a function a text, pass by pass: see :func:`cnnkernels.selection.explain`, whose errors
        it raises, too. Of a module an :class:`Explanation`, which prints as a table: each
        convolution and pool, what runs it, what is computed with it, or why it is torch's.

    Example:
        >>> print(cnnkernels.explain("conv2d", input, weight, padding=1))
        >>> print(cnnkernels.explain(model, images))
    """
    if isinstance(what, str):
        return selection.explain(what, *args, **kwargs)
    watch = _Watch(what)
    with torch.no_grad(), watch.modules(), fusion.observing(watch.row), watch:
        what(*args, **kwargs)
    return Explanation(watch.steps)


class _Watch(TorchDispatchMode):
    """Notes the ops that are called, with the module or row at work."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self._names = {module: name for name, module in model.named_modules()}
        self._reasons = {name: reason for name, _, reason in unconverted(model)}
        self._stack: list[list[nn.Module]] = []

    @contextmanager
    def modules(self) -> Iterator[None]:
        """Keep the stack of the modules at work."""
        handles = (
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave, always_call=True),
        )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, _: Any) -> None:
        self._stack.append([module])

    def _leave(self, *_: Any) -> None:
        self._stack.pop()

    def row(self, modules: list[nn.Module], run: Callable[[], Tensor]) -> Tensor:
        """A row is one module at work, until one of its own is called."""
        self._stack.append(modules)
        try:
            return run()
        finally:
            self._stack.pop()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        namespace, name = func._schema.name.split("::")
        if "backward" not in name and ("conv" in name or "pool" in name):
            name = name.removesuffix("_with_argmax").removesuffix("_with_indices")
            if namespace == "cnnkernels":
                found = _C.candidates(lambda: func(*args, **(kwargs or {})))
                self._note(name, found)
            elif namespace == "aten":
                self._note(name, [])
        return func(*args, **(kwargs or {}))

    def _note(self, name: str, candidates: list[dict[str, Any]]) -> None:
        head, *rest = self._stack[-1]
        # A function in a row is a module without a name, called by one that has one.
        layer = next(self._names[m] for m, *_ in reversed(self._stack) if m in self._names)
        if not candidates:
            why = self._reasons.get(layer) or fusion.obstacle(head) or "convert() was not called"
            self.steps.append(Step(layer, name, "torch", why))
            return
        kind = next(kind for kind in _FORWARD if kind in name)
        chosen = next(c["algorithm"] for c in candidates if _FORWARD[kind] in c["runs"])
        parts = ["conv2d" if rest else name, *map(_part, rest)]
        others = [self._names.get(module, "a function") for module in rest]
        note = f"with {', '.join(others)}" if rest else ""
        self.steps.append(Step(layer, " + ".join(parts), chosen, note))


# By what is in an op's name, the pass that it runs.
_FORWARD = {"conv": "fprop", "max": "max_forward", "avg": "avg_forward"}


def _part(module: nn.Module) -> str:
    return {nn.BatchNorm2d: "norm", nn.ReLU: "relu", MaxPool2d: "max_pool2d"}.get(
        type(module), "avg_pool2d"
    )
