"""The benchmarks: what they measure, and the reports that `make gpu` writes, here of the CPU."""

import json
import math
import re

import pytest
import torch
from test_registry import REQUIRED

import cnnkernels
from benchmarks import gpu
from benchmarks.passes import PASSES
from cnnkernels.data import MissingExtra

SMALL = list(gpu.shrunk(PASSES))


def test_each_op_and_pass_is_measured():
    measured = {(which.op, which.kernel_pass) for which in PASSES}
    for op, algorithms in REQUIRED["cuda"].items():
        # A fused backward pass is one; gathering is no pass of a network's training.
        rest = {"wgrad", "bgrad"} if op == "conv2d_relu_pool2d" else {"max_gather"}
        passes = {name for passes in algorithms.values() for name in passes} - rest
        assert {name for of, name in measured if of == op} == passes


@pytest.mark.parametrize(
    "which",
    [which for which in SMALL if which.op != "adaptive_pool2d"],  # there, vector hands on
    ids=lambda which: f"{which.op}-{which.name}",
)
def test_each_algorithm_runs_its_pass(which):
    with cnnkernels.emulate_cuda():
        candidates = which.candidates("cpu")
    assert [which.kernel_pass in c.runs for c in candidates].count(True) == 1
    for candidate in candidates:
        with cnnkernels.algorithm(candidate.algorithm):
            with cnnkernels.emulate_cuda():
                calls = which.calls("cpu")
            with cnnkernels.profile() as profile:
                calls.ours()
        assert any(candidate.algorithm in kernel.kernel for kernel in profile.kernels)


@pytest.mark.parametrize("which", SMALL, ids=lambda which: f"{which.op}-{which.name}")
def test_both_sides_compute_the_same(which):
    calls = which.calls("cpu", torch.float64)
    torch.testing.assert_close(calls.ours(), calls.torchs())


@pytest.fixture
def reports(tmp_path):
    """Where the reports go, and the arguments that say so."""
    files = {name: tmp_path / "new" / f"gpu.{name}" for name in ("json", "markdown", "svg")}
    options = zip(("--json", "--markdown", "--plot"), map(str, files.values()), strict=True)
    return files, ["--device=cpu", "--quick", *(word for option in options for word in option)]


def test_reports(reports):
    files, arguments = reports
    gpu.main(arguments)
    data = json.loads(files["json"].read_text())
    assert data["torch"] == torch.__version__
    assert data["device"].startswith("cpu: ")
    assert {"date", "cuda", "cudnn", "python", "cnnkernels"} <= data.keys()

    rows = data["rows"]
    assert {(row["op"], row["kernel_pass"]) for row in rows} == {(w.op, w.name) for w in SMALL}
    for row in rows:
        settings = [False, True] if row["op"].startswith("conv2d") else [None]
        same = [r for r in rows if (r["op"], r["kernel_pass"]) == (row["op"], row["kernel_pass"])]
        assert [r["tf32"] for r in same if r["chosen"]] == settings
        assert row["ours_ms"] > 0 and row["torch_ms"] > 0 and 0 <= row["error"] <= 1

    lines = files["markdown"].read_text().splitlines()
    assert f"- device: {data['device']}" in lines
    assert sum(line.startswith("| model a ") or line.startswith("| vgg") for line in lines) == len(
        rows
    )
    pytest.importorskip("matplotlib")
    assert "times torch" in files["svg"].read_text()


def test_without_matplotlib_there_is_no_plot(reports, monkeypatch, capsys):
    def absent(*_, **__):
        raise MissingExtra("matplotlib is not installed")

    files, arguments = reports
    monkeypatch.setattr(gpu, "import_extra", absent)
    monkeypatch.setattr(gpu, "PASSES", SMALL[:1])
    gpu.main(arguments)
    assert "no plot: matplotlib is not installed" in capsys.readouterr().out
    assert files["json"].exists() and not files["svg"].exists()


@pytest.mark.parametrize("error", [0.5, math.nan])
def test_what_is_inaccurate_is_reported_and_fails(reports, monkeypatch, error):
    files, arguments = reports
    monkeypatch.setattr(gpu, "relative_error", lambda *_: error)
    monkeypatch.setattr(gpu, "PASSES", SMALL[:1])
    with pytest.raises(
        SystemExit, match=re.escape("inaccurate:\n| model a conv1, model b conv1 | fprop")
    ):
        gpu.main(arguments)
    assert "INACCURATE" in files["markdown"].read_text()


@pytest.mark.parametrize(("ms", "rounds"), [(0.01, 100), (5, 12), (1000, 10)])
def test_rounds_fill_the_time(ms, rounds):
    asked = []

    def clock(call, count):
        asked.append(count)
        return [ms] * count

    assert gpu.median_ms(clock, lambda: (), quick=False) == ms
    assert asked == [2, rounds]
