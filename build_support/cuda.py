"""Finds nvcc and decides for which GPUs it compiles.

Nothing here imports torch: its own helpers know no CUDA toolkit beside a CPU-only torch.
"""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

DEFAULT_ARCHS = ["8.0+PTX"]
USUAL_NVCC = "/usr/local/cuda/bin/nvcc"

HOW_TO_GET_NVCC = (
    "Install the CUDA toolkit (https://developer.nvidia.com/cuda-downloads) and set CUDA_HOME "
    "to its folder, or set CNNKERNELS_CUDA=off to build without CUDA."
)

# The names that TORCH_CUDA_ARCH_LIST takes beside numbers (torch.utils.cpp_extension).
NAMED_ARCHS = {
    "Volta": ["7.0+PTX"],
    "Turing": ["7.5+PTX"],
    "Ampere": ["8.0", "8.6+PTX"],
    "Ada": ["8.9+PTX"],
    "Hopper": ["9.0+PTX"],
    "Blackwell": ["10.0", "10.3", "12.0", "12.1+PTX"],
}


class ToolkitError(Exception):
    """No CUDA toolkit, or one that cannot compile."""


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit that compiles."""

    nvcc: Path
    version: str  # "13.0"
    cudart: Path  # libcudart_static.a


def parse_arch_list(text: str) -> list[str]:
    """Turns a TORCH_CUDA_ARCH_LIST ("8.0;9.0a+PTX", "Ampere 9.0") into compute capabilities.

    Order is kept, duplicates go: "8.0" besides "8.0+PTX" is one.

    Raises:
        ValueError: an entry is neither a compute capability nor a known name.
    """
    wants_ptx: dict[str, bool] = {}
    for entry in re.split(r"[;,\s]+", text.strip(";, \t\n")):
        for arch in NAMED_ARCHS.get(entry, [entry]):
            match = re.fullmatch(r"(\d{1,2}\.\d[af]?)(\+PTX)?", arch)
            if not match:
                raise ValueError(
                    f"TORCH_CUDA_ARCH_LIST: {entry!r} is no GPU architecture; write compute "
                    f"capabilities such as '8.0;9.0+PTX', or names: {', '.join(NAMED_ARCHS)}"
                )
            number, ptx = match.groups()
            wants_ptx[number] = wants_ptx.get(number, False) or ptx is not None
    return [number + ("+PTX" if ptx else "") for number, ptx in wants_ptx.items()]


def gencode_flags(archs: list[str]) -> list[str]:
    """The flags of nvcc for `archs`, as parse_arch_list gives them."""
    flags = []
    for arch in archs:
        number, _, ptx = arch.partition("+")
        sm = number.replace(".", "")
        code = f"[sm_{sm},compute_{sm}]" if ptx else f"sm_{sm}"
        flags.append(f"-gencode=arch=compute_{sm},code={code}")
    return flags


def device_archs() -> list[str]:
    """The compute capabilities of this machine's GPUs, ascending; empty without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return []

    def attribute(device: int, number: int) -> int:
        value = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(value), number, device)
        return value.value

    # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR, CUDA Driver API.
    found = {(attribute(device, 75), attribute(device, 76)) for device in range(count.value)}
    return [f"{major}.{minor}" for major, minor in sorted(found)]


def choose_archs(environ: Mapping[str, str]) -> list[str]:
    """The architectures asked for, else those of this machine's GPUs, else DEFAULT_ARCHS.

    The newest GPU's PTX goes in too, so that the build also runs on later ones.
    """
    if text := environ.get("TORCH_CUDA_ARCH_LIST", "").strip():
        return parse_arch_list(text)
    if archs := device_archs():
        return [*archs[:-1], archs[-1] + "+PTX"]
    return DEFAULT_ARCHS


def find_nvcc(environ: Mapping[str, str]) -> Path:
    """The nvcc of CUDA_HOME, CUDA_PATH, PATH or /usr/local/cuda, the first that exists.

    Raises:
        ToolkitError: there is none.
    """
    candidates = [
        os.path.join(environ[name], "bin", "nvcc")
        for name in ("CUDA_HOME", "CUDA_PATH")
        if environ.get(name)
    ]
    candidates += ["nvcc", USUAL_NVCC]
    for candidate in candidates:
        if found := shutil.which(candidate, path=environ.get("PATH", "")):
            return Path(found)
    raise ToolkitError("nvcc not found in CUDA_HOME, CUDA_PATH, PATH or /usr/local/cuda")


def probe_toolkit(nvcc: Path) -> Toolkit:
    """Checks that `nvcc` finds its headers, a host compiler it accepts, and its runtime.

    nvcc itself is asked where things are: it may be a wrapper script far from its toolkit.

    Raises:
        ToolkitError: something is missing, with nvcc's own words.
    """
    plan = _run(nvcc, "--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull)
    version = re.search(r"-D__CUDACC_VER_MAJOR__=(\d+) -D__CUDACC_VER_MINOR__=(\d+)", plan)
    top = re.search(r"^#\$ TOP=(.*)$", plan, re.MULTILINE)
    libraries = re.search(r"^#\$ LIBRARIES=(.*)$", plan, re.MULTILINE)
    if not (version and top and libraries):
        raise ToolkitError(f"{nvcc} --dryrun gives no answer that this build understands")

    _run(nvcc, "-E", "-x", "cu", os.devnull, "-o", os.devnull)  # includes cuda_runtime.h

    folders = [flag.removeprefix("-L") for flag in shlex.split(libraries[1])]
    folders += [os.path.join(top[1], "lib64"), os.path.join(top[1], "lib")]
    for folder in folders:
        cudart = Path(os.path.realpath(folder), "libcudart_static.a")
        if cudart.is_file():
            return Toolkit(nvcc, ".".join(version.groups()), cudart)
    raise ToolkitError(f"{nvcc} has no libcudart_static.a in {', '.join(folders)}")


def _run(nvcc: Path, *arguments: str) -> str:
    try:
        done = subprocess.run([nvcc, *arguments], capture_output=True, text=True)
    except OSError as error:
        raise ToolkitError(f"{nvcc} does not run: {error}") from error
    output = done.stdout + done.stderr
    if done.returncode != 0:
        raise ToolkitError(f"{nvcc} is broken: {output.strip()}")
    return output


def choose_toolkit(environ: Mapping[str, str]) -> tuple[Toolkit | None, str]:
    """The toolkit to build with, or None for a CPU build, and a line that says which and why.

    CNNKERNELS_CUDA decides: "auto" (the default) takes a toolkit that works, "on" insists on
    one, "off" ignores it.

    Raises:
        ToolkitError: "on", and there is no working toolkit.
        ValueError: CNNKERNELS_CUDA has another value.
    """
    mode = environ.get("CNNKERNELS_CUDA") or "auto"
    if mode not in ("auto", "on", "off"):
        raise ValueError(f"CNNKERNELS_CUDA is {mode!r}; it must be auto, on or off")
    if mode == "off":
        return None, "without CUDA: CNNKERNELS_CUDA=off"
    try:
        toolkit = probe_toolkit(find_nvcc(environ))
    except ToolkitError as error:
        if mode == "on":
            raise ToolkitError(f"CNNKERNELS_CUDA=on, but {error}\n{HOW_TO_GET_NVCC}") from error
        reason = " ".join(str(error).split())
        return None, f"without CUDA: {reason}"
    return toolkit, f"with CUDA {toolkit.version}: {toolkit.nvcc}"
