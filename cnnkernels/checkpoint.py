"""Checkpoints of a training run, from which another process goes on as if nothing had happened."""

import io
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cnnkernels.data import atomic_file

_FORMAT = "cnnkernels checkpoint"
_VERSION = 2


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, read or used; the message names the file."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """All that the rest of a run depends on, after a step.

    Only what torch.load reads with `weights_only` may be in here.

    Attributes:
        run: what fixes the run: one that resumes must have the same.
        losses: of each step; their number says where in the run this is.
        epochs: the reports of the whole epochs.
        model: the weights, a state_dict.
        best: those after the epoch of the smallest validation loss; empty where nobody asks.
        optimizer: the states of optimizer, schedule and gradient scaler.
        classes: the names of the classes.
        normalization: mean and deviation by name, or nothing.
    """

    run: dict[str, Any]
    losses: list[float]
    epochs: list[dict[str, Any]]
    model: dict[str, Tensor]
    best: dict[str, Tensor]
    optimizer: dict[str, dict[str, Any]]
    classes: list[str]
    normalization: dict[str, Tensor]


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint: at any time the file is the last one or this one, whole.

    Raises:
        CheckpointError: it cannot be written.
    """
    content = {"format": _FORMAT, "version": _VERSION}
    content |= {field.name: getattr(checkpoint, field.name) for field in fields(Checkpoint)}
    try:
        with atomic_file(path) as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:  # torch.save turns the one into the other
        raise CheckpointError(f"{path}: cannot be written: {_first_line(error)}") from error


def load(path: Path, run: dict[str, Any] | None = None) -> Checkpoint:
    """Reads a checkpoint on to the CPU: of this run, if one is given, else of any.

    Raises:
        CheckpointError: the file is absent, damaged, no checkpoint, one of another version of
            this format, or one of another run.
    """
    content = _read(path)
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise CheckpointError(f"{path}: not a checkpoint of cnnkernels")
    if content.get("version") != _VERSION:
        raise CheckpointError(
            f"{path}: format version {content.get('version')}, not {_VERSION}, which this "
            "cnnkernels reads"
        )
    try:
        checkpoint = Checkpoint(**{field.name: content[field.name] for field in fields(Checkpoint)})
    except KeyError as error:
        raise CheckpointError(f"{path}: damaged: no {error}") from error
    for name, value in (run or {}).items():
        if (theirs := checkpoint.run.get(name)) != value:
            raise CheckpointError(f"{path}: of a run with {name} {theirs}, not {value}")
    return checkpoint


def _read(path: Path) -> Any:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # what a foreign or damaged file raises can be anything
        raise CheckpointError(
            f"{path}: damaged, or not a checkpoint: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
