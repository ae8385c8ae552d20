"""`make sanitize`: the kernels and the emulator under ASan and UBSan, and under TSan.

Builds the programs of tests/sanitize, in build/sanitize, and runs the kernel grid; the rest is
tests/test_sanitize.py.
"""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from build_support import library
from build_support.library import Group

ROOT = Path(__file__).resolve().parent.parent

# A program's rule; those that the library is built with stand in library.RULES.
PROGRAM_RULE = """
rule program
  command = {cxx} -pthread $in -o $out $flags
  description = link $out
"""

# kernel_grid exits with this where the machine lacks the instruction set.
NO_SUCH_ISA = 77


@dataclass(frozen=True)
class Sanitizer:
    """A way to compile and run what is tested."""

    name: str
    instrument: list[str]  # flags of all that is instrumented, and of the linker
    announce: list[str]  # flags of all: what csrc/emulator/sanitizer.h is to announce
    emulator_is_instrumented: bool
    options: dict[str, str]  # the environment of the programs


ASAN = Sanitizer(
    "asan",
    ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    ["-DCNNKERNELS_ASAN"],
    emulator_is_instrumented=True,
    options={"UBSAN_OPTIONS": "print_stacktrace=1"},
)
# The emulator's scheduler is not to be seen: it would order all threads.
TSAN = Sanitizer(
    "tsan",
    ["-fsanitize=thread"],
    ["-DCNNKERNELS_TSAN"],
    emulator_is_instrumented=False,
    options={"TSAN_OPTIONS": "halt_on_error=1"},
)
SANITIZERS = [ASAN, TSAN]

# Reports show lines, no variables: not to track these saves a third of the time. Sanitizers make
# g++ warn of values that it sees initialised without them.
FLAGS = "-O1 -g -fno-var-tracking -fno-omit-frame-pointer -Wno-maybe-uninitialized".split()


def programs(root: Path, strict: bool) -> dict[str, list[Group]]:
    """What each program is made of, uninstrumented."""
    cxx = [*library.CXX_FLAGS, *(["-Werror"] if strict else [])]
    cuda = [*cxx, "-x", "c++", "-Wno-unknown-pragmas"]

    def tests(*names: str | Path) -> Group:
        return Group("tests", "cxx", cuda, [Path("tests", name) for name in names])

    # What kernels instrumented for the emulator call would take the place of TSan's own functions.
    kernels = [
        replace(group, sources=[path for path in group.sources if path.stem != "instrumented"])
        for group in library.kernel_groups(root, cxx, library.isas_of(platform.machine()))
        if group.name != "instrumented"
    ]
    emulator = [group for group in kernels if group.name == "emulator"]
    standalone = Group("standalone", "cxx", cxx, [Path("csrc/standalone/threads.cpp")])
    cases = sorted(path.relative_to(root / "tests") for path in root.glob("tests/emulator/*.cpp"))
    return {
        "kernel_grid": [tests("sanitize/kernel_grid.cpp", "sanitize/threads.cpp"), *kernels],
        "planted": [tests("sanitize/planted.cpp", "sanitize/threads.cpp"), *emulator],
        "emulator_cases": [tests(*cases, "emulator/kernels.cu"), standalone, *emulator],
    }


def folder(sanitizer: Sanitizer) -> Path:
    """Where a sanitizer's objects and programs lie, from the root of the project."""
    return Path("build", "sanitize", sanitizer.name)


def ninja_text(root: Path, sanitizer: Sanitizer, cxx: str, strict: bool) -> str:
    """The build.ninja of all programs; paths are relative to `root`, where ninja runs."""
    here = folder(sanitizer)
    text = [library.RULES.format(folder=here, cxx=cxx, nvcc="nvcc"), PROGRAM_RULE.format(cxx=cxx)]
    known = set()
    for program, groups in programs(root, strict).items():
        objects = []
        for group in groups:
            flags = [*group.flags, *FLAGS, *sanitizer.announce]
            if group.name != "emulator" or sanitizer.emulator_is_instrumented:
                flags += sanitizer.instrument
            for source in group.sources:
                target = here / group.name / source.with_suffix(".o")
                objects.append(str(target))
                if target not in known:
                    known.add(target)
                    text.append(f"build {target}: cxx {source}")
                    text.append(f"  flags = {library.quoted(flags)}")
        text.append(f"build {here / program}: program {' '.join(objects)}")
        text.append(f"  flags = {library.quoted(sanitizer.instrument)}")
    return "\n".join(text) + "\n"


def build(root: Path, sanitizer: Sanitizer, *names: str) -> None:
    """Brings these programs up to date, or all.

    Raises:
        RuntimeError: ninja is missing.
        CalledProcessError: a compiler failed; it has said why.
    """
    text = ninja_text(
        root,
        sanitizer,
        cxx=os.environ.get("CXX") or "g++",
        strict=os.environ.get("CNNKERNELS_WERROR") == "1",
    )
    file = folder(sanitizer) / "build.ninja"
    library.write_if_changed(root / file, text)
    jobs = library.choose_jobs(os.environ, len(os.sched_getaffinity(0)), library.free_memory())
    targets = [str(folder(sanitizer) / name) for name in names]
    ninja = [library.find_ninja(), "-f", str(file), "-j", str(jobs), *targets]
    subprocess.run(ninja, cwd=root, check=True)


@functools.cache
def _fixed_addresses() -> list[str]:
    """A prefix that makes a command run without random addresses, where that is allowed."""
    prefix = ["setarch", platform.machine(), "--addr-no-randomize"]
    try:
        allowed = subprocess.run([*prefix, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        allowed = False
    return prefix if allowed else []


def command(sanitizer: Sanitizer, program: str, *arguments: str) -> list[str]:
    """The command line of a program, to be run from the root of the project.

    TSan gives up ("unexpected memory mapping") where addresses are more random than it knows.
    """
    prefix = _fixed_addresses() if sanitizer == TSAN else []
    return [*prefix, str(folder(sanitizer) / program), *arguments]


def environment(sanitizer: Sanitizer, **more: str) -> Mapping[str, str]:
    """The environment to run a program in."""
    return {**os.environ, **sanitizer.options, **more}


def kernel_grid_runs() -> list[tuple[Sanitizer, list[str], dict[str, str]]]:
    """The runs of kernel_grid: sanitizer, arguments, environment.

    The emulated kernels are the same for all instruction sets.
    """
    isas = library.isas_of(platform.machine())
    return [
        (ASAN, ["emulated"], {}),
        *((ASAN, ["cpu"], {"CNNKERNELS_CPU_ISA": isa}) for isa in isas),
        (TSAN, ["--small"], {}),
    ]


def main() -> None:
    """Builds everything and runs the kernel grid."""
    begin = time.monotonic()
    for sanitizer in SANITIZERS:
        build(ROOT, sanitizer)
    print(f"built in {time.monotonic() - begin:.0f} s", flush=True)
    for sanitizer, arguments, environ in kernel_grid_runs():
        print(f"{sanitizer.name}:", *environ.values(), *arguments, flush=True)
        begin = time.monotonic()
        done = subprocess.run(
            command(sanitizer, "kernel_grid", *arguments),
            cwd=ROOT,
            env=environment(sanitizer, **environ),
        )
        if done.returncode not in (0, NO_SUCH_ISA):
            sys.exit(f"{sanitizer.name} failed: exit status {done.returncode}")
        print(f"in {time.monotonic() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
