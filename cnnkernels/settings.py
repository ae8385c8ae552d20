"""Switches that hold for the current thread, as context managers."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _Settings(threading.local):
    def __init__(self) -> None:
        # On the instance: torch.compile guards what it reads here, but no class attribute.
        self.emulate = False


settings = _Settings()


@contextmanager
def emulate_cuda() -> Iterator[None]:
    """Run ops on CPU tensors through the CUDA kernels' own source, under the emulator.

    Holds for calls made by this thread inside the ``with`` block. A backward pass runs where its
    forward pass ran, also when it starts after the block.

    Example:
        >>> with cnnkernels.emulate_cuda():
        ...     output = cnnkernels.functional.conv2d(input, weight)
    """
    before = settings.emulate
    settings.emulate = True
    try:
        yield
    finally:
        settings.emulate = before
