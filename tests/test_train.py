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
from cnnkernels.config import HYPERPARAMETERS, SCHEDULES, ConfigError, TrainConfig
from cnnkernels.data import DIGITS, Dataset, MissingExtra, load
from cnnkernels.evaluation import Evaluation
from cnnkernels.models import MODELS, build_model, model_names

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


@pytest.mark.parametrize("name", [n for n in MODELS if MODELS[n].input_shape == (1, 28, 28)])
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
# The other VGGs and ResNets are made of the same layers as these.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar", "alexnet", "vgg16", "vgg11-32", "vgg16-32", "resnet18"])
def test_deep_networks_losses_follow_torchs(float64: None, name: str) -> None:
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
    def convert_badly(model: nn.Module, fuse: bool = True) -> nn.Module:
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

    def record(model: object, optimizer: torch.optim.Optimizer, images: torch.Tensor, *_, **__):
        seen.extend(images[:, 0, 0, 0].int().tolist())
        optimizer.step()
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

    def record(model: object, optimizer: torch.optim.Optimizer, images: torch.Tensor, *_, **__):
        seen.extend(images[:, 0, 0, 0].int().tolist())
        optimizer.step()
        return torch.tensor(0.0)

    def judge(model: object, images: torch.Tensor, *_, **__) -> Evaluation:
        judged.append(len(images))
        return Evaluation(len(images), torch.tensor([[1, 0], [0, 0]]))

    monkeypatch.setattr(train, "train_step", record)
    monkeypatch.setattr(train, "evaluate", judge)
    data = dataclasses.replace(data, train_images=numbers)
    result = train.train(TrainConfig(data, model="convnet", backend="torch", epochs=1))
    assert sorted(seen) == list(range(100))
    assert sorted(judged) == [7, 7, 20]
    assert result.test.loss == 7
    assert (result.epochs[0].validation, result.epochs[0].validation_loss) == (1, 20)
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


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules(schedule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = []

    def record(model: nn.Module, optimizer: torch.optim.Optimizer, *_, **__) -> torch.Tensor:
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        return torch.tensor(0.0)

    monkeypatch.setattr(train, "train_step", record)
    data = noise(120, 1)
    options = {"batch_size": 10, "epochs": 3, "learning_rate": 0.5, "schedule": schedule}
    train.train(TrainConfig(data, backend="torch", **options))
    assert len(rates) == 36
    assert max(rates) == pytest.approx(0.5, rel=1e-3)
    step = range(36)
    expected = {
        "constant": [0.5] * 36,
        "step": [0.5] * 12 + [0.05] * 12 + [0.005] * 12,
        "cosine": [0.25 * (1 + math.cos(math.pi * i / 36)) for i in step],
    }
    if schedule == "onecycle":
        peak = rates.index(max(rates))
        assert rates[: peak + 1] == sorted(rates[: peak + 1]) and 5 < peak < 18
        assert rates[peak:] == sorted(rates[peak:], reverse=True) and rates[-1] < 0.01
    else:
        assert rates == pytest.approx(expected[schedule])


def test_sgd_and_adam_are_torchs(float64: None) -> None:
    data = noise(10, 1)
    for optimizer, twin in (
        ("sgd", lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.5, weight_decay=0.01)),
        ("adam", lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.01)),
    ):
        options = {"momentum": 0.5, "weight_decay": 0.01, "learning_rate": 0.1}
        config = TrainConfig(data, backend="torch", optimizer=optimizer, epochs=2, **options)
        found = train.train(config).model
        torch.manual_seed(0)
        model = build_model("a")
        theirs = twin(model.parameters())
        for _ in range(2):  # one batch, whose order has no part in the sum but in rounding
            theirs.zero_grad()
            nn.functional.cross_entropy(model(data.train_images), data.train_labels).backward()
            theirs.step()
        for name, value in model.state_dict().items():
            torch.testing.assert_close(found.state_dict()[name], value, rtol=1e-9, atol=1e-9)


def test_training_stops_early_with_the_best_weights() -> None:
    data = noise(60, 10)  # labels without sense: what is learnt by heart is wrong elsewhere
    options = {"learning_rate": 0.3, "validation_share": 0.5, "patience": 2, "batch_size": 10}
    result = train.train(TrainConfig(data, backend="torch", epochs=60, **options))
    losses = [report.validation_loss for report in result.epochs]
    best = losses.index(min(losses))
    assert len(losses) == best + 3 < 60
    epochs = {**options, "patience": 0, "epochs": best + 1}
    to_best = train.train(TrainConfig(data, backend="torch", **epochs))
    for found, expected in zip(_values(result), _values(to_best), strict=True):
        assert torch.equal(found, expected)
    assert result.accuracy == result.epochs[best].accuracy


def _values(result: train.TrainResult) -> list[torch.Tensor]:
    return list(result.model.state_dict().values())


def test_accumulated_gradients_are_the_batchs() -> None:
    config = TrainConfig(noise(), backend="torch", epochs=1)
    whole = train.train(config)
    for parts in (3, 100):
        cut = train.train(dataclasses.replace(config, accumulate=parts))
        assert cut.losses == pytest.approx(whole.losses, rel=1e-5)
        assert cut.losses != whole.losses  # another order of summation


def test_images_are_normalized() -> None:
    data, seen = noise(), []
    lit = torch.cat([data.train_images * 3 + 5, data.train_images.square()], 1)
    model = nn.Conv2d(2, 10, 28)
    spec = MODELS["a"]._replace(build=lambda n: nn.Sequential(model, nn.Flatten()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "a", spec._replace(input_shape=(2, 28, 28)))
        model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        data = dataclasses.replace(data, train_images=lit, test_images=lit[:10])
        train.train(TrainConfig(data, backend="torch", epochs=1, normalize=True))
    pixels = torch.cat(seen[:3])  # of training; all images once
    assert pixels.shape == (250, 2, 28, 28)
    assert pixels.mean((0, 2, 3)).abs().max() < 1e-4
    assert (pixels.std((0, 2, 3)) - 1).abs().max() < 1e-4


def test_augmentation_depends_on_seed_epoch_and_image_alone() -> None:
    config = TrainConfig(noise(60), backend="torch", epochs=2, augment=("flip", "crop"))
    first = train.train(config).losses
    assert train.train(config).losses == first
    assert train.train(dataclasses.replace(config, augment=())).losses != first
    assert train.train(dataclasses.replace(config, augment=("flip",))).losses != first


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_sixteen_bits(digits: Dataset, precision: str) -> None:
    """By autocast; the weights stay float32, and the losses near those of float32."""
    config = TrainConfig(digits, max_steps=6, batch_size=20)
    full = train.train(config)
    half = train.train(dataclasses.replace(config, precision=precision))
    assert half.losses == pytest.approx(full.losses, rel=0.01)
    assert half.losses != full.losses
    assert {v.dtype for v in _values(half)} == {torch.float32}


def test_channels_last() -> None:
    config = TrainConfig(noise(20, 1, (3, 32, 32)), model="cifar", max_steps=1, augment=())
    plain = train.train(config)
    last = train.train(dataclasses.replace(config, channels_last=True))
    assert last.losses == pytest.approx(plain.losses, rel=1e-6)
    weight = next(p for p in last.model.parameters() if p.dim() == 4)
    assert weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
def test_compiled(digits: Dataset) -> None:
    config = TrainConfig(digits, max_steps=3, batch_size=20)
    eager = train.train(config)
    compiled = train.train(dataclasses.replace(config, compile=True))
    assert follows(compiled.losses, eager.losses)
    assert compiled.model._compiled_call_impl is not None
    assert list(compiled.model.state_dict()) == list(eager.model.state_dict())


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
        ({"optimizer": "lion"}, "optimizer lion: not one of sgd, adam"),
        ({"schedule": "linear"}, "schedule linear: not one of constant, step"),
        ({"precision": "int8"}, "precision int8: not one of float32, bfloat16"),
        ({"augment": ("mixup",)}, "augmentation mixup: not one of flip"),
        ({"batch_size": 0}, "batch_size must be positive and finite, not 0"),
        ({"accumulate": 0}, "accumulate must be positive and finite, not 0"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), not 1.0"),
        ({"validation_share": -0.1}, r"validation_share must be in \[0, 1\), not -0.1"),
        ({"validation_share": 0.9}, "all images are held out"),
        ({"weight_decay": -1}, "weight_decay must be 0 or more and finite, not -1"),
        ({"patience": 1}, "patience needs validation images"),
        ({"save_every": 10}, "save_every needs a checkpoint"),
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

    def convert_badly(model: nn.Module, fuse: bool = True) -> nn.Module:
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
    def convert_badly(model: nn.Module, fuse: bool = True) -> nn.Module:
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
    monkeypatch.setattr("cnnkernels.convert", lambda model, fuse=True: model)
    assert demo.run(digits, quick=True) == 1
    assert "relu.default" in capsys.readouterr().out
