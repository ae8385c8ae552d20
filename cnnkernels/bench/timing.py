"""Times the sides of each piece of work in turns, after comparing what they compute."""

import contextlib
import datetime
import os
import statistics
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import cnnkernels
from cnnkernels.bench.sides import Call, Work
from cnnkernels.compare import cpu_name

# A piece of work takes turns for so many seconds, in no fewer and no more rounds.
SECONDS = 2.0
FEWEST, MOST = 10, 100
QUICK_ROUNDS = 3

# What ||ours - torch's|| / ||torch's|| may be in float32: both round, in another order.
AGREEMENT = 1e-4


class Disagreement(Exception):
    """Two sides did not compute the same."""


@dataclass(frozen=True)
class Row:
    """Median milliseconds of a pass by each side; None where torch.compile cannot run here.

    `gflops` is ours, of the multiplications and additions that the convolution's definition takes,
    and None where there are none.
    """

    suite: str
    case: str
    kernel_pass: str
    dtype: str
    layout: str
    ours_ms: float
    eager_ms: float
    channels_last_ms: float
    compile_ms: float | None
    gflops: float | None

    @property
    def eager_best_ms(self) -> float:
        """Of eager torch's better layout."""
        return min(self.eager_ms, self.channels_last_ms)

    @property
    def speedup_eager(self) -> float:
        """Times the speed of eager torch, as written."""
        return self.eager_ms / self.ours_ms

    @property
    def speedup_best(self) -> float:
        """Times that of its better layout."""
        return self.eager_best_ms / self.ours_ms

    @property
    def speedup_compile(self) -> float | None:
        """Times that of torch.compile."""
        return None if self.compile_ms is None else self.compile_ms / self.ours_ms

    def as_json(self) -> dict[str, Any]:
        """The row under the names of the report."""
        names = (
            "suite",
            "case",
            "pass",
            "dtype",
            "layout",
            "ours_ms",
            "eager_ms",
            "eager_best_ms",
            "compile_ms",
            "speedup_eager",
            "speedup_best",
            "speedup_compile",
            "gflops",
        )
        return {name: getattr(self, "kernel_pass" if name == "pass" else name) for name in names}


def measure(work: Work, device: torch.device, quick: bool = False) -> Row:
    """Compares the sides' results, then times them.

    Raises:
        Disagreement: they differ by more than AGREEMENT.
    """
    calls = dict(_calls(work, device))
    ms = _times(list(calls.values()), device, quick)
    times = dict(zip(calls, ms, strict=True))
    flops = _flops(work, device)
    return Row(
        suite=work.suite,
        case=work.case,
        kernel_pass=work.name,
        dtype="float32",
        layout=work.layout,
        ours_ms=times["ours"],
        eager_ms=times["eager"],
        channels_last_ms=times.get("channels_last", times["eager"]),
        compile_ms=times.get("compile"),
        gflops=flops / times["ours"] / 1e6 if flops else None,
    )


def _calls(work: Work, device: torch.device) -> Iterator[tuple[str, Call]]:
    torch._dynamo.reset()
    ours: list[Tensor] | None = None
    for side in work.sides:
        if side == "channels_last" and work.channels_last:
            continue  # is eager
        try:
            with _graphs_called_again():
                call = work.make(side, device)
                # A step goes on from the one before it: the second loss tells of its gradients.
                results = [*call(), *(call() if work.name == "step" else ())]
        except (torch._dynamo.exc.BackendCompilerFailed, ImportError) as error:
            warnings.warn(f"torch.compile cannot run here: {error}", stacklevel=2)
            continue
        ours = ours or results
        if not _agree(results, ours):
            raise Disagreement(f"{work.case}, {work.name}: {side} is not what we compute")
        yield side, call


@contextlib.contextmanager
def _graphs_called_again() -> Iterator[None]:
    """A compiled backward pass may run often: without this it frees what it saved."""
    with torch._functorch.config.patch(donated_buffer=False):
        yield


def _agree(results: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    def near(a: Tensor, b: Tensor) -> bool:
        return bool(torch.linalg.vector_norm(a - b) <= AGREEMENT * torch.linalg.vector_norm(b))

    return all(near(*pair) for pair in zip(results, others, strict=True))


def _times(calls: Sequence[Call], device: torch.device, quick: bool) -> list[float]:
    """The median milliseconds of each call; they take turns, from another one on each round."""
    seconds = sum(_seconds(call, device) for call in calls)
    rounds = min(max(int(SECONDS / seconds), FEWEST), MOST)
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(QUICK_ROUNDS if quick else rounds):
        for place in range(len(calls)):
            side = (turn + place) % len(calls)
            times[side].append(_seconds(calls[side], device))
    return [1e3 * statistics.median(each) for each in times]


def _seconds(call: Call, device: torch.device) -> float:
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _flops(work: Work, device: torch.device) -> int:
    call = work.make("eager", device)
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def machine(device: torch.device) -> dict[str, Any]:
    """What the times depend on beside the code; `peak_gflops` is what a large product of matrices
    reaches in torch.
    """
    info = cnnkernels.info()
    name = torch.cuda.get_device_name() if device.type == "cuda" else cpu_name()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": name,
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)),
        "cpu": next(text for text in info["devices"] if text.startswith("cpu")),
        **info["versions"],
        "peak_gflops": _peak(device),
    }


def _peak(device: torch.device) -> float:
    size = 1024
    a, b = torch.randn(2, size, size, device=device).unbind()
    torch.mm(a, b)
    best = min(_seconds(lambda: (torch.mm(a, b),), device) for _ in range(30))
    return 2 * size**3 / best / 1e9
