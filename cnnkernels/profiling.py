"""What the emulated CUDA kernels ask of a GPU, counted: ``with cnnkernels.profile() as p: ...``.

Counted are a warp's requests as they leave the kernel: caches are not modelled. docs/emulator.md
tells how, and what that leaves out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from cnnkernels import _C
from cnnkernels.emulation import emulate_cuda, observing

SECTOR_BYTES = 32


@dataclass(frozen=True)
class GPU:
    """Peak rates: bytes/s of its memory, FLOP/s in float32, FLOP/s of its tensor cores in float16.

    The tensor cores' rate is that of dense matrices and float32 sums; bfloat16's is the same,
    tf32's half of it. `issue` is of warp instructions/s: one a cycle by each SM's four schedulers.
    """

    bandwidth: float
    float32: float
    tensor: float
    issue: float


# From NVIDIA's data sheets of the A100 80 GB SXM, H100 SXM and T4, and, for the RTX 4090, from the
# Ada architecture's whitepaper.
GPUS = {
    "A100": GPU(2039e9, 19.5e12, 312e12, issue=4 * 108 * 1.41e9),
    "H100": GPU(3350e9, 66.9e12, 989.4e12, issue=4 * 132 * 1.98e9),
    "RTX 4090": GPU(1008e9, 82.6e12, 165.2e12, issue=4 * 128 * 2.52e9),
    "T4": GPU(320e9, 8.1e12, 65e12, issue=4 * 40 * 1.59e9),
}


@dataclass(frozen=True)
class Traffic:
    """Loads or stores of one kind.

    Attributes:
        requests: Instructions, each of a whole warp.
        bytes: What their lanes asked for.
        units: Sectors of 32 bytes in global memory; in shared memory wavefronts, the passes that
            its 32 banks of 4 bytes take.
        ideal: Wavefronts, had no bank conflicted.
    """

    requests: int
    bytes: int
    units: int
    ideal: int


@dataclass(frozen=True)
class KernelProfile:
    """The sums over all launches of a kernel.

    Attributes:
        kernel: Its name and template arguments.
        launches, blocks, threads: How often it ran.
        barriers: That blocks met at.
        fma, mma_flop: Multiply-adds and the tensor cores' FLOP that the kernel's source spells with
            device.h's functions; others are not seen.
        bytes_read, bytes_written: Different bytes of global memory, a launch at a time: what no
            kernel with these results could do without.
    """

    kernel: str
    launches: int
    blocks: int
    threads: int
    barriers: int
    fma: int
    mma_flop: int
    bytes_read: int
    bytes_written: int
    global_load: Traffic
    global_store: Traffic
    global_atomic: Traffic
    shared_load: Traffic
    shared_store: Traffic

    @property
    def flop(self) -> int:
        """Floating-point operations, two a multiply-add."""
        return 2 * self.fma + self.mma_flop

    @property
    def minimal_bytes(self) -> int:
        """Each byte that is needed read once, each that is written written once."""
        return self.bytes_read + self.bytes_written

    @property
    def sector_bytes(self) -> int:
        """What the requests to global memory move, from caches or from memory."""
        kinds = (self.global_load, self.global_store, self.global_atomic)
        return SECTOR_BYTES * sum(traffic.units for traffic in kinds)

    @property
    def intensity(self) -> float:
        """FLOP per minimal byte."""
        return self.flop / self.minimal_bytes if self.minimal_bytes else 0.0

    def bound(self, gpu: str) -> tuple[float, str]:
        """The least time of all launches on a GPU of GPUS in seconds, and what bounds it.

        The roofline (Williams, Waterman, Patterson 2009): minimal bytes at the memory's bandwidth,
        or FLOP at the peak, whichever takes longer.
        """
        peak = GPUS[gpu]
        memory = self.minimal_bytes / peak.bandwidth
        arithmetic = 2 * self.fma / peak.float32 + self.mma_flop / peak.tensor
        return max((memory, "memory"), (arithmetic, "FLOP"))


@dataclass
class Profile:
    """What was counted, by kernel, in the order of their first launches; prints as a table."""

    gpu: str
    kernels: list[KernelProfile] = field(default_factory=list)

    def __str__(self) -> str:
        rows = [_HEADINGS, *(_row(kernel, self.gpu) for kernel in self.kernels)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADINGS))]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
            for row in rows
        ]
        rule = "  ".join("-" * width for width in widths)
        return "\n".join([*lines[:1], rule, *lines[1:], "", _LEGEND.format(gpu=self.gpu)])


@contextmanager
def profile(gpu: str = "A100") -> Iterator[Profile]:
    """Run ops on CPU tensors under the emulator and count what each kernel asks of a GPU.

    Like :func:`cnnkernels.emulate_cuda`, but much slower; all launches of the process inside the
    ``with`` block are counted, and the result is complete when it ends.

    Args:
        gpu: The GPU of GPUS that the table's bounds are for.

    Example:
        >>> with cnnkernels.profile() as p:
        ...     cnnkernels.functional.max_pool2d(input, 2)
        >>> print(p)
    """
    if gpu not in GPUS:
        raise ValueError(f"no GPU {gpu!r}; there are {', '.join(GPUS)}")
    result = Profile(gpu)
    with emulate_cuda(), observing(profile=True):
        _C.clear_counters()
        yield result
        result.kernels = [_kernel_profile(counters) for counters in _C.counters()]


def _kernel_profile(counters: dict) -> KernelProfile:
    kinds = ("global_load", "global_store", "global_atomic", "shared_load", "shared_store")
    parts = ("requests", "bytes", "units", "ideal")
    traffic = {kind: Traffic(*(counters.pop(f"{kind}_{part}") for part in parts)) for kind in kinds}
    kernel = re.sub(r"cnnkernels::(\w+::)?", "", counters.pop("kernel"))
    return KernelProfile(kernel=kernel, **counters, **traffic)


_HEADINGS = (
    "kernel",
    "launches",
    "load",
    "sect/req",
    "store",
    "sect/req",
    "shared",
    "ways",
    "barriers",
    "FLOP",
    "minimal",
    "traffic",
    "FLOP/B",
    "bound",
)
_LEGEND = """\
load, store: bytes that threads ask of global memory (atomics count as stores); sect/req: 32-byte
sectors a warp's request touches; shared: bytes; ways: passes over its banks per conflict-free one;
minimal: different bytes read and written; traffic: sectors' bytes over minimal ones, caches not
counted; FLOP/B: over minimal bytes; bound: least time on {gpu} by bandwidth (m) or FLOP (f)."""


def _row(kernel: KernelProfile, gpu: str) -> tuple[str, ...]:
    load = kernel.global_load
    store = _sum(kernel.global_store, kernel.global_atomic)
    shared = _sum(kernel.shared_load, kernel.shared_store)
    seconds, what = kernel.bound(gpu)
    return (
        kernel.kernel,
        str(kernel.launches),
        _short(load.bytes),
        _ratio(load.units, load.requests),
        _short(store.bytes),
        _ratio(store.units, store.requests),
        _short(shared.bytes),
        _ratio(shared.units, shared.ideal),
        _short(kernel.barriers),
        _short(kernel.flop),
        _short(kernel.minimal_bytes),
        _ratio(kernel.sector_bytes, kernel.minimal_bytes),
        _ratio(kernel.flop, kernel.minimal_bytes),
        f"{seconds * 1e6:.3g} us {what[0].lower()}",
    )


def _sum(a: Traffic, b: Traffic) -> Traffic:
    return Traffic(a.requests + b.requests, a.bytes + b.bytes, a.units + b.units, a.ideal + b.ideal)


def _short(number: int) -> str:
    """Three digits and a prefix: 1,234,567 is 1.23M."""
    if number == 0:
        return "-"
    for power, prefix in ((9, "G"), (6, "M"), (3, "k")):
        if number >= 10**power:
            return f"{number / 10**power:.3g}{prefix}"
    return str(number)


def _ratio(numerator: float, denominator: float) -> str:
    return f"{numerator / denominator:.2f}" if denominator and numerator else "-"
