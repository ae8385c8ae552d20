"""Runs what the docs type at a prompt or print, and compares the output."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from ptx.build import build_runtime, find_tools

from build_support import library
from build_support.cuda import ToolkitError, find_nvcc

ROOT = Path(__file__).parents[1]
README = ROOT / "examples" / "emulator" / "README.md"
GUIDE = ROOT / "docs" / "emulator.md"


def blocks(language: str) -> list[str]:
    """The code of README's fences, lines that go on joined."""
    found = re.findall(rf"^```{language}\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    return [re.sub(r" \\\n +", " ", block) for block in found]


def commands() -> list[tuple[str, str]]:
    """What README types at a prompt, and what comes of it."""
    parts = [part for block in blocks("console") for part in re.split(r"^\$ ", block, flags=re.M)]
    return [tuple(part.split("\n", 1)) for part in parts if part]


def run(command: str, folder: Path) -> subprocess.CompletedProcess:
    if (compiler := os.environ.get("CXX")) and command.startswith("g++ "):
        command = compiler + command.removeprefix("g++")
    result = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True)
    result.output = (result.stderr + result.stdout).replace(f"{folder}/", "")
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Looks like the root of the repository."""
    folder = tmp_path_factory.mktemp("root").resolve()
    for name in ("csrc", "examples"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, subprocess.CompletedProcess]:
    """What comes of README's commands, one after another; some are programs."""
    return {command: run(command, folder) for command, _ in commands()}


def test_readme_tells_the_truth(results: dict) -> None:
    assert {command: result.output for command, result in results.items()} == dict(commands())
    assert [command for command, result in results.items() if result.returncode != 0] == [
        "build/transpose bug",
        "build/transpose_observed check bug",
    ]


def test_kernels_without_the_bug_pass_the_checker(folder: Path, results: dict) -> None:
    result = run("build/transpose_observed check", folder)
    assert (result.returncode, result.output.count(": right\n")) == (0, 6), result.output


def test_plain_build_does_not_claim_to_check(folder: Path, results: dict) -> None:
    result = run("build/transpose check", folder)
    assert result.returncode == 2
    assert "not instrumented" in result.output


def test_flags_are_those_of_the_library() -> None:
    (line,) = (command for command, _ in commands() if " -c " in command)
    words = shlex.split(line)
    assert words[2 : words.index("-c")] == library.INSTRUMENTED_FLAGS


def test_nvcc_builds_it_without_a_warning(folder: Path) -> None:
    try:
        nvcc = find_nvcc(os.environ)
    except ToolkitError as error:
        pytest.skip(f"no nvcc: {error}")
    (line,) = blocks("sh")
    arguments = line.strip().removeprefix("nvcc ")
    result = run(f"mkdir -p build && {nvcc} -Werror all-warnings {arguments}", folder)
    assert result.returncode == 0, result.output


def test_compiled_ptx_gives_the_same(folder: Path) -> None:
    simulator, toolkit = find_tools()
    runtime = build_runtime(simulator, toolkit, os.environ.get("CXX", "g++"), jobs=1)[0].parent
    # PTX alone, and the runtime that a library replaces: ptxsim's README.
    flags = "-gencode=arch=compute_80,code=compute_80 --compress-mode=none -cudart shared"
    (line,) = blocks("sh")
    arguments = line.strip().removeprefix("nvcc ")
    built = run(f"mkdir -p build && {toolkit.nvcc} {flags} {arguments}", folder)
    assert built.returncode == 0, built.output
    result = run(f"LD_LIBRARY_PATH={runtime} build/transpose_gpu", folder)
    assert (result.returncode, result.output.count(": right\n")) == (0, 3), result.output


def test_profile_of_the_guide(capsys: pytest.CaptureFixture) -> None:
    """Its numbers stand in the guide's explanation of the columns, too."""
    pattern = r"```python\n([^`]+print\(p\)\n)```\n\nprints\n\n```\n([^`]+)```"
    ((code, expected),) = re.findall(pattern, GUIDE.read_text())
    exec(code, {})
    assert capsys.readouterr().out == expected
