"""Compiles and runs tests/emulator: the emulator by itself, without torch."""

import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from build_support.cuda import ToolkitError, find_nvcc

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "tests" / "emulator"
THREADS = ROOT / "csrc" / "standalone" / "threads.cpp"
EMULATOR = [*sorted((ROOT / "csrc" / "emulator").glob("*.cpp")), THREADS]
# Each *_cases.cpp includes the kernels that it tests; test_emulator.cpp has them beside it.
TESTS = [*sorted(FOLDER.glob("*.cpp")), FOLDER / "kernels.cu"]
KERNELS = sorted(FOLDER.glob("*.cu"))
CASES = sorted(
    case
    for path in FOLDER.glob("*.cpp")
    for case in re.findall(r'\{"(\w+)", \1\}', path.read_text())
)

# How fibers switch: by assembly on x86-64, by ucontext elsewhere or where asked for.
SWITCHES = {"native": [], "ucontext": ["-DCNNKERNELS_UCONTEXT_FIBERS"]}


def run(command: list, timeout: int = 300) -> subprocess.CompletedProcess:
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)


def compile_all(sources: list[Path], folder: Path, *more: str) -> list[Path]:
    """The object files that $CXX or g++ makes of C++ or CUDA sources."""
    compiler = os.environ.get("CXX", "g++").split()
    flags = ["-std=c++17", "-O2", "-pthread", "-Wall", "-Wno-unknown-pragmas", *more]

    def compile_one(source: Path) -> Path:
        target = folder / f"{source.name}.o"
        result = run([*compiler, *flags, "-o", target, "-x", "c++", "-c", source])
        assert result.returncode == 0, result.stderr
        return target

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(compile_one, sources))


@pytest.fixture(scope="session")
def test_objects(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The cases and their kernels, which know nothing of fibers."""
    return compile_all(TESTS, tmp_path_factory.mktemp("cases"))


@pytest.fixture(scope="session", params=SWITCHES)
def program(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    test_objects: list[Path],
) -> Path:
    """The test program."""
    folder = tmp_path_factory.mktemp("emulator")
    objects = compile_all(EMULATOR, folder, *SWITCHES[request.param])
    compiler = os.environ.get("CXX", "g++").split()
    path = folder / "program"
    result = run([*compiler, "-pthread", "-o", path, *test_objects, *objects])
    assert result.returncode == 0, result.stderr
    return path


def test_case_list_is_complete(program: Path) -> None:
    assert CASES
    assert run([program]).stdout.split() == CASES


@pytest.mark.parametrize("case", CASES)
def test_case(program: Path, case: str) -> None:
    result = run([program, case], timeout=60)
    assert result.returncode == 0, result.stderr


COPY = """
#include "{device}"
namespace cnnkernels::CNN_TARGET {{
struct Plain {{ float x, y, z, w; }};
__global__ void copy_one(const {type}* in, {type}* out) {{ *out = *in; }}
}}
"""


@pytest.mark.parametrize("kind", ["float4", "uint4", "double2", "float2", "__half2", "Plain"])
@pytest.mark.parametrize("level", ["-O1", "-O3"])
def test_vectors_are_not_seen_in_parts(kind: str, level: str, tmp_path: Path) -> None:
    """Instrumented by -fsanitize=thread, copying a plain struct is seen in parts, a vector not."""
    source = tmp_path / "copy.cpp"
    device = ROOT / "csrc" / "cuda" / "device.h"
    source.write_text(COPY.format(device=device, type=kind))
    flags = ["-fsanitize=thread", level, "-DCNNKERNELS_INSTRUMENTED"]
    (compiled,) = compile_all([source], tmp_path, *flags)
    code = run(["objdump", "-dr", compiled]).stdout
    (copy,) = re.findall(r"<\w*copy_one\w*>:.*?\n\n", code, re.DOTALL)
    assert bool(re.search(r"__tsan_\w*(read|write)", copy)) == (kind == "Plain"), copy


def test_unknown_case_fails(program: Path) -> None:
    assert run([program, "no_such_case"]).returncode != 0


@pytest.mark.parametrize("kernels", KERNELS, ids=lambda path: path.stem)
def test_kernels_are_cuda(kernels: Path, tmp_path: Path) -> None:
    """nvcc takes the very source of the kernels that the program ran, without a warning."""
    try:
        nvcc = find_nvcc(os.environ)
    except ToolkitError as error:
        pytest.skip(f"no nvcc: {error}")
    flags = ["-std=c++17", "--expt-relaxed-constexpr", "-Werror", "all-warnings"]
    # The first GPU that has all of the instructions.
    result = run([nvcc, *flags, "-arch=sm_80", "-c", kernels, "-o", tmp_path / "kernels.o"])
    assert result.returncode == 0, result.stderr
