"""Sanitizers find the bugs that they are there for, and leave good kernels and the emulator alone.

`make sanitize` runs this after the grid of real kernels, which tests/sanitize/kernel_grid.cpp is.
"""

import os
import shlex
import subprocess
from pathlib import Path

import pytest
from test_emulator import CASES

from build_support import sanitize
from build_support.sanitize import ASAN, SANITIZERS, TSAN, Sanitizer

ROOT = Path(__file__).parents[1]

# The bugs of tests/sanitize/planted.cpp: who finds them, and in what words.
BUGS = {
    "barrier_too_late": (TSAN, "data race"),
    "blocks_write_one_element": (TSAN, "data race"),
    "index_beyond_registers": (ASAN, "insufficient space for an object of type 'float'"),
    "load_misaligned_vector": (ASAN, "misaligned address"),
    "overflow_an_index": (ASAN, "signed integer overflow"),
    "overwrite_before_read": (TSAN, "data race"),
    "read_before_written": (TSAN, "data race"),
    "read_dynamic_shared_memory": (ASAN, "AddressSanitizer: use-after-poison"),
    "read_global_memory": (ASAN, "AddressSanitizer: heap-buffer-overflow"),
    "read_static_shared_memory": (ASAN, "AddressSanitizer: use-after-poison"),
    "shuffle_as_barrier": (TSAN, "data race"),
    "warp_barrier_for_a_block": (TSAN, "data race"),
    "warp_barrier_of_half_a_warp": (TSAN, "data race"),
    "warp_without_barrier": (TSAN, "data race"),
    "write_dynamic_shared_memory": (ASAN, "AddressSanitizer: use-after-poison"),
    "write_global_memory": (ASAN, "AddressSanitizer: heap-buffer-overflow"),
    "write_local_memory": (ASAN, "AddressSanitizer: stack-buffer-overflow"),
    "write_static_shared_memory": (ASAN, "AddressSanitizer: use-after-poison"),
}

# Cases of tests/emulator that do on purpose what ASan or UBSan stop first.
OVERRUN = "AddressSanitizer: use-after-poison"
STOPPED = {
    "vectors_are_aligned": "misaligned address",
    "write_beside_a_static_array": OVERRUN,
    "write_beside_the_dynamic_buffer": OVERRUN,
}

# TSan knows no fences; under it some cases take more than 10 s, for what others show too.
NOT_FOR_TSAN = {
    "fences_order_blocks",
    "launches_from_many_threads",
    "same_bits_whatever_the_thread_count",
}

# A fault at a guard page is to reach the case, and not to become a report.
ENVIRONMENTS = {
    "stack_overflow_faults": {"ASAN_OPTIONS": "handle_segv=0", "TSAN_OPTIONS": "handle_segv=0"}
}


def run(sanitizer: Sanitizer, program: str, *arguments: str, **environ: str):
    return subprocess.run(
        sanitize.command(sanitizer, program, *arguments),
        cwd=ROOT,
        env=sanitize.environment(sanitizer, **environ),
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module", autouse=True)
def programs(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The programs of both sanitizers, but for the kernel grid."""
    source = tmp_path_factory.mktemp("probe") / "probe.cpp"
    source.write_text("int main() {}\n")
    compiler = shlex.split(os.environ.get("CXX") or "g++")
    for sanitizer in SANITIZERS:
        probe = [*compiler, *sanitizer.instrument, str(source), "-o", str(source.with_suffix(""))]
        if subprocess.run(probe, capture_output=True).returncode != 0:
            pytest.skip(f"no {' '.join(sanitizer.instrument)} with {compiler[0]}")
        sanitize.build(ROOT, sanitizer, "planted", "emulator_cases")


def test_the_table_of_bugs_is_complete() -> None:
    assert run(ASAN, "planted").stdout.split() == list(BUGS)


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found_where_it_is(bug: str) -> None:
    sanitizer, message = BUGS[bug]
    result = run(sanitizer, "planted", bug)
    assert result.returncode != 0
    assert message in result.stderr
    frames = [line for line in result.stderr.splitlines() if bug in line]
    assert any("tests/sanitize/planted.cpp:" in line for line in frames), result.stderr


@pytest.mark.parametrize("sanitizer", SANITIZERS, ids=lambda s: s.name)
@pytest.mark.parametrize("bug", BUGS)
def test_the_repaired_kernel_is_left_alone(bug: str, sanitizer: Sanitizer) -> None:
    result = run(sanitizer, "planted", bug, "repaired")
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


def test_an_unknown_bug_is_an_error() -> None:
    assert run(ASAN, "planted", "no_such_bug").returncode == 2


@pytest.mark.parametrize("sanitizer", SANITIZERS, ids=lambda s: s.name)
@pytest.mark.parametrize("case", CASES)
def test_the_emulators_own_case_passes(case: str, sanitizer: Sanitizer) -> None:
    if case in (STOPPED if sanitizer == ASAN else NOT_FOR_TSAN):
        pytest.skip(f"not for {sanitizer.name}")
    result = run(sanitizer, "emulator_cases", case, **ENVIRONMENTS.get(case, {}))
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


@pytest.mark.parametrize("case", STOPPED)
def test_asan_stops_the_emulators_bad_accesses(case: str) -> None:
    result = run(ASAN, "emulator_cases", case)
    assert result.returncode != 0
    assert STOPPED[case] in result.stderr
    assert "tests/emulator/" in result.stderr
