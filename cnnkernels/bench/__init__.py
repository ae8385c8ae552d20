"""Our kernels beside torch's, case by case: what is measured, how, and the reports of it."""

from pathlib import Path

import torch

from cnnkernels.bench import report
from cnnkernels.bench.sides import OTHER_SUITES, SUITES, works, zoo
from cnnkernels.bench.timing import Disagreement, Row, machine, measure
from cnnkernels.data import MissingExtra

__all__ = ["OTHER_SUITES", "SUITES", "Disagreement", "Row", "run"]


def run(
    suite: str = "all",
    quick: bool = False,
    device: str = "cpu",
    json: Path | None = None,
    plot: Path | None = None,
) -> int:
    """Measures a suite, prints what it finds, and writes the reports that are asked for.

    Returns:
        0, or 1 if some results were not torch's, which then are not timed.

    Raises:
        MissingExtra: the suite is zoo, and torchvision cannot be imported.
    """
    if suite == "zoo":
        zoo()  # an error comes before anything is timed
    where, rows, wrong = torch.device(device), [], []
    about = machine(where)
    print("\n".join(f"{name}: {value}" for name, value in about.items()), end="\n\n")
    print(report.HEADER)
    for name in SUITES if suite == "all" else (suite,):
        for work in works(name, quick):
            try:
                rows.append(measure(work, where, quick))
                print(report.line(rows[-1]), flush=True)
            except Disagreement as error:
                wrong.append(error)
                print(f"WRONG {error}", flush=True)
    print("", *report.summary(rows), sep="\n")
    if json:
        report.write_json(about, rows, json)
    if plot:
        try:
            report.plot(about, rows, plot)
        except MissingExtra as reason:
            print(f"no plot: {reason}")
    return 1 if wrong else 0
