"""Switches that hold for the current thread."""

import threading


class _Settings(threading.local):
    def __init__(self) -> None:
        # On the instance: torch.compile guards what it reads here, but no class attribute.
        self.emulate = False


settings = _Settings()
