"""`cnnkernels bench`: its table holds the reference networks' layers, its reports what they say."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

import cnnkernels
from cnnkernels import bench, cli
from cnnkernels.bench import cases, report, sides, timing
from cnnkernels.models import MODELS

CPU = torch.device("cpu")


def layers(name, batch, kind):
    """(input's shape, module) of a model's layers of that kind."""
    found = []
    with torch.device("meta"):
        model = MODELS[name].build()
        for module in model.modules():
            if isinstance(module, kind):
                module.register_forward_hook(
                    lambda module, args, _: found.append((tuple(args[0].shape), module))
                )
        model(torch.empty(batch, *MODELS[name].input_shape))
    assert found
    return found


NETWORKS = [("a", 100), ("b", 100), ("c", 100), ("convnet", 128), ("vgg16", 1), ("vgg16", 8)]


@pytest.mark.parametrize(("name", "batch"), NETWORKS)
def test_every_layer_of_the_reference_networks_is_in_the_table(name, batch):
    convolutions = {
        (case.input, case.weight, case.kwargs.get("padding", 0)) for case in cases.CONVOLUTIONS
    }
    for shape, conv in layers(name, batch, nn.Conv2d):
        assert (shape, tuple(conv.weight.shape), conv.padding[0]) in convolutions
    pools = {(case.input, case.kwargs["kernel_size"]) for case in cases.POOLS}
    if name != "convnet":
        for shape, pool in layers(name, batch, (nn.MaxPool2d, nn.AvgPool2d)):
            assert (shape, pool.kernel_size) in pools


def test_names_are_distinct():
    works = [(w.suite, w.case, w.name) for suite in bench.SUITES for w in sides.works(suite)]
    assert len(set(works)) == len(works)
    assert {suite for suite, *_ in works} == set(bench.SUITES)


def quick(suite):
    return [pytest.param(w, id=f"{w.case}-{w.name}") for w in sides.works(suite, quick=True)]


@pytest.mark.parametrize("work", [w for suite in bench.SUITES for w in quick(suite)])
def test_sides_agree(work):
    """All but torch.compile, which takes seconds each."""
    wanted = [side for side in sides.SIDES if side != "compile"]
    calls = [work.make(side, CPU) for side in wanted]
    for results in zip(*([*call(), *call()] for call in calls), strict=True):
        for result in results[1:]:
            torch.testing.assert_close(result, results[0], rtol=1e-4, atol=1e-4)


def test_a_row_by_all_sides():
    work = next(sides.works("layers", quick=True))
    row = timing.measure(work, CPU, quick=True)
    flops = 2 * 2 * 16 * 28 * 28 * 25
    assert row.gflops == pytest.approx(flops / row.ours_ms / 1e6)
    assert min(row.eager_ms, row.channels_last_ms) == row.eager_best_ms > 0
    assert row.speedup_eager == row.eager_ms / row.ours_ms
    assert row.compile_ms is not None and row.speedup_compile == row.compile_ms / row.ours_ms
    assert row.as_json()["pass"] == "forward" and row.as_json()["layout"] == "nchw"


def test_what_is_not_torchs_is_not_timed():
    work = next(sides.works("layers", quick=True))

    def wrong(side, device):
        call = work.make(side, device)
        return (lambda: [2 * result for result in call()]) if side == "ours" else call

    with pytest.raises(bench.Disagreement, match="model a conv1"):
        timing.measure(replace(work, make=wrong), CPU)


def test_nan_is_no_agreement():
    nan = [torch.tensor([float("nan")])]
    assert not timing._agree(nan, nan)


def test_rounds_fill_the_time(monkeypatch):
    taken = {0: 1e-3, 1: 0.2}
    asked = []

    def seconds(call, device):
        asked.append(call)
        return taken[call]

    monkeypatch.setattr(timing, "_seconds", seconds)
    assert timing._times([0], CPU, quick=False) == [1.0]
    assert len(asked) == 1 + timing.MOST
    asked.clear()
    timing._times([0, 1], CPU, quick=False)
    assert asked == [0, 1] + [0, 1, 1, 0] * (timing.FEWEST // 2)


ROW = timing.Row("models", "model a", "inference", "float32", "nchw", 1.0, 3.0, 2.0, None, 10.0)


def test_bars():
    lines = [*report.summary([ROW])]
    assert lines[1].split() == "model a inference 3.00 2.80 2.00 1.20 met".split()
    slow = replace(ROW, ours_ms=2.0)
    lines = [*report.summary([slow])]
    assert lines[1].endswith("missed") and lines[2].startswith("1 rows, 0 of them")
    assert "1 rows, 1 of them" in [*report.summary([replace(ROW, ours_ms=4.0)])][2]


@pytest.fixture
def one_row(monkeypatch):
    monkeypatch.setattr(bench, "works", lambda suite, quick: ["work"] if suite == "models" else [])
    monkeypatch.setattr(bench, "measure", lambda *_: ROW)


def test_reports(tmp_path, one_row, capsys):
    files = tmp_path / "new" / "bench.json", tmp_path / "new" / "bench.svg"
    assert cli.main(["bench", "--json", str(files[0]), "--plot", str(files[1])]) == 0
    data = json.loads(files[0].read_text())
    assert data["machine"]["torch"] == torch.__version__ and data["machine"]["peak_gflops"] > 0
    (row,) = data["rows"]
    assert row == dict(
        suite="models",
        case="model a",
        dtype="float32",
        layout="nchw",
        ours_ms=1.0,
        eager_ms=3.0,
        eager_best_ms=2.0,
        compile_ms=None,
        speedup_eager=3.0,
        speedup_best=2.0,
        speedup_compile=None,
        gflops=10.0,
        **{"pass": "inference"},
    )
    printed = capsys.readouterr().out
    assert "model a inference" in printed and f"cnnkernels: {cnnkernels.__version__}" in printed
    pytest.importorskip("matplotlib")
    assert "times torch" in files[1].read_text()


def test_a_wrong_result_is_the_exit_status(monkeypatch, one_row, capsys):
    def wrong(*_):
        raise bench.Disagreement("model a, inference: eager is not what we compute")

    monkeypatch.setattr(bench, "measure", wrong)
    assert cli.main(["bench", "--suite", "models"]) == 1
    assert "WRONG model a" in capsys.readouterr().out


def test_the_zoo_needs_torchvision(monkeypatch, capsys):
    def broken(*_, **__):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(sides, "import_extra", broken)
    assert cli.main(["bench", "--suite", "zoo"]) == 2
    assert "torchvision does not load beside this torch: operator" in capsys.readouterr().err


def test_the_zoos_cases():
    found = [*sides.works("zoo")]
    assert len(found) == 10 and {work.name for work in found} == {"inference"}
    assert all("compile" not in work.sides for work in found)
    assert "zoo" not in bench.SUITES


def test_threads(monkeypatch, one_row):
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    assert cli.main(["bench", "--threads", "3"]) == 0
    assert cli.main(["bench", "--threads", "0"]) == 2
    assert asked == [3]
