"""Compiles the CUDA kernels to PTX and links their launchers with ptxsim, which interprets it.

Beside the launchers, a library, a program is built of the cases of tests/emulator: they tell what
kernels may use, of the emulator and of the PTX alike.
"""

import os
import subprocess
from pathlib import Path

from build_support import library
from build_support.cuda import Toolkit, choose_toolkit

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path("build", "ptx")

# As in the build proper, but to PTX alone, which is neither assembled nor compressed.
NVCC_FLAGS = [
    *library.NVCC_FLAGS,
    "-Xcompiler=-fvisibility=default",
    "-gencode=arch=compute_80,code=compute_80",
    "--compress-mode=none",
]
# The stand-in runtime goes into the library itself: a torch with CUDA brings another libcudart,
# whose functions, found first, would otherwise be the ones that are called.
LINK_FLAGS = ["-Wl,-Bsymbolic", "-Wl,-z,defs", "-ldl"]

PROGRAM_RULE = """
rule program
  command = {cxx} -pthread $in -o $out -Wl,-rpath,'$$ORIGIN/ptxsim'
  description = link $out

"""


def find_tools() -> tuple[Path, Toolkit]:
    """ptxsim's folder, and nvcc.

    Raises:
        LookupError: one is missing.
    """
    simulator = ROOT / os.environ.get("CNNKERNELS_PTXSIM", "../shared/tools/ptxsim")
    if not (simulator / "Makefile").is_file():
        raise LookupError(f"no ptxsim at {simulator}; CNNKERNELS_PTXSIM tells where it is")
    toolkit, why = choose_toolkit(os.environ)
    if toolkit is None:
        raise LookupError(why)
    return simulator, toolkit


def build(simulator: Path, toolkit: Toolkit) -> Path:
    """Brings launchers.so and the program `cases` up to date and returns their folder."""
    cxx = os.environ.get("CXX", "g++")
    jobs = library.choose_jobs(os.environ, len(os.sched_getaffinity(0)), library.free_memory())
    runtime = build_runtime(simulator, toolkit, cxx, jobs)
    build_file = FOLDER / "build.ninja"
    library.write_if_changed(ROOT / build_file, ninja_text(toolkit, cxx, runtime))
    run([library.find_ninja(), "-f", build_file, "-j", jobs])
    return ROOT / FOLDER


def build_runtime(simulator: Path, toolkit: Toolkit, cxx: str, jobs: int) -> list[Path]:
    """The objects of ptxsim and of its stand-in for the CUDA runtime."""
    folder = ROOT / FOLDER / "ptxsim"
    settings = [f"OUT={folder}", f"CXX={cxx}", f"CUDA_HOME={toolkit.cudart.parents[1]}"]
    run(["make", "-C", simulator, f"-j{jobs}", *settings, folder / "libcudart.so.13"])
    return sorted(folder.glob("*.o"))


def ninja_text(toolkit: Toolkit, cxx: str, runtime: list[Path]) -> str:
    text = library.RULES.format(folder=FOLDER, cxx=cxx, nvcc=toolkit.nvcc)
    text += PROGRAM_RULE.format(cxx=cxx)

    def compile_all(*patterns: str) -> list[str]:
        nonlocal text
        objects = []
        for source in sorted(path for pattern in patterns for path in ROOT.glob(pattern)):
            objects.append(str(FOLDER / source.relative_to(ROOT).with_suffix(".o")))
            text += f"build {objects[-1]}: nvcc {source.relative_to(ROOT)}\n"
            text += f"  flags = -x cu {' '.join(NVCC_FLAGS)}\n"
        return objects

    cases = compile_all("tests/emulator/*_cases.cpp", "tests/ptx/cases.cpp")
    # The runtime first: its variables must exist before the launchers register their kernels.
    launchers = [*map(str, runtime)]
    launchers += compile_all("csrc/cuda/*.cu", "tests/emulator/kernels.cu", "tests/ptx/*.cu")
    stand_in = FOLDER / "ptxsim" / "libcudart.so.13"
    text += f"build {FOLDER / 'cases'}: program {' '.join(cases)} {stand_in}\n"
    text += f"build {FOLDER / 'launchers.so'}: link {' '.join(launchers)}\n"
    return text + f"  flags = {' '.join(LINK_FLAGS)}\n"


def run(command: list) -> None:
    """Runs a build step; its output stands in the error if it fails."""
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed:\n{done.stdout}{done.stderr}")
