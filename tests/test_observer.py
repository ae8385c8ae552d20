"""The emulator's checker and profiler: by themselves, and on the real kernels."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from build_support.library import INSTRUMENTED_FLAGS

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "tests" / "emulator" / "observed"
PLANTED = re.findall(r'^ +\{"(\w+)",', (FOLDER / "planted.cu").read_text(), re.MULTILINE)


def run(command: list, timeout: int = 300) -> subprocess.CompletedProcess:
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test program: the kernels instrumented, all else not, compiled by $CXX or g++."""
    folder = tmp_path_factory.mktemp("observed")
    compiler = os.environ.get("CXX", "g++").split()
    flags = ["-std=c++17", "-O2", "-pthread", "-Wall", "-Wno-unknown-pragmas"]
    kernels, path = folder / "planted.o", folder / "program"
    emulator = sorted((ROOT / "csrc" / "emulator").glob("*.cpp"))
    steps = [
        [*flags, *INSTRUMENTED_FLAGS, "-c", "-x", "c++", FOLDER / "planted.cu", "-o", kernels],
        [*flags, "-DCNN_TARGET=instrumented", *emulator, FOLDER / "test_observed.cpp", kernels]
        + ["-ldl", "-o", path],
    ]
    for step in steps:
        result = run([*compiler, *step])
        assert result.returncode == 0, result.stderr
    return path


def test_list_is_complete(program: Path) -> None:
    assert PLANTED
    assert run([program]).stdout.split() == PLANTED


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_caught_and_its_repaired_twin_passes(program: Path, name: str) -> None:
    result = run([program, name], timeout=60)
    assert result.returncode == 0, result.stderr
