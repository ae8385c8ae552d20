"""Several processes train as one does: torchrun, gloo, DistributedDataParallel."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_checkpoint import PROGRAM, TRAIN, interrupt

from cnnkernels.cli import TERMINATED
from cnnkernels.parallel import Group

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
PROCESSES = [*TORCHRUN, "-m", "cnnkernels"]

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="this torch has no gloo",
)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn", reason="the digits are scikit-learn's")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def content(file: Path) -> dict:
    return torch.load(file, weights_only=True)


def assert_same_run(two: dict, one: dict) -> None:
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert two["model"].keys() == one["model"].keys()
    for name, weight in one["model"].items():
        torch.testing.assert_close(two["model"][name], weight, rtol=1e-4, atol=1e-5)


def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    """The last batch has one image: one process then has none."""
    options = [*TRAIN, "--model", "c", "--batch-size", "499", "--epochs", "1", "--normalize"]
    options += ["--augment", "flip", "rotate", "--accumulate", "2", "--validation-share", "0.001"]
    options += ["--momentum", "0.9", "--schedule", "cosine"]
    one, two = tmp_path / "one.pt", tmp_path / "two.pt"
    texts = []
    for program, file in ((PROGRAM, one), (PROCESSES, two)):
        command = [*program, *options, "--checkpoint", str(file)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        texts.append(done.stdout)
    assert_same_run(content(two), content(one))
    assert len(content(two)["losses"]) == 4
    reports = [content(file)["epochs"][0] for file in (two, one)]
    assert reports[0]["accuracy"] == pytest.approx(reports[1]["accuracy"], abs=2 / 297)
    assert reports[0]["validation_loss"] == pytest.approx(reports[1]["validation_loss"], rel=1e-4)
    for text in texts:  # the second process says nothing
        assert text.count("epoch  1") == text.count("data: ") == 1, text


def test_sigterm_stops_all_after_the_same_step(tmp_path: Path) -> None:
    """What torchrun is told to end, it tells its processes; another number of them goes on."""
    options = [*TRAIN, "--model", "net", "--batch-size", "50", "--epochs", "1"]
    ended, whole, resumed = (tmp_path / name for name in ("ended.pt", "whole.pt", "resumed.pt"))
    command = [*PROCESSES, *options, "--checkpoint", str(ended), "--save-every", "1"]
    assert interrupt(command, ended, signal.SIGTERM)
    assert 1 <= len(content(ended)["losses"]) < 30
    for extra in (["--checkpoint", whole], ["--resume", ended, "--checkpoint", resumed]):
        subprocess.run([*PROGRAM, *options, *map(str, extra)], check=True, capture_output=True)
    assert_same_run(content(resumed), content(whole))


def test_shares_are_disjoint_and_all() -> None:
    batch = torch.arange(10, 17)
    parts = [Group(rank, 3, torch.device("cpu")).share(batch).tolist() for rank in range(3)]
    assert sorted(sum(parts, [])) == batch.tolist()
    assert {len(part) for part in parts} == {2, 3}
    assert TERMINATED == 128 + signal.SIGTERM
