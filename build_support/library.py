"""The build of libcnnkernels.so: what is compiled how, written down as a build.ninja.

Ninja then runs only what is out of date: a changed source, header (compilers list those they
read) or flag.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from build_support.cuda import Toolkit, choose_archs, choose_toolkit, gencode_flags

LIBRARY = "libcnnkernels.so"

# Nothing here reads errno or traps: with -fno-math-errno and -fno-trapping-math g++ vectorises
# far more.
CXX_FLAGS = (
    "-std=c++17 -O3 -fPIC -pthread -fvisibility=hidden -Wall -Wextra "
    "-fno-math-errno -fno-trapping-math -Icsrc"
).split()
NVCC_FLAGS = (
    "-std=c++17 -O3 --expt-relaxed-constexpr -lineinfo -Xcompiler=-fPIC,-fvisibility=hidden -Icsrc"
).split()

# The emulated kernels once more, with calls before each access and in each basic block (see
# csrc/emulator/instrumented.cpp). -O1 and blocks in the source's order keep the code as near to the
# source as the counters suppose; -g1 tells lines.
INSTRUMENTED_FLAGS = (
    "-DCNN_TARGET=instrumented -DCNNKERNELS_INSTRUMENTED -fsanitize=thread "
    "-fsanitize-coverage=trace-pc -O1 -fno-reorder-blocks -fno-thread-jumps -g1"
).split()

# The oldest torch whose stable ABI is used, 2.10 (torch/headeronly/version.h).
TORCH_TARGET_FLAG = "-DTORCH_TARGET_VERSION=0x020a000000000000"

# The instruction sets that the CPU kernels are compiled for, slowest first. Their lines are short:
# a loop over one that becomes a call of memcpy or a `rep stos` costs more than it moves.
PORTABLE_FLAGS = ["-fno-tree-loop-distribute-patterns"]
PORTABLE = {"portable": PORTABLE_FLAGS}
AVX2_FLAGS = [*PORTABLE_FLAGS, "-mavx2", "-mfma", "-mf16c"]
X86_ISAS = {
    **PORTABLE,
    "avx2": AVX2_FLAGS,
    "avx512": [*AVX2_FLAGS, *"-mavx512f -mavx512bw -mavx512dq -mavx512vl".split()]
    + ["-mprefer-vector-width=512"],
}

# The head of build.ninja; `$flags` are those of a group.
RULES = """\
ninja_required_version = 1.5
builddir = {folder}

rule cxx
  command = {cxx} $flags -MD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = c++ $out

rule nvcc
  command = {nvcc} $flags -MD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = nvcc $out

rule link
  command = {cxx} -shared -pthread $in -o $out $flags
  description = link $out
"""


@dataclass(frozen=True)
class Torch:
    """The torch to build against, found without importing it."""

    folder: Path
    version: str


@dataclass(frozen=True)
class Group:
    """Sources that are compiled with the same flags."""

    name: str
    rule: str
    flags: list[str]
    sources: list[Path]


@dataclass(frozen=True)
class Config:
    """All that a build depends on besides the sources."""

    cxx: str
    torch: Torch
    toolkit: Toolkit | None = None
    archs: tuple[str, ...] = ()
    machine: str = platform.machine()
    warnings_are_errors: bool = False

    @property
    def folder(self) -> Path:
        """Where the objects go: builds with and without CUDA keep theirs apart."""
        kind = "cuda" if self.toolkit else "cpu"
        return Path("build", f"{sysconfig.get_platform()}-{kind}")

    @property
    def isas(self) -> dict[str, list[str]]:
        """The instruction sets of the CPU kernels, and the flags for each."""
        return isas_of(self.machine)


def isas_of(machine: str) -> dict[str, list[str]]:
    """The instruction sets that CPU kernels are compiled for, and the flags for each."""
    return X86_ISAS if machine in ("x86_64", "AMD64") else PORTABLE


def find_torch() -> Torch:
    """The torch that Python would import.

    Raises:
        RuntimeError: there is none.
    """
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise RuntimeError(f"{sys.executable} has no torch to build against: pip install torch")
    return Torch(Path(spec.origin).parent, importlib.metadata.version("torch"))


def find_ninja() -> str:
    """The ninja of the Python package of that name, else the one on PATH.

    Raises:
        RuntimeError: there is neither.
    """
    if importlib.util.find_spec("ninja"):
        import ninja

        return os.path.join(ninja.BIN_DIR, "ninja")
    if found := shutil.which("ninja"):
        return found
    raise RuntimeError(f"{sys.executable} has no ninja to build with: pip install ninja")


def choose_jobs(environ: Mapping[str, str], cores: int, free_bytes: int) -> int:
    """MAX_JOBS, else one job a core as long as each has 2 GiB of memory.

    Raises:
        ValueError: MAX_JOBS is not a positive number.
    """
    if text := environ.get("MAX_JOBS"):
        if not text.isdecimal() or int(text) == 0:
            raise ValueError(f"MAX_JOBS is {text!r}; it must be a positive number")
        return int(text)
    return max(1, min(cores, free_bytes // 2**31))


def free_memory() -> int:
    """Bytes that can be used without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, value = line.split(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    raise RuntimeError("/proc/meminfo names no MemAvailable")


def groups(root: Path, config: Config) -> list[Group]:
    """What to compile, in link order."""
    strict = ["-Werror"] if config.warnings_are_errors else []
    cxx = [*CXX_FLAGS, *strict]
    torch_flags = [TORCH_TARGET_FLAG, f"-I{config.folder}"]
    torch_flags += ["-isystem", str(config.torch.folder / "include")]

    cuda = []
    if config.toolkit:
        torch_flags.append("-DCNNKERNELS_WITH_CUDA")
        cuda.append(Group("cuda", "nvcc", nvcc_flags(config), _found(root, "csrc/cuda/*.cu")))

    return [
        Group("torch", "cxx", [*cxx, *torch_flags], _found(root, "csrc/*.cpp")),
        *cuda,
        *kernel_groups(root, cxx, config.isas),
    ]


def kernel_groups(root: Path, cxx: list[str], isas: dict[str, list[str]]) -> list[Group]:
    """What needs neither torch nor nvcc: the CPU's kernels, and CUDA's under the emulator."""
    cpu_registry = Path("csrc/cpu/registry.cpp")
    cpu_kernels = [path for path in _found(root, "csrc/cpu/*.cpp") if path != cpu_registry]
    cuda_kernels = _found(root, "csrc/cuda/*.cu")
    # nvcc's pragmas, such as unroll, mean nothing to g++.
    emulated = [*cxx, "-x", "c++", "-Wno-unknown-pragmas"]
    return [
        Group("cpu", "cxx", cxx, [cpu_registry]),
        Group("emulator", "cxx", cxx, _found(root, "csrc/emulator/*.cpp")),
        Group("emulated", "cxx", emulated, cuda_kernels),
        Group("instrumented", "cxx", [*emulated, *INSTRUMENTED_FLAGS], cuda_kernels),
        # The linker keeps the first copy of an inline function that several objects contain.
        # One from an AVX object would crash a CPU without AVX, so those objects come last.
        *(
            Group(isa, "cxx", [*cxx, f"-DCNNKERNELS_ISA={isa}", *flags], cpu_kernels)
            for isa, flags in isas.items()
        ),
    ]


def _found(root: Path, pattern: str) -> list[Path]:
    return sorted(path.relative_to(root) for path in root.glob(pattern))


def nvcc_flags(config: Config) -> list[str]:
    """The flags for the device build of csrc/cuda."""
    flags = [*NVCC_FLAGS, *gencode_flags(list(config.archs))]
    flags.append(f'-DCNNKERNELS_CUDA_ARCHS="{";".join(config.archs)}"')
    if config.warnings_are_errors:
        flags.append("-Werror=all-warnings")
    if config.cxx != "g++":
        flags.append(f"-ccbin={shlex.split(config.cxx)[-1]}")
    return flags


def link_flags(config: Config) -> list[str]:
    """The linker's flags.

    Of torch only libtorch and libtorch_cpu are named, so that one build loads beside CPU and
    CUDA torch; a CUDA torch's libtorch brings libtorch_cuda in, hence --no-as-needed. The
    loader needs no path to them: torch is imported first.
    """
    flags = [f"-L{config.torch.folder / 'lib'}", "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu"]
    flags.append("-Wl,-z,defs")
    if config.toolkit:
        # The runtime is ours alone: hidden, it cannot clash with the one that torch brings.
        flags += [str(config.toolkit.cudart), "-Wl,--exclude-libs,ALL", "-ldl", "-lrt"]
    return flags


def ninja_text(root: Path, config: Config) -> str:
    """The build.ninja; paths are relative to `root`, where ninja runs."""
    folder = config.folder
    text = [
        RULES.format(
            folder=folder, cxx=config.cxx, nvcc=config.toolkit.nvcc if config.toolkit else "nvcc"
        )
    ]
    objects = []
    for group in groups(root, config):
        text.append(f"flags_{group.name} = {quoted(group.flags)}")
        for source in group.sources:
            target = folder / group.name / source.relative_to("csrc").with_suffix(".o")
            objects.append(str(target))
            text.append(f"build {target}: {group.rule} {source}")
            text.append(f"  flags = $flags_{group.name}")
    text.append(f"build {folder / LIBRARY}: link {' '.join(objects)}")
    text.append(f"  flags = {quoted(link_flags(config))}")
    return "\n".join(text) + "\n"


def quoted(flags: Iterable[str]) -> str:
    """Flags as ninja and the shell read them."""
    return shlex.join(flags).replace("$", "$$")


def build_info(config: Config) -> str:
    """The header build_info.h: what `cnnkernels info` tells of this build, as JSON."""
    version = subprocess.run(
        [*shlex.split(config.cxx), "--version"], capture_output=True, text=True, check=True
    )
    info = {
        "compiler": version.stdout.splitlines()[0],
        "torch": config.torch.version,
        "cuda": config.toolkit.version if config.toolkit else None,
        "cuda_archs": list(config.archs),
        "cpu_isas": list(config.isas),
    }
    return (
        "#pragma once\n\nnamespace cnnkernels {\n"
        f'inline constexpr char kBuildInfoJson[] = R"json({json.dumps(info)})json";\n'
        "}  // namespace cnnkernels\n"
    )


def write_if_changed(path: Path, text: str) -> None:
    """Leaves the file, and its time, alone where it already reads so."""
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def build(root: Path, environ: Mapping[str, str] = os.environ) -> Path:
    """Brings the library up to date and returns its path.

    Raises:
        RuntimeError: torch or ninja is missing.
        ToolkitError, ValueError: an environment variable asks for what cannot be.
        CalledProcessError: a compiler failed; it has said why.
    """
    toolkit, line = choose_toolkit(environ)
    archs = tuple(choose_archs(environ)) if toolkit else ()
    config = Config(
        cxx=environ.get("CXX") or "g++",
        torch=find_torch(),
        toolkit=toolkit,
        archs=archs,
        warnings_are_errors=environ.get("CNNKERNELS_WERROR") == "1",
    )
    suffix = f", for {' '.join(archs)}" if archs else ""
    print(f"cnnkernels: building {line}{suffix}", flush=True)

    write_if_changed(root / config.folder / "build_info.h", build_info(config))
    build_file = config.folder / "build.ninja"
    write_if_changed(root / build_file, ninja_text(root, config))
    jobs = choose_jobs(environ, len(os.sched_getaffinity(0)), free_memory())
    subprocess.run([find_ninja(), "-f", str(build_file), "-j", str(jobs)], cwd=root, check=True)
    return root / config.folder / LIBRARY
