"""Which algorithm runs a call: ask for one, list what could run, see what would.

By default the first algorithm runs, in the order of ``cnnkernels.info()``, that can run the problem
and suits it. That depends on the problem, its dtype and the kind of device alone: nothing is timed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cnnkernels import _C, functional
from cnnkernels.settings import settings


class Candidate(NamedTuple):
    """An algorithm that has kernels for an op.

    Attributes:
        algorithm: Its name.
        passes: Those that it has.
        runs: Those of them that it would run.
        unsupported: Why it cannot run the problem, or None.
        unsuited: Why another one is preferred where there is one, or None.
    """

    algorithm: str
    passes: list[str]
    runs: list[str]
    unsupported: str | None
    unsuited: str | None


@contextmanager
def algorithm(name: str) -> Iterator[None]:
    """Run ops by the algorithm of that name.

    Holds for calls made by this thread inside the ``with`` block, and for their backward passes
    whenever those run. What the algorithm has no kernels for, another op or pass, runs as ever. A
    call that it cannot run raises RuntimeError with the reason.

    Args:
        name: An algorithm of ``cnnkernels.info()``, or "auto": no particular one.

    Raises:
        ValueError: There is no algorithm of that name.

    Example:
        >>> with cnnkernels.algorithm("direct"):
        ...     output = cnnkernels.functional.conv2d(input, weight)
    """
    names = {"auto": ""} | {known: known for known in _names()}
    if name not in names:
        raise ValueError(f"no algorithm {name!r}; there are {', '.join(names)}")
    with settings.changed(algorithm=names[name]):
        yield


@contextmanager
def fast_math(winograd: bool = True) -> Iterator[None]:
    """Let convolutions run by what is faster and rounds more.

    Holds for calls made by this thread inside the ``with`` block, and for their backward passes
    whenever those run.

    Args:
        winograd: Winograd's F(4x4, 3x3), for 3x3 filters with stride 1 in float32 (on a GPU where
            TF32 is not allowed): a quarter of the multiplications. Its relative error is up to
            2e-6, where the direct sum's is 2e-7 (docs/performance.md).

    Example:
        >>> with cnnkernels.fast_math(winograd=True):
        ...     output = model(input)
    """
    with settings.changed(fast_math=winograd):
        yield


def _names() -> list[str]:
    backends = _C.info()["algorithms"].values()
    return sorted({name for ops in backends for names in ops.values() for name in names})


def algorithms(op: str, *args: Any, **kwargs: Any) -> list[Candidate]:
    """What could run a call of ``cnnkernels.functional.<op>``, in order of preference.

    Nothing is computed. Inside :func:`cnnkernels.emulate_cuda` they are the CUDA kernels.

    Args:
        op: The function's name, such as "conv2d".
        args: Its arguments.
        kwargs: Its keyword arguments.

    Returns:
        The algorithms of the tensors' device, with their passes of both directions; none where
        the call runs torch's own function. Where a fused function has no kernel for the whole and
        runs one after the other, they are the convolution's.

    Raises:
        ValueError: There is no such function.
        TypeError, RuntimeError: As the call itself.
    """
    if op not in _OPS:
        raise ValueError(f"no function {op!r}; there are {', '.join(_OPS)}")
    with torch.no_grad():
        found = _C.candidates(lambda: getattr(functional, op)(*args, **kwargs))
    return [Candidate(**candidate) for candidate in found]


_OPS = (
    "conv2d",
    "conv2d_relu",
    "conv2d_relu_max_pool2d",
    "conv2d_relu_avg_pool2d",
    "max_pool2d",
    "avg_pool2d",
    "adaptive_max_pool2d",
    "adaptive_avg_pool2d",
)


def explain(op: str, *args: Any, **kwargs: Any) -> str:
    """What runs a call of ``cnnkernels.functional.<op>``, pass by pass, and why, as a text.

    Arguments and errors as of :func:`algorithms`.

    Example:
        >>> print(cnnkernels.explain("conv2d", input, weight, padding=1))
    """
    tensor = next(arg for arg in (*args, *kwargs.values()) if isinstance(arg, Tensor))
    kernels = "emulated CUDA" if settings.emulate else tensor.device.type
    lines = [f"{op} of {tensor.dtype} {list(tensor.shape)}, {kernels} kernels:"]
    candidates = algorithms(op, *args, **kwargs)
    if not candidates:
        return f"{lines[0][:-1]}: none for this dtype, torch's own function runs"
    if "pool_kernel_size" in kwargs and not _is_fused(op, kwargs["pool_kernel_size"]):
        lines[0] = f"{lines[0][:-1]}, one function after the other; of the convolution:"
    kind = op.removeprefix("adaptive_")[:3]  # of pools: one op has the passes of both kinds
    for name in dict.fromkeys(name for c in candidates for name in c.passes):
        if kind == "con" or name.startswith(kind):
            lines += [f"  {name}: {c.algorithm}" for c in candidates if name in c.runs]
    for c in candidates:
        why = c.unsupported or c.unsuited
        if why and not c.runs:
            lines.append(f"  not {c.algorithm}: {why}")
    return "\n".join(lines)


def _is_fused(op: str, window: functional.Size) -> bool:
    window = functional._pair(op, "pool_kernel_size", window)
    return functional._is_fused(op == "conv2d_relu_avg_pool2d", window)
