"""Training by several processes, as torchrun starts them: each has its share of every batch."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Group:
    """The processes of a run, and which of them this one is."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes and reports."""
        return self.rank == 0

    def share(self, batch: Tensor) -> Tensor:
        """This process's part of a batch along its first dimension; it may be empty."""
        return batch[self.rank :: self.size]

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model, so that a backward pass leaves the mean of all processes' gradients."""
        return model if self.size == 1 else DistributedDataParallel(model)

    def agree(self, model: nn.Module) -> None:
        """Gives every process the first one's buffers: each has statistics of its own images."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)


def is_first() -> bool:
    """Whether this process is the first, or the only one, of those that torchrun started."""
    return int(os.environ.get("RANK", 0)) == 0


@contextlib.contextmanager
def group(device: str) -> Iterator[Group]:
    """The processes that torchrun started, joined by nccl on GPUs and by gloo on CPUs; else one.

    On GPUs each process has the one of its local rank.
    """
    if "WORLD_SIZE" not in os.environ:
        yield Group(0, 1, torch.device(device))
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        device = f"cuda:{torch.cuda.current_device()}"
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield Group(dist.get_rank(), dist.get_world_size(), torch.device(device))
    finally:
        dist.destroy_process_group()
