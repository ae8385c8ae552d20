"""Training of the reference networks: by our kernels, by torch's own, or in the emulator.

A seed fixes the initial weights and the order of the images, whatever the backend. Runs that
differ in the backend alone therefore differ in rounding alone. A run that was stopped goes on from
its last checkpoint to the very weights that it would have come to.
"""

import contextlib
import dataclasses
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cnnkernels
from cnnkernels import checkpoint
from cnnkernels.checkpoint import Checkpoint, CheckpointError
from cnnkernels.data import Dataset, import_extra
from cnnkernels.models import MODELS, build_model

BACKENDS = ("cnnkernels", "torch", "emulator")
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Hyperparameters:
    """How a model is trained.

    `validation_share` is the part of the training images, the last ones, that is held out for
    validation. `momentum` is SGD's.
    """

    learning_rate: float
    batch_size: int
    epochs: int
    optimizer: str = "sgd"
    momentum: float = 0.0
    validation_share: float = 0.0


_VGG = Hyperparameters(learning_rate=0.01, batch_size=32, epochs=10, momentum=0.9)

HYPERPARAMETERS = {
    "a": Hyperparameters(learning_rate=0.01, batch_size=100, epochs=5),
    "b": Hyperparameters(learning_rate=0.01, batch_size=100, epochs=5),
    "c": Hyperparameters(learning_rate=0.05, batch_size=100, epochs=5),
    "convnet": Hyperparameters(
        learning_rate=5e-4,
        batch_size=128,
        epochs=5,
        optimizer="adam",
        validation_share=1 / 6,  # 10,000 of MNIST's 60,000
    ),
    "vgg11": _VGG,
    "vgg16": _VGG,
    "vgg11-32": dataclasses.replace(_VGG, batch_size=128),
    "vgg16-32": dataclasses.replace(_VGG, batch_size=128),
}

_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda parameters, hyper: torch.optim.SGD(
        parameters, lr=hyper.learning_rate, momentum=hyper.momentum
    ),
    "adam": lambda parameters, hyper: torch.optim.Adam(parameters, lr=hyper.learning_rate),
}


class ConfigError(ValueError):
    """A run that cannot be: an unknown name, a value out of range, a device that is not there."""


@dataclass(frozen=True, eq=False)
class TrainConfig:
    """One run. What is None comes from the model's row in HYPERPARAMETERS.

    `max_steps` ends a run early, also within an epoch. `progress` shows a bar, if standard
    error is a terminal. `log` is a folder for TensorBoard: loss and accuracies by step.
    `checkpoint` is a file that is written after each whole epoch, and `resume` one to go on from,
    on any backend.

    Raises:
        ConfigError: on construction, if the run cannot be.
    """

    data: Dataset
    model: str = "a"
    backend: str = "cnnkernels"
    device: str = "cpu"
    seed: int = 0
    epochs: int | None = None
    learning_rate: float | None = None
    max_steps: int | None = None
    progress: bool = False
    log: Path | None = None
    checkpoint: Path | None = None
    resume: Path | None = None

    def __post_init__(self) -> None:
        _require_one_of("model", self.model, HYPERPARAMETERS)
        _require_one_of("backend", self.backend, BACKENDS)
        _require_one_of("device", self.device, DEVICES)
        takes, has = MODELS[self.model].input_shape, tuple(self.data.train_images.shape[1:])
        if takes != has:
            raise ConfigError(
                f"model {self.model} takes images of shape {takes}, not {has} ({self.data.name})"
            )
        for name in ("epochs", "learning_rate", "max_steps"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name} must be positive and finite, not {value}")
        if self.device == "cuda" and self.backend == "emulator":
            raise ConfigError("the emulator runs on device cpu, not cuda")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("device cuda: torch finds no CUDA device (torch.cuda.is_available())")
        if self.checkpoint is not None and not self.checkpoint.parent.is_dir():
            raise ConfigError(f"checkpoint {self.checkpoint}: no such folder")

    @property
    def hyperparameters(self) -> Hyperparameters:
        """The model's row in HYPERPARAMETERS with this run's own values in place."""
        own = {"learning_rate": self.learning_rate, "epochs": self.epochs}
        return dataclasses.replace(
            HYPERPARAMETERS[self.model],
            **{name: value for name, value in own.items() if value is not None},
        )


@dataclass(frozen=True)
class EpochReport:
    """One epoch: its number from 1, mean loss, test accuracy in [0, 1], training time.

    `validation` is the accuracy on the images held out for that, if any are.
    """

    epoch: int
    loss: float
    accuracy: float
    seconds: float
    validation: float | None = None


@dataclass(frozen=True, eq=False)
class TrainResult:
    """The loss of each step, a report of each epoch and the trained model.

    Of a resumed run, these are the whole run's.
    """

    losses: list[float]
    epochs: list[EpochReport]
    model: nn.Module

    @property
    def accuracy(self) -> float:
        """Test accuracy in [0, 1] after the last step."""
        return self.epochs[-1].accuracy


def train(
    config: TrainConfig, on_epoch: Callable[[EpochReport], None] = lambda _: None
) -> TrainResult:
    """Trains a model on the cross entropy, and calls `on_epoch` after each epoch.

    Torch's global random state is as before when it returns.

    Raises:
        CheckpointError: the checkpoint cannot be read or written, or is of another run.
        MissingExtra: a progress bar is to be shown and tqdm is absent, or a log is to be written
            and tensorboard is.
    """
    device = torch.device(config.device)
    devices = [device] if device.type == "cuda" else []
    emulation = cnnkernels.emulate_cuda() if config.backend == "emulator" else None
    with torch.random.fork_rng(devices), emulation or contextlib.nullcontext():
        run = _Run(config, device)
        if config.resume is not None:
            run.restore(config.resume)
        with _log(config.log, len(run.result.losses)) as log:
            _train_epochs(run, log, on_epoch)
        return run.result


def accuracy(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 500) -> float:
    """The share of (N, C, H, W) images whose largest output is at their label, in [0, 1]."""
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        correct = sum(
            (model(batch).argmax(1) == target).sum().item()
            for batch, target in zip(
                images.split(batch_size), labels.split(batch_size), strict=True
            )
        )
    model.train(was_training)
    return correct / len(labels)


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> Tensor:
    """One step down the cross entropy's gradient; returns the loss before it, a scalar."""
    optimizer.zero_grad(set_to_none=True)
    loss = F.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    return loss.detach()


class _Run:
    """A run between two steps: what it is, and all that training changes."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self.config = config
        self.device = device
        torch.manual_seed(config.seed)
        model = build_model(config.model).to(device)
        model = model if config.backend == "torch" else cnnkernels.convert(model)
        hyper = config.hyperparameters
        self.optimizer = _OPTIMIZERS[hyper.optimizer](model.parameters(), hyper)
        self.shuffle = torch.Generator().manual_seed(config.seed)
        self.result = TrainResult([], [], model)

    def save(self, path: Path) -> None:
        random = {"torch": torch.get_rng_state(), "shuffle": self.shuffle.get_state()}
        if self.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.device)
        content = Checkpoint(
            run=self._identity(),
            losses=self.result.losses,
            epochs=[dataclasses.asdict(report) for report in self.result.epochs],
            model=self.result.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            random=random,
        )
        checkpoint.save(path, content)

    def restore(self, path: Path) -> None:
        content = checkpoint.load(path, self._identity())
        try:
            self.result.model.load_state_dict(content.model)
            self.optimizer.load_state_dict(content.optimizer)
            self.shuffle.set_state(content.random["shuffle"])
            torch.set_rng_state(content.random["torch"])
            if self.device.type == "cuda" and "cuda" in content.random:
                torch.cuda.set_rng_state(content.random["cuda"], self.device)
            self.result.losses.extend(content.losses)
            self.result.epochs.extend(EpochReport(**report) for report in content.epochs)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: does not fit model {self.config.model}") from error

    def _identity(self) -> dict[str, Any]:
        """What a run must have in common with the one that it continues."""
        fixed = dataclasses.asdict(self.config.hyperparameters)
        del fixed["epochs"]
        images = len(self.config.data.train_labels)
        return {"model": self.config.model, "seed": self.config.seed, "images": images, **fixed}


def _train_epochs(
    run: _Run, log: Callable[[str, float, int], None], on_epoch: Callable[[EpochReport], None]
) -> None:
    config, hyper, result = run.config, run.config.hyperparameters, run.result
    training, validation, test = _parts(config, run.device)
    while len(result.epochs) < hyper.epochs:
        epoch = len(result.epochs) + 1
        order = torch.randperm(len(training[1]), generator=run.shuffle).split(hyper.batch_size)
        steps = min(len(order), (config.max_steps or math.inf) - len(result.losses))
        if steps <= 0:
            break
        start = time.perf_counter()
        with _progress(order[:steps], f"epoch {epoch}/{hyper.epochs}", config.progress) as (
            batches,
            show,
        ):
            for batch in batches:
                images, labels = (part[batch.to(run.device)] for part in training)
                loss = train_step(result.model, run.optimizer, images, labels).item()
                result.losses.append(loss)
                log("loss", loss, len(result.losses))
                show(loss)
        seconds = time.perf_counter() - start
        report = EpochReport(
            epoch,
            statistics.mean(result.losses[-steps:]),
            accuracy(result.model, *test, hyper.batch_size),
            seconds,
            accuracy(result.model, *validation, hyper.batch_size) if validation else None,
        )
        result.epochs.append(report)
        log("accuracy/test", report.accuracy, len(result.losses))
        if validation:
            log("accuracy/validation", report.validation, len(result.losses))
        if config.checkpoint is not None and steps == len(order):
            run.save(config.checkpoint)
        on_epoch(report)


_Images = tuple[Tensor, Tensor]  # and their labels


def _parts(config: TrainConfig, device: torch.device) -> tuple[_Images, _Images | None, _Images]:
    """The images for training, for validation and for the test, with their labels."""
    data = config.data
    images, labels = data.train_images.to(device), data.train_labels.to(device)
    test = data.test_images.to(device), data.test_labels.to(device)
    held_out = round(len(labels) * config.hyperparameters.validation_share)
    if held_out == 0:
        return (images, labels), None, test
    return (images[:-held_out], labels[:-held_out]), (images[-held_out:], labels[-held_out:]), test


@contextlib.contextmanager
def _log(folder: Path | None, steps_done: int) -> Iterator[Callable[[str, float, int], None]]:
    """A function that logs a tagged value at a step, for TensorBoard if there is a folder."""
    if folder is None:
        yield lambda tag, value, step: None
        return
    tensorboard = import_extra("torch.utils.tensorboard", "tensorboard")
    # What a killed run logged after the checkpoint is overwritten.
    with tensorboard.SummaryWriter(folder, purge_step=steps_done + 1) as writer:
        yield writer.add_scalar


@contextlib.contextmanager
def _progress(
    batches: Iterable[Tensor], title: str, wanted: bool
) -> Iterator[tuple[Iterable[Tensor], Callable[[float], None]]]:
    """The batches, behind a bar if one is wanted and seen, and a function that shows a loss."""
    if not (wanted and sys.stderr.isatty()):
        yield batches, lambda loss: None
        return
    tqdm = import_extra("tqdm", "tqdm").tqdm
    with tqdm(batches, desc=title, unit="step", leave=False, ncols=80) as bar:
        yield bar, lambda loss: bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)


def _require_one_of(what: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise ConfigError(f"{what} {value}: not one of {', '.join(known)}")
