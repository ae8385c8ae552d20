"""The command line: its output, its exit status, and one line for each error of the user."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_data import write_mnist

import cnnkernels
from cnnkernels import cli, train
from cnnkernels.config import Hyperparameters


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(write_mnist(tmp_path / "idx", train=10, test=8))


def test_train(folder: str, capsys: pytest.CaptureFixture) -> None:
    arguments = ["train", "--data", folder, "--backend", "torch", "--epochs", "2", "--lr", "0.1"]
    assert cli.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"data: IDX files in {folder}, 10 training and 8 test images"
    assert lines[1].startswith("model a, backend torch, device cpu")
    assert [line.split()[1] for line in lines[2:4]] == ["1", "2"]
    accuracy = float(lines[-1].removeprefix("test accuracy ").removesuffix(" %"))
    assert accuracy * 8 / 100 == int(accuracy * 8 / 100)
    assert lines[-1] == f"test accuracy {accuracy:.2f} %"


def test_options_reach_the_run(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stop(Exception):
        pass

    def stop(config: train.TrainConfig, on_epoch: object) -> None:
        raise Stop(config)

    monkeypatch.setattr(cli, "train", stop)
    options = "--backend emulator --epochs 3 --seed 7 --lr 0.5 --steps 9 --no-progress"
    options += " --model c --log runs --checkpoint to.pt --resume from.pt --save-every 8"
    options += " --batch-size 5 --optimizer adam --schedule step --weight-decay 0.1 --patience 2"
    options += " --validation-share 0.5 --augment flip crop --normalize --precision bfloat16"
    options += " --accumulate 3 --channels-last --compile --workers 4 --momentum 0.5"
    with pytest.raises(Stop) as caught:
        cli.main(["train", "--data", folder, *options.split()])
    config = caught.value.args[0]
    assert (config.backend, config.epochs, config.seed) == ("emulator", 3, 7)
    assert (config.learning_rate, config.max_steps, config.progress) == (0.5, 9, False)
    assert (config.model, config.log) == ("c", Path("runs"))
    assert (config.checkpoint, config.resume) == (Path("to.pt"), Path("from.pt"))
    assert config.hyperparameters == Hyperparameters(
        learning_rate=0.5,
        batch_size=5,
        epochs=3,
        optimizer="adam",
        momentum=0.5,
        weight_decay=0.1,
        schedule="step",
        validation_share=0.5,
        patience=2,
        augment=("flip", "crop"),
        normalize=True,
        precision="bfloat16",
    )
    assert (config.accumulate, config.workers, config.save_every) == (3, 4, 8)
    assert config.channels_last and config.compile


def test_validation_is_shown(folder: str, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["train", "--data", folder, "--model", "convnet", "--epochs", "1"]) == 0
    assert "   validation accuracy " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "/nonexistent"], "error: /nonexistent: no such folder"),
        (["--epochs", "0"], "error: epochs must be positive and finite, not 0"),
        (["--model", "vgg16"], "error: model vgg16 takes images of shape (3, 224, 224), not"),
        (["--resume", "/nonexistent"], "error: /nonexistent: No such file or directory"),
        (["--resume", __file__], f"error: {__file__}: damaged, or not a checkpoint: "),
        (["--checkpoint", "/nonexistent/run.pt"], "error: checkpoint /nonexistent/run.pt: no such"),
        (["--log", __file__], "error: "),
        (["--lr", "nan"], "error: learning_rate must be positive and finite, not nan"),
        (["--backend", "emulator", "--device", "cuda"], "error: the emulator runs on device cpu"),
    ],
)
def test_errors_are_one_line(
    options: list[str], message: str, folder: str, capsys: pytest.CaptureFixture
) -> None:
    assert cli.main(["train", "--data", folder, *options]) == 2
    err = capsys.readouterr().err
    assert err.startswith(message)
    assert err.count("\n") == 1


def test_a_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert cli.main(["demo", "--data", "digits"]) == 2
    assert capsys.readouterr().err == (
        "error: scikit-learn is not installed; get it with: pip install cnnkernels[train]\n"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu(folder: str, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["train", "--data", folder, "--device", "cuda"]) == 2
    assert capsys.readouterr().err.startswith("error: device cuda: torch finds no CUDA device")


def test_info(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["info"]) == 0
    text = capsys.readouterr().out
    assert f"torch: {torch.__version__}" in text
    assert "{" not in text
    assert cli.main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == cnnkernels.info()


def test_info_shows_lists_and_absence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    facts = {"a": {"b": ["x", "y"], "c": {"d": []}}, "load_error": None}
    monkeypatch.setattr(cnnkernels, "info", lambda: facts)
    cli.main(["info"])
    assert capsys.readouterr().out == "a:\n  b: x, y\n  c:\n    d: none\nload_error: none\n"


def test_as_a_program() -> None:
    command = [sys.executable, "-m", "cnnkernels"]
    failed = subprocess.run(
        [*command, "train", "--data", "/nonexistent"],
        capture_output=True,
        text=True,
        cwd=Path(cnnkernels.__file__).parents[1],
    )
    assert failed.returncode == 2
    assert failed.stderr == "error: /nonexistent: no such folder\n"
    assert failed.stdout == ""
