"""Every CUDA kernel beside cuDNN and ATen, timed by events; reports for programs and for people.

    PYTHONPATH=tests python -m benchmarks.gpu --json FILE --markdown FILE --plot FILE

Each pass of each case by every algorithm that can run it, first compared with float64. tf32 is off
and, for convolutions, on, for both sides; cuDNN is left to choose its fastest algorithm. A time is
the median of rounds, before each of which the L2 cache is emptied. `--device cpu` measures the
native kernels by the host's clock; `--quick` takes one case of each op, one image, one round.
"""

import argparse
import datetime
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from accuracy import error_bound, relative_error
from torch import Tensor

import cnnkernels
from benchmarks.passes import PASSES, Call, Pass
from cnnkernels.data import MissingExtra, import_extra

# A pass is timed for so long, but in no fewer and no more rounds.
MILLISECONDS = 60
FEWEST, MOST = 10, 100

TF32_EPS = 2**-10


@dataclass(frozen=True)
class Row:
    """A pass by an algorithm of ours, beside torch's on the same inputs."""

    op: str
    case: str
    kernel_pass: str
    tf32: bool | None  # None where it plays no part
    algorithm: str
    chosen: bool  # by default
    ours_ms: float
    torch_ms: float
    error: float  # ours over what it may be

    @property
    def speed(self) -> float:
        """Times torch's."""
        return self.torch_ms / self.ours_ms


# ---------------------------------------------------------------- clocks

Clock = Callable[[Call, int], list[float]]  # the milliseconds of so many calls


def host_clock(call: Call, rounds: int) -> list[float]:
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - begin))
    return times


def cuda_clock(call: Call, rounds: int) -> list[float]:
    """By events, with a cold L2 cache."""
    # Larger than any L2, and long enough under way for the host to launch the call meanwhile: else
    # small kernels would seem to take the host's time.
    other = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    spans = []
    for _ in range(rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        other.zero_()
        begin.record()
        call()
        end.record()
        spans.append((begin, end))
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) for begin, end in spans]


CLOCKS: dict[str, Clock] = {"cpu": host_clock, "cuda": cuda_clock}


def median_ms(clock: Clock, call: Call, quick: bool) -> float:
    *_, warm = clock(call, 2)
    rounds = min(max(int(MILLISECONDS / warm), FEWEST), MOST)
    return statistics.median(clock(call, 1 if quick else rounds))


# ---------------------------------------------------------------- measuring


def measure(which: Pass, device: str, quick: bool) -> Iterator[Row]:
    """By every algorithm, with tf32 off and, where it plays a part, on."""
    references = which.calls(device, torch.float64).torchs()
    for tf32 in (False, True) if which.op.startswith("conv2d") else (None,):
        # `benchmark`: cuDNN times its algorithms in the first call and keeps the fastest.
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=bool(tf32)):
            torchs = which.calls(device).torchs
            eps = TF32_EPS if tf32 else torch.finfo(torch.float32).eps
            bounds = [error_bound(*pair, eps) for pair in zip(torchs(), references, strict=True)]
            torch_ms = median_ms(CLOCKS[device], torchs, quick)
            for candidate in which.candidates(device):
                with cnnkernels.algorithm(candidate.algorithm):
                    ours = which.calls(device).ours
                    error = largest_error(ours(), references, bounds)
                    ours_ms = median_ms(CLOCKS[device], ours, quick)
                chosen = which.kernel_pass in candidate.runs
                names = which.op, which.case.name, which.name, tf32, candidate.algorithm
                yield Row(*names, chosen, ours_ms, torch_ms, error)


def largest_error(
    results: Iterable[Tensor], references: Iterable[Tensor], bounds: list[float]
) -> float:
    """Over its bound."""
    errors = [relative_error(*pair) for pair in zip(results, references, strict=True)]
    return (torch.tensor(errors) / torch.tensor(bounds)).max().item()  # NaN if one is


def shrunk(passes: list[Pass]) -> Iterator[Pass]:
    """The first case of each op, with one image."""
    firsts: dict[str, Any] = {}
    for which in passes:
        case = which.case
        if case == firsts.setdefault(which.op, case):
            yield replace(which, case=replace(case, input=(1, *case.input[1:])))


def facts(device: str) -> dict[str, Any]:
    """What the times depend on beside the code."""
    info = cnnkernels.info()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": next(name for name in info["devices"] if name.startswith(device)),
        **info["versions"],
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


# ---------------------------------------------------------------- reports


def markdown(about: dict[str, Any], rows: list[Row]) -> str:
    lines = ["# Kernels beside torch's", ""]
    lines += [f"- {name}: {value}" for name, value in about.items()]
    lines += [
        "",
        "Medians in milliseconds; x: times torch's speed. What is **bold** runs by default.",
    ]
    for op, of_op in groupby(rows, lambda row: row.op):
        lines += ["", f"## {op}", "", "| case | pass | tf32 | algorithm | ours | torch | x |"]
        lines += ["|---|---|---|---|--:|--:|--:|", *map(markdown_row, of_op)]
    return "\n".join(lines) + "\n"


def markdown_row(row: Row) -> str:
    algorithm = f"**{row.algorithm}**" if row.chosen else row.algorithm
    tf32 = {None: "", False: "off", True: "on"}[row.tf32]
    wrong = "" if row.error <= 1 else ", INACCURATE"
    times = f"{row.ours_ms:.4f} | {row.torch_ms:.4f} | {row.speed:.2f}"
    return f"| {row.case} | {row.kernel_pass} | {tf32} | {algorithm}{wrong} | {times} |"


def plot(about: dict[str, Any], rows: list[Row], path: Path) -> None:
    """Bars of how many times torch's speed the default algorithms have.

    Raises:
        MissingExtra: matplotlib is absent.
    """
    figure = import_extra("matplotlib.figure", "matplotlib", extra="viz").Figure
    bars = [row for row in reversed(rows) if row.chosen]
    picture = figure(figsize=(8, 1.5 + 0.18 * len(bars)), layout="constrained")
    axes = picture.subplots()
    names = [f"{r.case}, {r.kernel_pass}{', tf32' if r.tf32 else ''}" for r in bars]
    colors = ["tab:green" if row.speed >= 1 else "tab:gray" for row in bars]
    places = range(len(bars))
    axes.barh(places, [row.speed - 1 for row in bars], left=1, color=colors)
    axes.set_yticks(places, names, fontsize=6)
    axes.set_xscale("log")
    axes.axvline(1, color="black")
    axes.set_xlabel("times torch's speed")
    axes.set_title(f"{about['device']}, torch {about['torch']}, cuDNN {about['cudnn']}")
    axes.margins(y=0.01)
    picture.savefig(path)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("json", "markdown", "plot"):
        parser.add_argument(f"--{name}", type=Path, metavar="FILE")
    parser.add_argument("--device", choices=list(CLOCKS), default="cuda")
    parser.add_argument("--quick", action="store_true", help="one case of each op, one image")
    options = parser.parse_args(arguments)

    rows = []
    for which in shrunk(PASSES) if options.quick else PASSES:
        for row in measure(which, options.device, options.quick):
            print(markdown_row(row), flush=True)
            rows.append(row)
    write_reports(options, facts(options.device), rows)
    inaccurate = [row for row in rows if not row.error <= 1]
    if inaccurate:
        sys.exit("\n".join(["inaccurate:", *map(markdown_row, inaccurate)]))


def write_reports(options: argparse.Namespace, about: dict[str, Any], rows: list[Row]) -> None:
    for path in filter(None, (options.json, options.markdown, options.plot)):
        path.parent.mkdir(parents=True, exist_ok=True)
    if options.json:
        data = about | {"rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(data, indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(markdown(about, rows))
    if options.plot:
        try:
            plot(about, rows, options.plot)
        except MissingExtra as reason:
            print(f"no plot: {reason}")


if __name__ == "__main__":
    main()
