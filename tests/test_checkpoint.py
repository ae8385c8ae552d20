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

from cnnkernels.checkpoint import CheckpointError
from cnnkernels.cli import main
from cnnkernels.config import TrainConfig
from cnnkernels.data import Dataset
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


TRAIN = ["train", "--model", "a", "--data", "digits", "--seed", "3", "--no-progress"]


def test_a_killed_run_resumes(tmp_path: Path):
    pytest.importorskip("sklearn", reason="the digits are scikit-learn's")
    killed, whole, resumed = (tmp_path / name for name in ("killed.pt", "whole.pt", "resumed.pt"))
    command = [sys.executable, "-m", "cnnkernels", *TRAIN, "--epochs", "500"]
    process = subprocess.Popen([*command, "--checkpoint", str(killed)], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not killed.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    done = len(torch.load(killed, weights_only=True)["epochs"])
    epochs = ["--epochs", str(done + 1)]
    assert main([*TRAIN, *epochs, "--checkpoint", str(whole)]) == 0
    assert main([*TRAIN, *epochs, "--resume", str(killed), "--checkpoint", str(resumed)]) == 0
    a, b = (torch.load(path, weights_only=True) for path in (whole, resumed))
    assert a["model"].keys() == b["model"].keys() and a["losses"] == b["losses"]
    for name, weight in a["model"].items():
        assert torch.equal(weight, b["model"][name]), name


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
