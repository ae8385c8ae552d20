"""The CUDA kernels' own source on CPU tensors, under the emulator: see docs/emulator.md."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from cnnkernels import _C
from cnnkernels.settings import settings


@contextmanager
def emulate_cuda(check: bool = False, tf32: bool | None = None) -> Iterator[None]:
    """Run ops on CPU tensors through the CUDA kernels' own source, under the emulator.

    Holds for calls made by this thread inside the ``with`` block. A backward pass runs where its
    forward pass ran, also when it starts after the block. (An activation checkpoint runs its
    forward pass anew in the backward pass: where that was called.)

    Args:
        check: Follow each memory access and raise RuntimeError, with kernel, block, thread and
            source line, for races between threads or blocks, shared memory that is read before
            it was written, accesses out of bounds or misaligned, and results that depend on the
            order of the blocks. About a hundred times slower. Holds for all threads of the
            process, and for the launches inside the block alone.
        tf32: Let convolutions of float32 run on tensor cores, on operands rounded to TF32. (On a
            GPU ``torch.backends.cudnn.conv.fp32_precision`` allows it, as it does for torch.) None:
            as around this block, or not.

    Example:
        >>> with cnnkernels.emulate_cuda():
        ...     output = cnnkernels.functional.conv2d(input, weight)
    """
    observed = observing(check=True) if check or _CHECK_ALL else nullcontext()
    tf32 = settings.emulate_tf32 if tf32 is None else tf32
    with settings.changed(emulate=True, emulate_tf32=tf32), observed:
        yield


# How many blocks ask for it: process-wide, as a kernel's blocks may run on any thread.
_asking = {"check": 0, "profile": 0}
_lock = threading.Lock()

# Of the environment: to run a whole program, or all tests, checked.
_CHECK_ALL = os.environ.get("CNNKERNELS_EMULATOR_CHECK") == "1"


@contextmanager
def observing(check: bool = False, profile: bool = False) -> Iterator[None]:
    """Have the emulator check or count accesses in this block, whatever others ask for."""

    def ask(change: int) -> None:
        with _lock:
            _asking["check"] += change * check
            _asking["profile"] += change * profile
            _C.observe(_asking["check"] > 0, _asking["profile"] > 0)

    ask(+1)
    try:
        yield
    finally:
        ask(-1)
