"""What a training run is: hyperparameters of each model, and a run's own choices."""

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from cnnkernels.augment import AUGMENTATIONS
from cnnkernels.data import Dataset
from cnnkernels.models import MODELS

BACKENDS = ("cnnkernels", "torch", "emulator")
DEVICES = ("cpu", "cuda")
OPTIMIZERS = ("sgd", "adam")
SCHEDULES = ("constant", "step", "cosine", "onecycle")
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Hyperparameters:
    """How a model is trained; with the seed, this fixes the result but for rounding.

    Attributes:
        learning_rate: the largest of the schedule.
        batch_size: images a step, of all processes together.
        epochs: times that each image is seen, at most.
        optimizer: one of OPTIMIZERS.
        momentum: SGD's.
        weight_decay: the optimizer's.
        schedule: one of SCHEDULES: constant; a tenth after each third of the epochs; a half cosine
            down to 0; up and down again (Smith and Topin, "Super-convergence", 2018).
        validation_share: the part of the training images, the last ones, that is held out.
        patience: epochs without a smaller loss on the validation images after which training
            stops, with the weights of the best epoch; 0 is never.
        augment: of AUGMENTATIONS, what is done to training images.
        normalize: whether images are shifted and scaled to mean 0 and deviation 1 a channel.
        precision: one of PRECISIONS; the 16-bit ones by autocast.
    """

    learning_rate: float
    batch_size: int
    epochs: int
    optimizer: str = "sgd"
    momentum: float = 0.0
    weight_decay: float = 0.0
    schedule: str = "constant"
    validation_share: float = 0.0
    patience: int = 0
    augment: tuple[str, ...] = ()
    normalize: bool = False
    precision: str = "float32"


_MNIST = Hyperparameters(learning_rate=0.01, batch_size=100, epochs=5)
_IMAGENET = Hyperparameters(
    learning_rate=0.01, batch_size=32, epochs=10, momentum=0.9, normalize=True
)
_VGG = dataclasses.replace(_IMAGENET, normalize=False)

HYPERPARAMETERS = {
    "a": _MNIST,
    "b": _MNIST,
    "c": dataclasses.replace(_MNIST, learning_rate=0.05),
    "convnet": Hyperparameters(
        learning_rate=5e-4,
        batch_size=128,
        epochs=5,
        optimizer="adam",
        validation_share=1 / 6,  # 10,000 of MNIST's 60,000
    ),
    "net": Hyperparameters(learning_rate=1e-3, batch_size=100, epochs=5, optimizer="adam"),
    "mlp": Hyperparameters(learning_rate=1e-3, batch_size=100, epochs=5, optimizer="adam"),
    "cifar": Hyperparameters(
        learning_rate=2e-3,
        batch_size=100,
        epochs=30,
        optimizer="adam",
        schedule="cosine",
        augment=("flip", "rotate", "crop"),
        normalize=True,
    ),
    "alexnet": _IMAGENET,
    "vgg11": _VGG,
    "vgg13": _VGG,
    "vgg16": _VGG,
    "vgg19": _VGG,
    **{f"vgg{depth}-32": dataclasses.replace(_VGG, batch_size=128) for depth in (11, 13, 16, 19)},
    "resnet18": _IMAGENET,
    "resnet50": _IMAGENET,
    "resnet152": _IMAGENET,
}


class ConfigError(ValueError):
    """A run that cannot be: an unknown name, a value out of range, a device that is not there."""


@dataclass(frozen=True, eq=False)
class TrainConfig:
    """One run. The hyperparameters that are None come from the model's row in HYPERPARAMETERS.

    Attributes:
        max_steps: ends a run early, also within an epoch.
        accumulate: parts that each batch is cut into; their gradients add up to the batch's, for
            batches that do not fit into memory.
        channels_last: keep weights and images in that memory format.
        compile: run the model through torch.compile.
        workers: processes that read image files.
        progress: show a bar, if standard error is a terminal.
        log: a folder for TensorBoard: loss and accuracies by step.
        checkpoint: a file that is written after each epoch, and on SIGTERM.
        save_every: steps after each of which the checkpoint is written, too.
        resume: a checkpoint of the same run to go on from, on any backend and number of processes.

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
    batch_size: int | None = None
    optimizer: str | None = None
    momentum: float | None = None
    weight_decay: float | None = None
    schedule: str | None = None
    validation_share: float | None = None
    patience: int | None = None
    augment: tuple[str, ...] | None = None
    normalize: bool | None = None
    precision: str | None = None
    max_steps: int | None = None
    accumulate: int = 1
    channels_last: bool = False
    compile: bool = False
    workers: int = 0
    progress: bool = False
    log: Path | None = None
    checkpoint: Path | None = None
    save_every: int | None = None
    resume: Path | None = None

    def __post_init__(self) -> None:
        _require_one_of("model", self.model, HYPERPARAMETERS)
        _require_one_of("backend", self.backend, BACKENDS)
        _require_one_of("device", self.device, DEVICES)
        hyper = self.hyperparameters
        _require_one_of("optimizer", hyper.optimizer, OPTIMIZERS)
        _require_one_of("schedule", hyper.schedule, SCHEDULES)
        _require_one_of("precision", hyper.precision, PRECISIONS)
        for name in hyper.augment:
            _require_one_of("augmentation", name, AUGMENTATIONS)
        takes, has = MODELS[self.model].input_shape, tuple(self.data.train_images.shape[1:])
        if takes != has:
            raise ConfigError(
                f"model {self.model} takes images of shape {takes}, not {has} ({self.data.name})"
            )
        positive = (
            "epochs",
            "learning_rate",
            "batch_size",
            "max_steps",
            "accumulate",
            "save_every",
        )
        for name in positive:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name} must be positive and finite, not {value}")
        for name in ("weight_decay", "patience", "workers"):
            if not 0 <= (value := getattr(self, name) or 0) < math.inf:
                raise ConfigError(f"{name} must be 0 or more and finite, not {value}")
        for name in ("momentum", "validation_share"):
            if not 0 <= (value := getattr(hyper, name)) < 1:
                raise ConfigError(f"{name} must be in [0, 1), not {value}")
        if hyper.patience and not self.held_out:
            raise ConfigError("patience needs validation images, and none are held out")
        if self.held_out == len(self.data.train_labels):
            raise ConfigError("all images are held out for validation, none is left for training")
        if self.device == "cuda" and self.backend == "emulator":
            raise ConfigError("the emulator runs on device cpu, not cuda")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("device cuda: torch finds no CUDA device (torch.cuda.is_available())")
        if self.checkpoint is not None and not self.checkpoint.parent.is_dir():
            raise ConfigError(f"checkpoint {self.checkpoint}: no such folder")
        if self.save_every is not None and self.checkpoint is None:
            raise ConfigError("save_every needs a checkpoint to write")

    @property
    def hyperparameters(self) -> Hyperparameters:
        """The model's row in HYPERPARAMETERS with this run's own values in place."""
        names = [field.name for field in dataclasses.fields(Hyperparameters)]
        own = {name: value for name in names if (value := getattr(self, name)) is not None}
        return dataclasses.replace(HYPERPARAMETERS[self.model], **own)

    @property
    def held_out(self) -> int:
        """How many training images are for validation."""
        return round(len(self.data.train_labels) * self.hyperparameters.validation_share)


def _require_one_of(what: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise ConfigError(f"{what} {value}: not one of {', '.join(known)}")
