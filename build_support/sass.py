"""What nvcc made of the kernels: the report of a tool, sass_report.py, on the built library.

    python -m build_support.sass               the matrix products against their gates
    python -m build_support.sass ARGUMENTS     the tool's own report

CNNKERNELS_SASS_REPORT tells where the tool is, which needs cuobjdump and nvdisasm.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from build_support.library import LIBRARY

ROOT = Path(__file__).resolve().parents[1]
BUILT = ROOT / "cnnkernels" / LIBRARY
USUAL_TOOL = "../shared/tools/sass_report.py"

PASSES = ["fprop", "dgrad", "wgrad"]


def command(environ: Mapping[str, str], *arguments: str) -> list[str]:
    """The command that reports on the built library.

    Raises:
        LookupError: the tool or the library is missing.
    """
    tool = ROOT / environ.get("CNNKERNELS_SASS_REPORT", USUAL_TOOL)
    if not tool.is_file():
        raise LookupError(f"no {tool}; CNNKERNELS_SASS_REPORT tells where sass_report.py is")
    if not BUILT.is_file():
        raise LookupError(f"no {BUILT}: make build")
    return [sys.executable, str(tool), str(BUILT), *arguments]


# ---------------------------------------------------------------- instances


def implicit_gemm(name: str, gradient: str, tile: tuple[int, int], packs: bool) -> str:
    """Part of the mangled name of an instance in float32."""
    operand = "" if name == "fprop" else f"NS0_{len(gradient)}{gradient}IfEE"
    rows, columns = tile
    return f"conv2d_implicit_gemm_{name}If{operand}Li{rows}ELi{columns}ELb{int(packs)}EE"


def winograd(transform: str, masked: bool) -> str:
    """Part of the mangled name of an instance."""
    return f"conv2d_winogradINS_{len(transform)}{transform}ELb{int(masked)}EE"


MANGLED = {"tf32": "f", "float16": "6__half", "bfloat16": "13__nv_bfloat16"}


def tensor_core(name: str, dtype: str, gradient: str, large: bool, packs: bool) -> str:
    """Part of the mangled name of an instance."""
    T = MANGLED[dtype]
    again = T if T == "f" else "S2_"  # a name that was there before
    operand = "" if name == "fprop" else f"NS0_{len(gradient)}{gradient}I{again}EE"
    return f"conv2d_tensor_core_{name}I{T}Lb{int(large)}ELb{int(packs)}E{operand}E"


# ---------------------------------------------------------------- gates


@dataclass(frozen=True)
class Gate:
    """An instance that a layer runs by, and what its hot loop has to reach."""

    kernel: str  # part of its mangled name
    name: str
    layer: str
    least_share: float | None  # of multiply-adds or mma, in what is issued
    goal: float
    most_registers: int = 255
    least_ceiling: float | None = None  # on sm_80
    least_warps: int = 0
    most_fragment_loads: float | None = None  # LDSM for an mma
    forbids_narrow_loads: bool = False  # of 32 bits from shared memory

    def judge(self, row: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """What is shown of the row of a report, and what misses a gate."""
        hot = row["hot"]
        loads, mma = hot["mix"]["lds"], sum(hot["mix"].get("tensor", {}).values())
        fragments = sum(count for kind, count in loads.items() if "LDSM" in kind)
        values = {
            "kernel": self.name,
            "layer": self.layer,
            "arch": row["arch"],
            "registers": row["regs"],
            "warps": row["occupancy"]["warps"],
            "share": hot["share"],
            "goal": self.goal,
            "ceiling": hot["ceiling"],
            "LDSM/mma": fragments / mma if mma else None,
        }
        holds = {
            "stack": not row["stack"],
            "spills": not (row["stl_bytes"] or row["ldl_bytes"]),
            "registers": row["regs"] <= self.most_registers,
            "share": self.least_share is None or hot["share"] >= self.least_share,
            "ceiling": self.least_ceiling is None
            or row["arch"] != "sm_80"
            or hot["ceiling"] >= self.least_ceiling,
            "warps": row["occupancy"]["warps"] >= self.least_warps,
            "LDSM/mma": self.most_fragment_loads is None
            or values["LDSM/mma"] <= self.most_fragment_loads,
            "32-bit loads": not (self.forbids_narrow_loads and loads.get("32")),
        }
        return values, [gate for gate, held in holds.items() if not held]


def _gates() -> Iterator[Gate]:
    """Those of the instances that `auto` runs VGG-16's conv3_2 and Model A's second layer by.

    What is named CUTLASS's in the comments are its own instances, compiled and judged alike.
    """
    layouts = {False: "contiguous", True: "channels_last"}
    for packs, layout in layouts.items():
        for layer, tile in (("conv3_2", (128, 128)), ("A conv2", (128, 32))):
            for name in PASSES:
                least, goal = (0.70, 0.80) if name == "wgrad" else (0.79, 0.85)  # .63; .76 to .79
                yield Gate(
                    implicit_gemm(name, "Plain", tile, packs),
                    f"implicit_gemm {name}",
                    f"{layer}, {layout}",
                    least,
                    goal,
                    most_registers=255 if name == "wgrad" else 128,
                )
    for transform in ("Winograd2x2", "Winograd4x4"):
        yield Gate(
            winograd(transform, masked=False), transform, "conv3_2", 0.85, 0.85, most_registers=128
        )
    for dtype in MANGLED:
        for layer, large in (("conv3_2", True), ("A conv2", False)):
            for name in PASSES:
                is_wgrad = name == "wgrad"
                yield Gate(
                    tensor_core(name, dtype, "Plain", large, packs=True),
                    f"tensor_core {dtype} {name}",
                    f"{layer}, channels_last",
                    None,
                    0.30 if is_wgrad else 0.36,  # .17; .33 to .36
                    least_ceiling=0.98,
                    least_warps=8,
                    most_fragment_loads=None if is_wgrad else 0.25,
                    forbids_narrow_loads=is_wgrad,
                )


GATES = [*_gates()]


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def table(report: list[dict[str, Any]]) -> str:
    """Each gate's instance on each architecture, in Markdown."""
    lines = []
    for gate in GATES:
        for row in report:
            if gate.kernel not in row["mangled"]:
                continue
            values, missed = gate.judge(row)
            reached = "met" if values["share"] >= gate.goal else "missed"
            cells = [*map(_cell, values.values()), reached, ", ".join(missed) or "hold"]
            if not lines:
                lines = [[*values, "goal is", "gates"], ["---"] * len(cells)]
            lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def multiply_adds(row: Mapping[str, Any]) -> int:
    """Those of the row's hot loop, mma among them."""
    mix = row["hot"]["mix"]
    return mix.get("fp32", {}).get("FFMA", 0) + sum(mix.get("tensor", {}).values())


def report(environ: Mapping[str, str], kernels: str) -> list[dict[str, Any]]:
    """The tool's rows for the kernels whose names match, of the loop that multiplies most.

    Where some warps multiply and others transform, that need not be the loop with the most math.

    Raises:
        LookupError: the tool, what it needs, or the library is missing.
    """
    tool = command(environ, "--json", "--top", "2", "--kernel", kernels)
    result = subprocess.run(tool, capture_output=True, text=True)
    if result.returncode != 0 and "not found" in result.stderr:
        raise LookupError(result.stderr.strip())
    if result.returncode != 0:
        raise RuntimeError(result.stderr)
    best: dict[tuple[str, str], dict[str, Any]] = {}
    for row in json.loads(result.stdout):
        instance = row["mangled"], row["arch"]
        if instance not in best or multiply_adds(row) > multiply_adds(best[instance]):
            best[instance] = row
    return [*best.values()]


def main() -> None:
    """Prints the table or the report, or why there is none."""
    try:
        if sys.argv[1:]:
            sys.exit(subprocess.run(command(os.environ, *sys.argv[1:])).returncode)
        print(table(report(os.environ, "conv2d_(implicit_gemm|tensor_core|winograd)")))
    except LookupError as reason:
        print(f"skipped: {reason}")


if __name__ == "__main__":
    main()
