"""What this installation is and can do."""

import platform
from typing import Any

import torch

from cnnkernels import _C


def info() -> dict[str, Any]:
    """Versions, build, devices and kernels of this installation.

    Returns:
        A dict with the keys ``versions``, ``devices``, ``load_error`` (None, or why the compiled
        library could not be loaded) and, where it was loaded, ``build``, ``cpu_isa`` (the CPU
        instruction set in use) and ``algorithms``: backend -> op -> algorithm -> passes.
    """
    from cnnkernels import __version__

    devices = [f"cpu: {torch.get_num_threads()} threads"]
    devices += [
        f"cuda:{i}: {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())
    ]
    facts = {
        "versions": {
            "cnnkernels": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "devices": devices,
        "load_error": _C.load_error,
    }
    return facts | (_C.info() if _C.load_error is None else {})
