"""The reports of a benchmark: lines, geometric means beside their bars, JSON, a plot."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Any, NamedTuple

from cnnkernels.bench.timing import Row
from cnnkernels.data import import_extra


class Bar(NamedTuple):
    """What speed some rows are to have, as a geometric mean: times torch's."""

    name: str
    eager: float  # as written
    best: float  # in the better layout
    applies: Callable[[Row], bool]


def _model(name: str, kernel_pass: str) -> Callable[[Row], bool]:
    return lambda row: (
        row.suite == "models" and row.case.startswith(name) and row.kernel_pass == kernel_pass
    )


BARS = [
    Bar("model a inference", 2.8, 1.2, _model("model a", "inference")),
    Bar("model b inference", 1.6, 1.2, _model("model b", "inference")),
    Bar("model c inference", 1.8, 1.2, _model("model c", "inference")),
    Bar("model a step", 1.6, 1.1, _model("model a", "step")),
    Bar("model b step", 1.4, 1.1, _model("model b", "step")),
    Bar("model c step", 1.3, 1.1, _model("model c", "step")),
    Bar("vgg-16 inference, batch 1", 1.4, 1.25, _model("vgg-16, batch 1", "inference")),
    Bar("vgg-16 inference, batch 4", 1.4, 1.25, _model("vgg-16, batch 4", "inference")),
    Bar("vgg-16 inference with fast_math", 1.8, 1.25, _model("vgg-16 fast_math", "inference")),
    Bar("vgg-16 step", 1.2, 1.1, _model("vgg-16, batch 4", "step")),
    Bar("zoo inference", 1.2, 1.0, lambda row: row.suite == "zoo"),
    Bar("conv+relu+pool", 1.8, 1.4, lambda row: row.suite == "fused"),
    Bar(
        "conv+relu+pool, mnist first, forward",
        5.0,
        1.4,
        lambda row: row.case == "mnist first" and row.kernel_pass == "forward",
    ),
    Bar("pooling", 2.0, 1.3, lambda row: row.suite == "pool"),
    Bar(
        "convolution forward",
        1.1,
        1.0,
        lambda row: row.suite == "layers" and row.kernel_pass == "forward",
    ),
]

HEADER = (
    f"{'case':50} {'pass':9} {'ours':>9} {'eager':>9} {'best':>9} {'compile':>9}  ms"
    f"{'/eager':>8} {'/best':>6} {'/comp.':>6} {'GFLOP/s':>8}"
)


def line(row: Row) -> str:
    """A row of the printed table."""

    def number(value: float | None, width: int, digits: int) -> str:
        return f"{'-':>{width}}" if value is None else f"{value:{width}.{digits}f}"

    times = (row.ours_ms, row.eager_ms, row.eager_best_ms, row.compile_ms)
    speeds = (row.speedup_eager, row.speedup_best, row.speedup_compile)
    return " ".join(
        (
            f"{row.case:50} {row.kernel_pass:9}",
            *(number(ms, 9, 3) for ms in times),
            "   ",
            *(number(speed, 6, 2) for speed in speeds),
            number(row.gflops, 8, 1),
        )
    )


def summary(rows: Sequence[Row]) -> Iterator[str]:
    """Geometric means of speeds beside their bars, of what was measured."""
    titles = f"{'eager':>6} {'bar':>5} {'best':>7} {'bar':>5}"
    yield f"{'geometric means, times the speed of':40} {titles}"
    for bar in BARS:
        found = [row for row in rows if bar.applies(row)]
        if not found:
            continue
        eager = geometric_mean(row.speedup_eager for row in found)
        best = geometric_mean(row.speedup_best for row in found)
        met = "met" if eager >= bar.eager and best >= bar.best else "missed"
        yield f"{bar.name:40} {eager:6.2f} {bar.eager:5.2f} {best:7.2f} {bar.best:5.2f}  {met}"
    slow = [row for row in rows if row.speedup_eager < 0.95 or (row.speedup_compile or 1) < 0.9]
    yield f"{len(rows)} rows, {len(slow)} of them below 0.95 of eager or 0.9 of torch.compile"


def write_json(machine: dict[str, Any], rows: Sequence[Row], path: Path) -> None:
    """The report for programs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(row.as_json()) for row in rows)
    path.write_text(f'{{"machine": {json.dumps(machine)},\n"rows": [\n{lines}\n]}}\n')


def plot(machine: dict[str, Any], rows: Sequence[Row], path: Path) -> None:
    """How many times torch's speed ours is, and how near the products of matrices come.

    Raises:
        MissingExtra: matplotlib is absent.
    """
    figure = import_extra("matplotlib.figure", "matplotlib", extra="viz").Figure
    rows = list(reversed(rows))
    picture = figure(figsize=(11, 1.5 + 0.16 * len(rows)), layout="constrained")
    speeds, rates = picture.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    places = range(len(rows))
    speeds.barh(
        places,
        [row.speedup_eager - 1 for row in rows],
        left=1,
        color=["tab:green" if row.speedup_eager >= 1 else "tab:red" for row in rows],
        label="eager as written",
    )
    speeds.plot([row.speedup_best for row in rows], places, "k|", label="its better layout")
    speeds.set_yticks(places, [f"{row.case}, {row.kernel_pass}" for row in rows], fontsize=5)
    speeds.set_xscale("log")
    speeds.axvline(1, color="black")
    speeds.set_xlabel("times torch's speed")
    speeds.legend()
    for label, style, scale in (("ours", "o", 1.0), ("eager", "x", None)):
        rates.plot(
            [(row.gflops or math.nan) * (scale or 1 / row.speedup_eager) for row in rows],
            places,
            style,
            markersize=3,
            label=label,
        )
    rates.axvline(machine["peak_gflops"], color="black", linestyle=":", label="product of matrices")
    rates.set_xlabel("GFLOP/s")
    rates.legend()
    picture.suptitle(
        f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}, float32"
    )
    speeds.margins(y=0.005)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Text as text: as outlines it would take most of an SVG.
    with import_extra("matplotlib", "matplotlib", extra="viz").rc_context({"svg.fonttype": "none"}):
        picture.savefig(path)
