"""Checkpoints: a run that was stopped goes on to the very weights of one that was not."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from cnnkernels import cli
from cnnkernels.checkpoint import CheckpointError
from cnnkernels.cli import main
from cnnkernels.config import TrainConfig
from cnnkernels.data import Dataset
from cnnkernels.evaluation import load_classifier
from cnnkernels.train import train


@pytest.fixture
def data() -> Dataset:
    images, labels = torch.rand(300, 1, 28, 28), torch.randint(10, (300,))
    return Dataset("noise", images[:256], labels[:256], images[256:], labels[256:], ("?",) * 10)


def weights(result):
    return list(result.model.state_dict().values())


@pytest.mark.parametrize("model", ["a", "convnet"])
def test_a_resumed_run_ends_with_the_same_weights(data: Dataset, tmp_path: Path, model: str):
    file = tmp_path / "run.pt"
    whole = train(TrainConfig(data, model=model, epochs=3))
    train(TrainConfig(data, model=model, epochs=2, checkpoint=file))
    resumed = train(TrainConfig(data, model=model, epochs=3, resume=file))
    assert all(map(torch.equal, weights(resumed), weights(whole)))
    assert resumed.losses == whole.losses
    assert [report.epoch for report in resumed.epochs] == [1, 2, 3]
    assert list(tmp_path.iterdir()) == [file]  # no temporary file is left


PROGRAM = [sys.executable, "-m", "cnnkernels"]
TRAIN = ["train", "--data", "digits", "--seed", "3", "--no-progress"]


def interrupt(command: list[str], file: Path, number: signal.Signals) -> int:
    """Starts a run, sends it a signal once it has written its checkpoint; its exit status."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        process.send_signal(number)
        status = process.wait(60)
    assert file.exists()
    return status


@pytest.mark.parametrize(
    ("model", "number", "status"),
    [  # one network with our kernels, one with dropout
        ("a", signal.SIGKILL, -signal.SIGKILL),
        ("mlp", signal.SIGTERM, cli.TERMINATED),
    ],
)
def test_a_run_ended_within_an_epoch_resumes(tmp_path: Path, model, number, status):
    pytest.importorskip("sklearn", reason="the digits are scikit-learn's")
    ended, whole, resumed = (tmp_path / name for name in ("ended.pt", "whole.pt", "resumed.pt"))
    options = [*TRAIN, "--model", model, "--batch-size", "30", "--epochs", "1"]
    options += ["--augment", "rotate"]
    command = [*PROGRAM, *options, "--checkpoint", str(ended), "--save-every", "1"]
    assert interrupt(command, ended, number) == status
    left_at = torch.load(ended, weights_only=True)
    assert 1 <= len(left_at["losses"]) < 50 and left_at["epochs"] == []
    assert main([*options, "--checkpoint", str(whole)]) == 0
    assert main([*options, "--resume", str(ended), "--checkpoint", str(resumed)]) == 0
    a, b = (torch.load(path, weights_only=True) for path in (whole, resumed))
    assert len(a["losses"]) == 50 and a["losses"] == b["losses"]
    assert a["model"].keys() == b["model"].keys()
    for name, weight in a["model"].items():
        assert torch.equal(weight, b["model"][name]), name
    assert list(tmp_path.glob("*.part")) == [] or number == signal.SIGKILL


def test_sigterm_is_as_before_after_a_run(data: Dataset, tmp_path: Path):
    before = signal.getsignal(signal.SIGTERM)
    train(TrainConfig(data, model="mlp", epochs=1, checkpoint=tmp_path / "run.pt"))
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_best_weights_survive(data: Dataset, tmp_path: Path):
    """A resumed run knows what was best before it was stopped."""
    file = tmp_path / "run.pt"
    options = {"learning_rate": 0.05, "validation_share": 0.5, "patience": 2, "model": "net"}
    whole = train(TrainConfig(data, epochs=40, **options))
    best = min(whole.epochs, key=lambda report: report.validation_loss).epoch
    assert best + 2 == len(whole.epochs) < 40
    train(TrainConfig(data, epochs=best + 1, checkpoint=file, **options))
    resumed = train(TrainConfig(data, epochs=40, resume=file, checkpoint=file, **options))
    assert all(map(torch.equal, weights(resumed), weights(whole)))
    assert len(resumed.epochs) == len(whole.epochs)
    kept = load_classifier(file).model.state_dict().values()
    assert all(map(torch.equal, kept, weights(whole)))


def test_a_schedule_goes_on(data: Dataset, tmp_path: Path):
    file = tmp_path / "run.pt"
    config = TrainConfig(data, model="mlp", epochs=2, schedule="cosine", checkpoint=file)
    whole = train(config)
    with pytest.raises(CheckpointError, match="of a run with epochs 2, not 3"):
        train(dataclasses.replace(config, epochs=3, resume=file))
    middle = dataclasses.replace(
        config, save_every=2, max_steps=2, batch_size=60, augment=("crop",)
    )
    train(middle)
    resumed = train(dataclasses.replace(middle, max_steps=None, resume=file))
    again = train(dataclasses.replace(middle, max_steps=None))
    assert resumed.losses == again.losses != whole.losses


def test_what_is_no_checkpoint_of_this_run_is_refused(data: Dataset, tmp_path: Path):
    file = tmp_path / "run.pt"
    config = TrainConfig(data, epochs=1, checkpoint=file)
    train(config)
    whole = file.read_bytes()

    def resume(**changes):
        train(dataclasses.replace(config, epochs=2, checkpoint=None, resume=file, **changes))

    resume()
    with pytest.raises(CheckpointError, match="of a run with model a, not b"):
        resume(model="b")
    with pytest.raises(CheckpointError, match="of a run with seed 0, not 1"):
        resume(seed=1)
    for damaged in (whole[:-100], whole[: len(whole) // 2], b"", b"not a checkpoint"):
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="run.pt: damaged, or not a checkpoint"):
            resume()
    torch.save({"weight": torch.zeros(3)}, file)
    with pytest.raises(CheckpointError, match="run.pt: not a checkpoint of cnnkernels"):
        resume()
    content = torch.load(file, weights_only=True) | {"format": "cnnkernels checkpoint"}
    torch.save(content | {"version": 99}, file)
    with pytest.raises(CheckpointError, match="format version 99"):
        resume()
    torch.save(Malicious(tmp_path / "owned"), file)
    with pytest.raises(CheckpointError, match="run.pt: damaged, or not a checkpoint"):
        resume()
    assert not (tmp_path / "owned").exists()
    file.unlink()
    with pytest.raises(CheckpointError, match="run.pt: No such file"):
        resume()


class Malicious:
    """Runs a command where it is unpickled without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_log_for_tensorboard(data: Dataset, tmp_path: Path):
    pytest.importorskip("tensorboard", reason="the log is TensorBoard's")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = train(TrainConfig(data, model="convnet", epochs=2, log=tmp_path))
    events = EventAccumulator(str(tmp_path)).Reload()
    losses = [event.value for event in events.Scalars("loss")]
    assert losses == pytest.approx(result.losses)
    assert len(events.Scalars("accuracy/test")) == len(events.Scalars("accuracy/validation")) == 2
