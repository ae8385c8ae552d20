"""Training of the reference networks: by our kernels, by torch's own, or in the emulator.

A seed fixes the initial weights, the order of the images and what happens to them, whatever the
backend. Runs that differ in the backend alone therefore differ in rounding alone, and so do runs
that differ in the number of processes, but for dropout and batch statistics.

No random state is carried from step to step: what is random in a step follows from the seed and
the step's number. So a run that was stopped goes on from its last checkpoint, which may stand
anywhere in an epoch, to the very weights that it would have come to.
"""

import contextlib
import dataclasses
import hashlib
import math
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer, lr_scheduler

import cnnkernels
from cnnkernels import checkpoint, parallel
from cnnkernels.augment import DRAWS, augment
from cnnkernels.checkpoint import Checkpoint, CheckpointError
from cnnkernels.config import PRECISIONS, Hyperparameters, TrainConfig
from cnnkernels.data import Images, batches, import_extra
from cnnkernels.evaluation import Evaluation, Normalization, evaluate
from cnnkernels.models import build_model

_STATISTICS_IMAGES = 10_000  # at most so many tell mean and deviation

_OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter], Hyperparameters], Optimizer]] = {
    "sgd": lambda parameters, hyper: torch.optim.SGD(
        parameters,
        lr=hyper.learning_rate,
        momentum=hyper.momentum,
        weight_decay=hyper.weight_decay,
    ),
    "adam": lambda parameters, hyper: torch.optim.Adam(
        parameters, lr=hyper.learning_rate, weight_decay=hyper.weight_decay
    ),
}

# By the number of steps in the whole run.
_SCHEDULES: dict[str, Callable[[Optimizer, Hyperparameters, int], lr_scheduler.LRScheduler]] = {
    "constant": lambda optimizer, hyper, steps: lr_scheduler.ConstantLR(optimizer, factor=1),
    "step": lambda optimizer, hyper, steps: lr_scheduler.StepLR(optimizer, math.ceil(steps / 3)),
    "cosine": lambda optimizer, hyper, steps: lr_scheduler.CosineAnnealingLR(optimizer, steps),
    "onecycle": lambda optimizer, hyper, steps: lr_scheduler.OneCycleLR(
        optimizer,
        hyper.learning_rate,
        total_steps=steps + 1,  # it is asked for the step after the last, too
        cycle_momentum=False,
    ),
}


class Stopped(Exception):
    """The run was asked to stop by SIGTERM; its checkpoint is written."""


@dataclass(frozen=True)
class EpochReport:
    """One epoch: its number from 1, mean loss, test accuracy in [0, 1], training time.

    `validation` and `validation_loss` are those of the images held out for that, if any are.
    """

    epoch: int
    loss: float
    accuracy: float
    seconds: float
    validation: float | None = None
    validation_loss: float | None = None


@dataclass(frozen=True, eq=False)
class TrainResult:
    """The loss of each step, a report of each epoch, the trained model and how it did on the test.

    Of a resumed run, these are the whole run's. Where `patience` is set, the model and the test
    are those of the epoch with the smallest validation loss.
    """

    losses: list[float]
    epochs: list[EpochReport]
    model: nn.Module
    test: Evaluation

    @property
    def accuracy(self) -> float:
        """Test accuracy in [0, 1] of the model."""
        return self.test.accuracy


def train(
    config: TrainConfig, on_epoch: Callable[[EpochReport], None] = lambda _: None
) -> TrainResult:
    """Trains a model on the cross entropy, and calls `on_epoch` after each epoch.

    Under torchrun, all processes train together; the first alone calls `on_epoch`, logs and
    writes the checkpoint. Torch's global random state is as before when it returns.

    Raises:
        CheckpointError: the checkpoint cannot be read or written, or is of another run.
        MissingExtra: a progress bar is to be shown and tqdm is absent, or a log is to be written
            and tensorboard is.
        Stopped: on SIGTERM, if there is a checkpoint to write.
    """
    emulation = cnnkernels.emulate_cuda() if config.backend == "emulator" else None
    with parallel.group(config.device) as group, emulation or contextlib.nullcontext():
        with torch.random.fork_rng([group.device] if group.device.type == "cuda" else []):
            run = _Run(config, group)
            if config.resume is not None:
                run.restore()
            with _log(run) as log, _sigterm(config.checkpoint is not None) as stop:
                return _train(run, log, stop, on_epoch)


def train_step(
    model: nn.Module,
    optimizer: Optimizer,
    images: Tensor,
    labels: Tensor,
    *,
    count: float | None = None,
    parts: int = 1,
    precision: torch.dtype | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> Tensor:
    """One step down the cross entropy's gradient; returns the loss before it, a scalar.

    Args:
        model: from images to logits.
        optimizer: of the model's parameters.
        images: (N, C, H, W); N may be 0.
        labels: (N,).
        count: what the sum of the losses is divided by, if not the number of images.
        parts: do it in so many passes, whose gradients add up.
        precision: the dtype of autocast, if any.
        scaler: keeps gradients in the range of float16.
    """
    scaler = scaler or torch.amp.GradScaler(images.device.type, enabled=False)
    count = len(labels) if count is None else count
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=images.device)
    passes = list(zip(images.chunk(parts), labels.chunk(parts), strict=True))
    for i, (part, target) in enumerate(passes, 1):
        alone = isinstance(model, DistributedDataParallel) and i < len(passes)
        with model.no_sync() if alone else contextlib.nullcontext():
            with torch.autocast(images.device.type, precision, enabled=precision is not None):
                logits = model(part)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            loss = F.cross_entropy(logits, target, reduction="sum") / count
            scaler.scale(loss).backward()
        total = total + loss.detach()
    scaler.step(optimizer)
    scaler.update()
    return total


class _Run:
    """A run between two steps: what it is, and all that training changes."""

    def __init__(self, config: TrainConfig, group: parallel.Group) -> None:
        self.config, self.group = config, group
        self.hyper = hyper = config.hyperparameters
        data, device = config.data, group.device
        torch.manual_seed(config.seed)
        model = build_model(config.model, len(data.classes)).to(device)
        self.model = model if config.backend == "torch" else cnnkernels.convert(model)
        if config.channels_last:
            self.model.to(memory_format=torch.channels_last)
        if config.compile:
            self.model.compile()
        self.trained = group.wrap(self.model)
        training = len(data.train_labels) - config.held_out
        self.images, self.labels = _on(device, data.train_images, data.train_labels, 0, training)
        self.validation = _on(device, data.train_images, data.train_labels, training, None)
        self.test = _on(device, data.test_images, data.test_labels, 0, None)
        self.steps_per_epoch = math.ceil(training / hyper.batch_size)
        self.optimizer = _OPTIMIZERS[hyper.optimizer](self.model.parameters(), hyper)
        steps = self.steps_per_epoch * hyper.epochs
        self.schedule = _SCHEDULES[hyper.schedule](self.optimizer, hyper, steps)
        self.scaler = torch.amp.GradScaler(device.type, enabled=hyper.precision == "float16")
        self.normalization = _statistics(self.images) if hyper.normalize else None
        self.losses: list[float] = []
        self.epochs: list[EpochReport] = []
        self.best: dict[str, Tensor] = {}

    @property
    def steps_left(self) -> float:
        """What `max_steps` leaves."""
        return (self.config.max_steps or math.inf) - len(self.losses)

    @property
    def is_over(self) -> bool:
        if len(self.epochs) >= self.hyper.epochs or self.steps_left <= 0:
            return True
        waited = len(self.epochs) - self.best_epoch if self.epochs and self.hyper.patience else 0
        return waited >= self.hyper.patience > 0

    @property
    def best_epoch(self) -> int:
        """The epoch of the smallest validation loss; the first of these, if there are several."""
        return min(self.epochs, key=lambda report: report.validation_loss).epoch

    def step(self, images: Tensor, labels: Tensor, batch: Tensor, changes: Tensor) -> Tensor:
        """One step on this process's share, (N, C, H, W), of a batch of the training images.

        Args:
            images: the share.
            labels: its labels.
            batch: the indices of the whole batch.
            changes: random numbers of this epoch for each training image.
        """
        group, hyper, device = self.group, self.hyper, self.group.device
        images = augment(images.to(device), changes[group.share(batch)].to(device), hyper.augment)
        images = self.prepare(images)
        torch.manual_seed(_seed(self.config.seed, "step", len(self.losses), group.rank))
        loss = train_step(
            self.trained,
            self.optimizer,
            images,
            labels.to(device),
            count=len(batch) / group.size,  # the gradients' mean over all processes is taken
            parts=self.config.accumulate,
            precision=PRECISIONS[hyper.precision],
            scaler=self.scaler,
        )
        self.schedule.step()
        return loss / group.size

    def prepare(self, images: Tensor) -> Tensor:
        """Images as the model takes them."""
        if self.normalization is not None:
            images = self.normalization(images)
        if self.config.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return images

    def evaluate(self, images: Images, labels: Tensor) -> Evaluation:
        """Evaluates the model by all processes together."""
        precision, device = PRECISIONS[self.hyper.precision], self.group.device

        def logits(batch: Tensor) -> Tensor:
            with torch.autocast(device.type, precision, enabled=precision is not None):
                return self.model(self.prepare(batch))

        self.group.agree(self.model)
        self.model.eval()
        found = evaluate(
            logits,
            images,
            labels,
            len(self.config.data.classes),
            batch_size=self.hyper.batch_size,
            device=device,
            share=self.group.share,
            total=self.group.sum,
        )
        self.model.train()
        return found

    def finish_epoch(self, seconds: float) -> EpochReport:
        """Evaluates the model, and keeps its weights if they are the best."""
        losses = self.losses[len(self.epochs) * self.steps_per_epoch :]
        held_out = self.evaluate(*self.validation) if self.config.held_out else None
        report = EpochReport(
            len(self.epochs) + 1,
            statistics.mean(losses),
            self.evaluate(*self.test).accuracy,
            seconds,
            held_out and held_out.accuracy,
            held_out and held_out.loss,
        )
        self.epochs.append(report)
        if self.hyper.patience and self.best_epoch == report.epoch:
            self.best = {name: v.clone() for name, v in self.model.state_dict().items()}
        return report

    def save(self) -> None:
        """Writes the checkpoint, if there is to be one."""
        if self.config.checkpoint is None or not self.group.is_first:
            return
        statistics = dataclasses.asdict(self.normalization) if self.normalization else {}
        content = Checkpoint(
            run=self._identity(),
            losses=self.losses,
            epochs=[dataclasses.asdict(report) for report in self.epochs],
            model=self.model.state_dict(),
            best=self.best,
            optimizer={name: part.state_dict() for name, part in self._stateful().items()},
            classes=list(self.config.data.classes),
            normalization=statistics,
        )
        checkpoint.save(self.config.checkpoint, content)

    def restore(self) -> None:
        path = self.config.resume
        content = checkpoint.load(path, self._identity())
        try:
            self.model.load_state_dict(content.model)
            for name, part in self._stateful().items():
                part.load_state_dict(content.optimizer[name])
            self.losses.extend(content.losses)
            self.epochs.extend(EpochReport(**report) for report in content.epochs)
            self.best = {name: v.to(self.group.device) for name, v in content.best.items()}
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: does not fit model {self.config.model}") from error

    def _stateful(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer, "schedule": self.schedule, "scaler": self.scaler}

    def _identity(self) -> dict[str, Any]:
        """What a run must have in common with the one that it continues."""
        fixed = dataclasses.asdict(self.hyper)
        del fixed["patience"]
        if self.hyper.schedule == "constant":  # the others depend on the length
            del fixed["epochs"]
        fixed["augment"] = list(self.hyper.augment)
        images = len(self.config.data.train_labels)
        return {"model": self.config.model, "seed": self.config.seed, "images": images, **fixed}


_Log = Callable[[str, float, int], None]


def _train(
    run: _Run, log: _Log, stop: threading.Event, on_epoch: Callable[[EpochReport], None]
) -> TrainResult:
    while not run.is_over:
        seconds = _train_epoch(run, log, stop)
        report = run.finish_epoch(seconds)
        log("accuracy/test", report.accuracy, len(run.losses))
        if report.validation is not None:
            log("accuracy/validation", report.validation, len(run.losses))
            log("loss/validation", report.validation_loss, len(run.losses))
        if len(run.losses) == len(run.epochs) * run.steps_per_epoch:
            run.save()
        if run.group.is_first:
            on_epoch(report)
    if run.best:
        run.model.load_state_dict(run.best)
    return TrainResult(run.losses, run.epochs, run.model, run.evaluate(*run.test))


def _train_epoch(run: _Run, log: _Log, stop: threading.Event) -> float:
    """Trains to the end of the epoch, or as far as may be; returns the seconds that it took."""
    config, hyper, group = run.config, run.hyper, run.group
    epoch, images = len(run.epochs), len(run.labels)
    draw = torch.Generator().manual_seed(_seed(config.seed, "epoch", epoch))
    order = torch.randperm(images, generator=draw).split(hyper.batch_size)
    changes = torch.rand(images, DRAWS, generator=draw)
    done = len(run.losses) - epoch * len(order)
    order = order[done : min(len(order), done + run.steps_left)]
    shares = [group.share(batch) for batch in order]
    feed = zip(order, batches(run.images, run.labels, shares, config.workers), strict=True)
    title = f"epoch {epoch + 1}/{hyper.epochs}"
    start = time.perf_counter()
    with _progress(feed, len(order), title, config.progress and group.is_first) as (feed, show):
        for batch, (share, labels) in feed:
            loss = run.step(share, labels, batch, changes)
            wanted = torch.tensor(float(stop.is_set()), device=loss.device)
            loss, stopped = group.sum(torch.stack((loss, wanted.to(loss)))).tolist()
            run.losses.append(loss)
            log("loss", loss, len(run.losses))
            show(loss)
            if config.save_every and len(run.losses) % config.save_every == 0:
                run.save()
            if stopped:
                run.save()
                raise Stopped(f"{config.checkpoint}: stopped after step {len(run.losses)}")
    return time.perf_counter() - start


def _on(
    device: torch.device, images: Images, labels: Tensor, start: int, stop: int | None
) -> tuple[Images, Tensor]:
    """A part of the images and their labels; where they are in memory, in the device's."""
    images, labels = images[start:stop], labels[start:stop]
    return (
        (images.to(device), labels.to(device)) if isinstance(images, Tensor) else (images, labels)
    )


def _statistics(images: Images) -> Normalization:
    """Mean and deviation of evenly spaced images, and of each channel."""
    step = math.ceil(len(images) / _STATISTICS_IMAGES)
    pixels = images[torch.arange(0, len(images), step)].double()
    deviation, mean = torch.std_mean(pixels, (0, 2, 3), correction=0)
    floor = torch.finfo(torch.float32).eps  # of a channel without contrast
    return Normalization(mean.float().cpu(), deviation.clamp(min=floor).float().cpu())


def _seed(*parts: int | str) -> int:
    """A seed for a purpose, independent of that for any other."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=7).digest(), "big")


@contextlib.contextmanager
def _sigterm(wanted: bool) -> Iterator[threading.Event]:
    """An event that SIGTERM sets instead of ending the process, if that is wanted."""
    event = threading.Event()
    if not (wanted and threading.current_thread() is threading.main_thread()):
        yield event
        return
    before = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _log(run: _Run) -> Iterator[_Log]:
    """A function that logs a tagged value at a step, for TensorBoard if there is a folder."""
    if run.config.log is None or not run.group.is_first:
        yield lambda tag, value, step: None
        return
    tensorboard = import_extra("torch.utils.tensorboard", "tensorboard")
    # What a killed run logged after the checkpoint is overwritten.
    with tensorboard.SummaryWriter(run.config.log, purge_step=len(run.losses) + 1) as writer:
        yield writer.add_scalar


@contextlib.contextmanager
def _progress(
    steps: Iterable[Any], count: int, title: str, wanted: bool
) -> Iterator[tuple[Iterable[Any], Callable[[float], None]]]:
    """The steps, behind a bar if one is wanted and seen, and a function that shows a loss."""
    if not (wanted and sys.stderr.isatty()):
        yield steps, lambda loss: None
        return
    tqdm = import_extra("tqdm", "tqdm").tqdm
    with tqdm(steps, desc=title, total=count, unit="step", leave=False, ncols=80) as bar:
        yield bar, lambda loss: bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
