"""Training of the reference networks: by our kernels, by torch's own, or in the emulator.

A seed fixes the initial weights and the order of the images, whatever the backend. Runs that
differ in the backend alone therefore differ in rounding alone.
"""

import contextlib
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cnnkernels
from cnnkernels.data import Dataset, import_extra
from cnnkernels.models import build_model

BACKENDS = ("cnnkernels", "torch", "emulator")
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Hyperparameters:
    """What SGD without momentum needs to know."""

    learning_rate: float
    batch_size: int
    epochs: int


HYPERPARAMETERS = {
    "a": Hyperparameters(learning_rate=0.01, batch_size=100, epochs=5),
}


class ConfigError(ValueError):
    """A run that cannot be: an unknown name, a value out of range, a device that is not there."""


@dataclass(frozen=True, eq=False)
class TrainConfig:
    """One run. What is None comes from the model's row in HYPERPARAMETERS.

    `max_steps` ends a run early, also within an epoch. `progress` shows a bar, if standard
    error is a terminal.

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

    def __post_init__(self) -> None:
        _require_one_of("model", self.model, HYPERPARAMETERS)
        _require_one_of("backend", self.backend, BACKENDS)
        _require_one_of("device", self.device, DEVICES)
        for name in ("epochs", "learning_rate", "max_steps"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name} must be positive and finite, not {value}")
        if self.device == "cuda" and self.backend == "emulator":
            raise ConfigError("the emulator runs on device cpu, not cuda")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("device cuda: torch finds no CUDA device (torch.cuda.is_available())")

    @property
    def hyperparameters(self) -> Hyperparameters:
        """The model's row in HYPERPARAMETERS with this run's own values in place."""
        row = HYPERPARAMETERS[self.model]
        return Hyperparameters(
            learning_rate=self.learning_rate or row.learning_rate,
            batch_size=row.batch_size,
            epochs=self.epochs or row.epochs,
        )


@dataclass(frozen=True)
class EpochReport:
    """One epoch: its number from 1, mean loss, test accuracy in [0, 1], training time."""

    epoch: int
    loss: float
    accuracy: float
    seconds: float


@dataclass(frozen=True, eq=False)
class TrainResult:
    """The loss of each step, a report of each epoch and the trained model."""

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
    """Trains a model by SGD on the cross entropy, and calls `on_epoch` after each epoch.

    Torch's global random state is as before when it returns.

    Raises:
        MissingExtra: a progress bar is to be shown and tqdm is absent.
    """
    device = torch.device(config.device)
    devices = [device] if device.type == "cuda" else []
    emulation = cnnkernels.emulate_cuda() if config.backend == "emulator" else None
    with torch.random.fork_rng(devices), emulation or contextlib.nullcontext():
        torch.manual_seed(config.seed)
        model = build_model(config.model).to(device)
        if config.backend != "torch":
            model = cnnkernels.convert(model)
        return _train_epochs(config, model, device, on_epoch)


def accuracy(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 500) -> float:
    """The share of (N, 1, 28, 28) images whose largest output is at their label, in [0, 1]."""
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


def _train_epochs(
    config: TrainConfig,
    model: nn.Module,
    device: torch.device,
    on_epoch: Callable[[EpochReport], None],
) -> TrainResult:
    hyper, data = config.hyperparameters, config.data
    images, labels = data.train_images.to(device), data.train_labels.to(device)
    test_images, test_labels = data.test_images.to(device), data.test_labels.to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=hyper.learning_rate)
    shuffle = torch.Generator().manual_seed(config.seed)
    result = TrainResult([], [], model)
    steps_left = math.inf if config.max_steps is None else config.max_steps
    for epoch in range(1, hyper.epochs + 1):
        batches = torch.randperm(len(labels), generator=shuffle).split(hyper.batch_size)
        batches = batches[: min(len(batches), steps_left)]
        steps_left -= len(batches)
        start, losses = time.perf_counter(), []
        with _progress(batches, f"epoch {epoch}/{hyper.epochs}", config.progress) as (bar, show):
            for batch in bar:
                batch = batch.to(device)
                losses.append(train_step(model, optimizer, images[batch], labels[batch]).item())
                show(losses[-1])
        seconds = time.perf_counter() - start
        test_accuracy = accuracy(model, test_images, test_labels)
        result.losses.extend(losses)
        result.epochs.append(EpochReport(epoch, statistics.mean(losses), test_accuracy, seconds))
        on_epoch(result.epochs[-1])
        if steps_left == 0:
            break
    return result


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
