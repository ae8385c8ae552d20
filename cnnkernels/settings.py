"""Switches that hold for the current thread."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class _Settings(threading.local):
    def __init__(self) -> None:
        # On the instance: torch.compile guards what it reads here, but no class attribute.
        self.emulate = False
        self.emulate_tf32 = False
        self.algorithm = ""
        self.fast_math = False
        # All, as the ops take them: "[emulated]:[algorithm][:tf32][:fast]", or None for none. An
        # argument of the op, so that a backward pass and a captured graph keep it.
        self.kernels: str | None = None

    def set(self, **values: Any) -> None:
        vars(self).update(values)
        backend = "emulated" if self.emulate else ""
        allowed = ":tf32" if self.emulate and self.emulate_tf32 else ""
        allowed += ":fast" if self.fast_math else ""
        kernels = f"{backend}:{self.algorithm}{allowed}"
        self.kernels = None if kernels == ":" else kernels

    @contextmanager
    def changed(self, **values: Any) -> Iterator[None]:
        """Have other values in a ``with`` block."""
        before = {name: getattr(self, name) for name in values}
        self.set(**values)
        try:
            yield
        finally:
            self.set(**before)


settings = _Settings()
