"""Training: our kernels follow torch's, runs repeat, and impossible runs are refused."""

import dataclasses
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from cnnkernels import compare, demo, train
from cnnkernels.data import DIGITS, Dataset, MissingExtra, load
from cnnkernels.models import MODELS, build_model, model_names
from cnnkernels.train import HYPERPARAMETERS, ConfigError, TrainConfig

EPS = torch.finfo(torch.float32).eps


@pytest.fixture(scope="module")
def digits() -> Dataset:
    pytest.importorskip("sklearn", reason="the digits are scikit-learn's")
    data = load("digits")
    return dataclasses.replace(
        data, test_images=data.test_images[:50], test_labels=data.test_labels[:50]
    )


def noise(
    train_images: int = 250, test_images: int = 10, shape: tuple[int, int, int] = (1, 28, 28)
) -> Dataset:
    count = train_images + test_images
    images, labels = torch.rand(count, *shape), torch.arange(count) % 10
    parts = images[:train_images], labels[:train_images], images[train_images:]
    return Dataset("noise", *parts, labels[train_images:], DIGITS)


@pytest.mark.parametrize(("backend", "steps"), [("cnnkernels", 15), ("emulator", 3)])
def test_losses_follow_torchs(digits: Dataset, backend: str, steps: int) -> None:
    ours = train.train(TrainConfig(digits, backend=backend, max_steps=steps))
    torchs = train.train(TrainConfig(digits, backend="torch", max_steps=steps))
    assert len(ours.losses) == len(torchs.losses) == steps
    assert torchs.losses[-1] < torchs.losses[0]
    assert follows(ours.losses, torchs.losses)


@pytest.mark.parametrize("name", [n for n in HYPERPARAMETERS if not n.startswith("vgg")])
def test_every_mnist_models_losses_follow_torchs(digits: Dataset, name: str) -> None:
    ours = train.train(TrainConfig(digits, model=name, max_steps=5))
    torchs = train.train(TrainConfig(digits, model=name, backend="torch", max_steps=5))
    assert torchs.losses[-1] < torchs.losses[0]
    assert follows(ours.losses, torchs.losses)


@pytest.fixture
def float64() -> Iterator[None]:
    """Models and data are made in float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


# So deep a network has ReLUs and maxima that float32's rounding turns over, on any machine others.
@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in HYPERPARAMETERS if n.startswith("vgg")])
def test_every_vggs_losses_follow_torchs(float64: None, name: str) -> None:
    data = noise(4, 1, MODELS[name].input_shape)
    ours = train.train(TrainConfig(data, model=name, epochs=2))
    torchs = train.train(TrainConfig(data, model=name, epochs=2, backend="torch"))
    assert len(torchs.losses) == 2 and torchs.losses[0] != torchs.losses[1]
    assert follows(ours.losses, torchs.losses, torch.finfo(torch.float64).eps)


def follows(losses: list[float], reference: list[float], eps: float = EPS) -> bool:
    # The first loss is known to its last bits. Each further step shifts the weights by the
    # learning rate (0.01) times the rounding of a gradient, no more than that again: so early
    # in training nothing amplifies it, and what may add up grows linearly.
    return all(
        abs(y - expected) <= 2 * eps * step * expected
        for step, (y, expected) in enumerate(zip(losses, reference, strict=True), 1)
    )


def test_a_wrong_gradient_does_not_follow(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert_badly(model: nn.Module) -> nn.Module:
        model[0].bias.register_hook(torch.zeros_like)  # the least that can be wrong: 16 numbers
        return model

    torchs = train.train(TrainConfig(digits, backend="torch", max_steps=3))
    monkeypatch.setattr("cnnkernels.convert", convert_badly)
    wrong = train.train(TrainConfig(digits, backend="cnnkernels", max_steps=3))
    assert wrong.losses[0] == torchs.losses[0]
    assert not follows(wrong.losses, torchs.losses)


def test_runs_repeat_and_leave_the_random_state(digits: Dataset) -> None:
    before = torch.get_rng_state()
    first = train.train(TrainConfig(digits, max_steps=4, seed=1))
    assert torch.equal(torch.get_rng_state(), before)
    assert train.train(TrainConfig(digits, max_steps=4, seed=1)).losses == first.losses
    assert train.train(TrainConfig(digits, max_steps=4, seed=2)).losses != first.losses


def test_epochs_steps_and_reports() -> None:
    reports = []
    result = train.train(TrainConfig(noise(), backend="torch", epochs=2), reports.append)
    assert len(result.losses) == 6  # 100 + 100 + 50 images an epoch
    assert reports == result.epochs
    assert [report.epoch for report in reports] == [1, 2]
    assert reports[1].loss == pytest.approx(sum(result.losses[3:]) / 3)
    assert result.accuracy == reports[1].accuracy
    cut = train.train(TrainConfig(noise(), backend="torch", epochs=2, max_steps=4))
    assert (len(cut.losses), len(cut.epochs)) == (4, 2)
    exact = train.train(TrainConfig(noise(), backend="torch", epochs=2, max_steps=3))
    assert (len(exact.losses), len(exact.epochs)) == (3, 1)


def test_every_image_is_seen_once_an_epoch_in_another_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, seen = noise(), []
    numbered = torch.arange(250.0).view(-1, 1, 1, 1).expand(-1, 1, 28, 28)

    def record(model: nn.Module, optimizer: object, images: torch.Tensor, labels: object):
        seen.extend(images[:, 0, 0, 0].int().tolist())
        return torch.tensor(0.0)

    monkeypatch.setattr(train, "train_step", record)
    data = dataclasses.replace(data, train_images=numbered)
    train.train(TrainConfig(data, backend="torch", epochs=2))
    first, second = seen[:250], seen[250:]
    assert sorted(first) == sorted(second) == list(range(250))
    assert len({tuple(first), tuple(second), tuple(range(250))}) == 3


def test_every_model_has_hyperparameters() -> None:
    assert list(HYPERPARAMETERS) == model_names()


def test_validation_images_are_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    data, seen, judged = noise(120, 7), [], []
    numbers = torch.arange(120.0).view(-1, 1, 1, 1).expand(-1, 1, 28, 28)

    def record(model: nn.Module, optimizer: object, images: torch.Tensor, labels: object):
        seen.extend(images[:, 0, 0, 0].int().tolist())
        return torch.tensor(0.0)

    def judge(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, size: int) -> float:
        judged.append(len(images))
        return 1 / len(images)

    monkeypatch.setattr(train, "train_step", record)
    monkeypatch.setattr(train, "accuracy", judge)
    data = dataclasses.replace(data, train_images=numbers)
    result = train.train(TrainConfig(data, model="convnet", backend="torch", epochs=1))
    assert sorted(seen) == list(range(100))
    assert sorted(judged) == [7, 20]
    assert (result.epochs[0].accuracy, result.epochs[0].validation) == (1 / 7, 1 / 20)
    result = train.train(TrainConfig(data, model="a", backend="torch", epochs=1))
    assert result.epochs[0].validation is None


def test_learning_rate_is_used() -> None:
    config = TrainConfig(noise(), backend="torch", max_steps=1, learning_rate=0.5)
    slow = dataclasses.replace(config, learning_rate=None)
    assert (config.hyperparameters.learning_rate, slow.hyperparameters.learning_rate) == (0.5, 0.01)
    moved = [p - q for p, q in zip(*map(_weights, (config, slow)), strict=True)]
    assert max(m.abs().max() for m in moved) > 1e-3


def _weights(config: TrainConfig) -> list[torch.Tensor]:
    return [p.detach() for p in train.train(config).model.parameters()]


def test_accuracy_counts_and_keeps_the_mode() -> None:
    class Zeroth(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            assert not self.training
            return nn.functional.one_hot(torch.zeros(len(images), dtype=torch.long), 10).float()

    model, labels = Zeroth(), torch.tensor([0, 1, 0, 0, 9])
    assert train.accuracy(model, torch.zeros(5, 1, 28, 28), labels, batch_size=2) == 0.6
    assert model.training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "z"}, "model z: not one of a"),
        ({"backend": "cudnn"}, "backend cudnn: not one of cnnkernels, torch, emulator"),
        ({"device": "tpu"}, "device tpu"),
        ({"epochs": 0}, "epochs must be positive"),
        ({"max_steps": -1}, "max_steps must be positive"),
        ({"learning_rate": math.nan}, "learning_rate must be positive and finite"),
        ({"learning_rate": math.inf}, "learning_rate must be positive and finite"),
        (
            {"model": "vgg11-32"},
            r"takes images of shape \(3, 32, 32\), not \(1, 28, 28\) \(noise\)",
        ),
        ({"checkpoint": Path("/nonexistent/run.pt")}, "checkpoint .*run.pt: no such folder"),
        ({"device": "cuda", "backend": "emulator"}, "the emulator runs on device cpu"),
    ],
)
def test_impossible_runs(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(noise(1, 1), **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu() -> None:
    with pytest.raises(ConfigError, match="device cuda: torch finds no CUDA device"):
        TrainConfig(noise(1, 1), device="cuda")


def test_the_bar_is_for_terminals(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    config = TrainConfig(noise(), backend="torch", max_steps=2, progress=True)
    train.train(config)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    train.train(dataclasses.replace(config, progress=False))
    with pytest.raises(MissingExtra, match=r"tqdm .* pip install cnnkernels\[train\]"):
        train.train(config)


def test_parity_is_judged_not_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    data, model = noise(40, 20), build_model("a")
    batch = [(data.train_images, data.train_labels)]
    found = compare.parity(model, batch)
    assert len(found.rows) == 1 + 6 + 1  # output, parameters, input
    assert found.holds, found.rows
    assert found.left_out < 0.01

    def convert_badly(model: nn.Module) -> nn.Module:
        model[3].bias.register_hook(lambda grad: grad * (1 + 1e-5))
        return model

    monkeypatch.setattr("cnnkernels.convert", convert_badly)
    wrong = [row.name for row in compare.parity(model, batch).rows if not row.holds]
    assert wrong == ["gradient of 3.bias"]


def test_parity_rule() -> None:
    assert compare.Parity("", ours=4e-6, torch=2e-6).holds
    assert not compare.Parity("", ours=4.1e-6, torch=2e-6).holds
    assert compare.Parity("", ours=4 * EPS, torch=0).holds
    assert not compare.Parity("", ours=math.nan, torch=1).holds


@pytest.mark.parametrize(
    ("modules", "passed"),
    [
        ([nn.ReLU()], {"1": [[1, 1], [1, 1], [1, 1], [1, 0], [0, 1]]}),
        ([nn.MaxPool2d((1, 2))], {"1": [[1], [0], [1], [1], [1]]}),
        ([nn.ReLU(), nn.MaxPool2d((1, 2))], {"2": [[1], [0], [1], [1], [0]]}),
        ([nn.ReLU(inplace=True), nn.MaxPool2d((1, 2))], {"2": [[1], [0], [1], [1], [0]]}),
    ],
)
def test_no_gradient_passes_a_close_call(modules: list[nn.Module], passed: dict) -> None:
    images = torch.tensor([[1, 0.5], [1, 1 - 3e-6], [1, 1], [1, 1e-6], [1e-6, -1]]).double()
    rows = next(iter(passed.values()))
    scale = nn.Conv2d(1, 1, 1, bias=False)
    scale.weight.data.fill_(1)
    model = nn.Sequential(scale, *modules, nn.Flatten(), nn.Linear(len(rows[0]), 1)).double()
    names = [str(i) for i in range(1, 1 + len(modules))]
    forward = compare._Pass(model, names, images.view(5, 1, 1, 2))
    off = {name: (x, output + 1e-6) for name, (x, output) in forward.trace.items()}
    gates = compare._gates(model, forward.trace, forward.trace, off)
    assert {name: gate.flatten(1).int().tolist() for name, gate in gates.items()} == passed


def test_wrong_outputs_cannot_hide_in_close_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    def convert_badly(model: nn.Module) -> nn.Module:
        model[0].weight.data.mul_(1000)  # then everything is near
        return model

    data = noise(10, 1)
    monkeypatch.setattr("cnnkernels.convert", convert_badly)
    found = compare.parity(build_model("a"), [(data.train_images, data.train_labels)])
    assert found.left_out > 0.9
    assert not found.holds
    assert not found.rows[0].holds


def test_aten_calls_are_seen() -> None:
    data = noise(10, 1)
    found = compare.aten_calls(build_model("a"), data.train_images, data.train_labels)
    assert {"convolution.default", "convolution_backward.default", "relu.default"} <= found
    assert {"threshold_backward.default", "max_pool2d_with_indices_backward.default"} <= found


def test_demo(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib draws the picture")
    monkeypatch.setattr(demo, "MIN_STEPS", 15)
    monkeypatch.setattr(demo, "QUICK_ROUNDS", 1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compare, "_ROUND_SECONDS", 0.001)
    assert demo.run(digits, quick=True) == 0
    out = capsys.readouterr().out
    assert "one forward and backward pass: none" in out
    assert out.count(" ok\n") == 8
    assert "WRONG" not in out
    assert "inference" in out and "training step" in out
    assert (tmp_path / "runs" / "feature_maps.png").read_bytes().startswith(b"\x89PNG")
    assert str(demo.PICTURE) in out
    assert max(map(len, out.splitlines())) <= 100


def test_demo_without_matplotlib(digits: Dataset, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    demo._show_picture(build_model("a"), digits)
    assert "matplotlib is not installed; get it with: pip install cnnkernels[viz]" in (
        capsys.readouterr().out
    )


def test_demo_fails_where_torch_does_the_work(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(demo, "MIN_STEPS", 15)
    monkeypatch.setattr("cnnkernels.convert", lambda model: model)
    assert demo.run(digits, quick=True) == 1
    assert "relu.default" in capsys.readouterr().out
