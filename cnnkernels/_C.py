"""The compiled library: loads it, so that its ops are registered, and asks it about itself.

A library that cannot be loaded does not break ``import cnnkernels``: the error is kept, shown by
``python -m cnnkernels info``, and raised when a kernel is first needed.
"""

import ctypes
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch  # noqa: F401 (the library is linked against it)

_PATH = Path(__file__).with_name("libcnnkernels.so")


def _load() -> tuple[ctypes.CDLL | None, str | None]:
    if not _PATH.exists():
        return None, f"{_PATH} is missing: build it with `pip install -e .`"
    try:
        return ctypes.CDLL(str(_PATH)), None
    except OSError as error:
        return None, f"{error} (built for another torch? rebuild with `pip install -e .`)"


_library, load_error = _load()


def check_loaded() -> None:
    """Raise ImportError with the reason if the library could not be loaded."""
    if load_error is not None:
        raise ImportError(f"cnnkernels has no compiled kernels: {load_error}")


def observe(check: bool, profile: bool) -> None:
    """Have the emulator check or count each access of the kernels that this process launches."""
    check_loaded()
    _library.cnnkernels_observe(check, profile)


def clear_counters() -> None:
    """Forget what was counted."""
    check_loaded()
    _library.cnnkernels_clear_counters()


def counters() -> list[dict[str, Any]]:
    """What was counted, by kernel, in the order of their first launches."""
    check_loaded()
    _library.cnnkernels_counters.restype = ctypes.c_char_p
    return json.loads(_library.cnnkernels_counters())


def candidates(call: Callable[[], Any]) -> list[dict[str, Any]]:
    """The algorithms that the first op in `call` has to choose from; no kernel is run.

    Each as a dict, see answer() in csrc/selection.h. None where `call` came to no op of ours.
    """
    check_loaded()
    _library.cnnkernels_answer.restype = ctypes.c_char_p
    _library.cnnkernels_ask()
    error = None
    try:
        call()
    except RuntimeError as raised:  # the op's, in place of a result, or one of its checks'
        error = raised
    finally:
        answer = _library.cnnkernels_answer()
    if not answer and error is not None:
        raise error
    return json.loads(answer or "[]")


def info() -> dict[str, Any]:
    """Facts of the build, the CPU instruction set in use and the kernels, by backend and op."""
    check_loaded()
    _library.cnnkernels_info.restype = ctypes.c_char_p
    return json.loads(_library.cnnkernels_info())
