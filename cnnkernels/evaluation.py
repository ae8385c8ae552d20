"""What a network answers: on a whole set, with loss and confusion matrix, and to single images."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cnnkernels
from cnnkernels import checkpoint
from cnnkernels.checkpoint import CheckpointError
from cnnkernels.data import Images, batches, read_image
from cnnkernels.models import MODELS, build_model

BATCH = 500


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Mean cross entropy, and the confusion matrix: int64, images by [label, answer]."""

    loss: float
    confusion: Tensor

    @property
    def accuracy(self) -> float:
        """The share of images whose answer is their label, in [0, 1]."""
        return self.confusion.trace().item() / self.confusion.sum().item()

    @property
    def class_accuracies(self) -> list[float]:
        """The same of each label's images; NaN where there are none."""
        return (self.confusion.diagonal() / self.confusion.sum(1)).tolist()


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation of each channel, (C,), which become 0 and 1."""

    mean: Tensor
    deviation: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        """(N, C, H, W), normalized."""
        mean, deviation = (v.to(images).view(-1, 1, 1) for v in (self.mean, self.deviation))
        return (images - mean) / deviation


def evaluate(
    model: Callable[[Tensor], Tensor],
    images: Images,
    labels: Tensor,
    classes: int,
    *,
    batch_size: int = BATCH,
    device: torch.device | str = "cpu",
    share: Callable[[Tensor], Tensor] = lambda indices: indices,
    total: Callable[[Tensor], Tensor] = lambda value: value,
) -> Evaluation:
    """Evaluates what gives logits, (N, classes), of images, (N, C, H, W), with labels, (N,).

    Of several processes, each takes its `share` of the indices, and `total` adds their results up.
    """
    loss = torch.zeros((), dtype=torch.float64, device=device)
    confusion = torch.zeros(classes, classes, dtype=torch.int64, device=device)
    order = share(torch.arange(len(labels))).split(batch_size)
    with torch.inference_mode():
        for batch, target in batches(images, labels, order):
            target = target.to(device)
            logits = model(batch.to(device))
            loss += F.cross_entropy(logits.double(), target, reduction="sum")
            pairs = torch.bincount(target * classes + logits.argmax(1), minlength=classes**2)
            confusion += pairs.view(classes, classes)
    return Evaluation((total(loss) / len(labels)).item(), total(confusion).cpu())


@dataclass(frozen=True)
class Mistake:
    """An image by its index, its label, and the answer with its probability, which is wrong."""

    index: int
    label: int
    answer: int
    probability: float


def mistakes(
    model: Callable[[Tensor], Tensor], images: Images, labels: Tensor, batch_size: int = BATCH
) -> list[Mistake]:
    """The images, (N, C, H, W), for which the largest logit is not at the label; surest first."""
    found = []
    for indices in torch.arange(len(labels)).split(batch_size):
        with torch.inference_mode():
            shares, answers = model(images[indices]).softmax(1).max(1)
        for row in (answers != labels[indices]).nonzero().flatten().tolist():
            index = indices[row].item()
            found.append(
                Mistake(index, labels[index].item(), answers[row].item(), shares[row].item())
            )
    return sorted(found, key=lambda mistake: -mistake.probability)


@dataclass(frozen=True, eq=False)
class Classifier:
    """A trained model with all that it takes to use it: what it is, its classes, its input."""

    name: str
    model: nn.Module
    classes: tuple[str, ...]
    normalization: Normalization | None

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return MODELS[self.name].input_shape

    def prepare(self, images: Tensor) -> Tensor:
        """Images in [0, 1], (N, C, H, W), as the model takes them."""
        return images if self.normalization is None else self.normalization(images)

    def __call__(self, images: Tensor) -> Tensor:
        """Logits, (N, classes), of images in [0, 1], (N, C, H, W)."""
        return self.model(self.prepare(images))

    def predict(self, files: Sequence[Path], top: int = 3) -> Iterable[list[tuple[str, float]]]:
        """The most likely classes of each image file, with their probabilities, largest first.

        Raises:
            DataError: a file is absent or no image.
        """
        top = min(top, len(self.classes))
        for file in files:
            with torch.inference_mode():
                logits = self(read_image(file, self.input_shape).unsqueeze(0))
            found = logits.softmax(1)[0].topk(top)
            yield [
                (self.classes[index], share)
                for share, index in zip(found.values.tolist(), found.indices.tolist(), strict=True)
            ]


def load_classifier(path: Path, convert: bool = True, fuse: bool = True) -> Classifier:
    """The model of a checkpoint, in evaluation mode on the CPU: its best weights, else its last.

    With `convert`, our kernels run it, with `fuse` several layers by one; else it is torch.nn's.

    Raises:
        CheckpointError: the file cannot be read, or is none of a run.
    """
    content = checkpoint.load(path)
    try:
        model = build_model(content.run["model"], len(content.classes))
        model.load_state_dict(content.best or content.model)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: does not fit its model") from error
    statistics = content.normalization
    return Classifier(
        content.run["model"],
        (cnnkernels.convert(model, fuse) if convert else model).eval(),
        tuple(content.classes),
        Normalization(**statistics) if statistics else None,
    )
