"""Compiles and runs tests/emulator: the emulator by itself, without torch."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from build_support.cuda import ToolkitError, find_nvcc

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "tests" / "emulator"
# Each *_cases.cpp includes the kernels that it tests; test_emulator.cpp has them beside it.
PROGRAM = [*sorted(FOLDER.glob("*.cpp")), "-x", "c++", FOLDER / "kernels.cu"]
KERNELS = sorted(FOLDER.glob("*.cu"))
CASES = sorted(
    case
    for path in FOLDER.glob("*.cpp")
    for case in re.findall(r'^    \{"(\w+)", \1\},$', path.read_text(), re.MULTILINE)
)

# How fibers switch: by assembly on x86-64, by ucontext elsewhere or where asked for.
SWITCHES = {"native": [], "ucontext": ["-DCNNKERNELS_UCONTEXT_FIBERS"]}


def run(command: list, timeout: int = 300) -> subprocess.CompletedProcess:
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="session", params=SWITCHES)
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test program, compiled by $CXX or g++."""
    path = tmp_path_factory.mktemp("emulator") / request.param
    compiler = os.environ.get("CXX", "g++").split()
    flags = ["-std=c++17", "-O2", "-pthread", "-Wall", "-Wno-unknown-pragmas"]
    emulator = sorted((ROOT / "csrc" / "emulator").glob("*.cpp"))
    sources = [*emulator, *PROGRAM]
    result = run([*compiler, *flags, *SWITCHES[request.param], "-o", path, *sources])
    assert result.returncode == 0, result.stderr
    return path


def test_case_list_is_complete(program: Path) -> None:
    assert CASES
    assert run([program]).stdout.split() == CASES


@pytest.mark.parametrize("case", CASES)
def test_case(program: Path, case: str) -> None:
    result = run([program, case], timeout=60)
    assert result.returncode == 0, result.stderr


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
