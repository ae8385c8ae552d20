"""What the compiled kernels do, as ptxsim counts it: instructions, sectors, wavefronts, barriers.

    PYTHONPATH=tests python -m ptx.counters

prints a table for a fixed list of problems: each pass by every algorithm that takes the problem.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cnnkernels.profiling import GPU, GPUS
from ptx.build import build, find_tools
from ptx.gpu import Conv2dPoolProblem, Conv2dProblem, Gpu
from ptx.passes import Pass, random_conv2d, random_conv2d_pool, random_pools, run

SECTOR_BYTES = 32


@dataclass(frozen=True)
class Launch:
    """A kernel at work on a pass, and its counters by ptxsim's names."""

    which: Pass
    algorithm: str
    counters: dict[str, Any]
    is_main: bool  # of the pass: others transform filters for it, or add up its sums

    @property
    def kernel(self) -> str:
        """The function's name, without its namespaces and template arguments."""
        name, rest = "", self.counters["kernel"].removeprefix("_ZN")
        while match := re.match(r"\d+", rest):  # each name stands behind its length
            begin, length = match.end(), int(match[0])
            name, rest = rest[begin : begin + length], rest[begin + length :]
        return name

    def warp_instructions(self, kind: str) -> int:
        return self.counters["classes"].get(kind, [0, 0])[0]

    @property
    def instructions_per_fma(self) -> float | None:
        """The same per mma where there is one."""
        arithmetic = self.warp_instructions("mma") or self.warp_instructions("fma")
        return self.counters["warp_instructions"] / arithmetic if arithmetic else None

    @property
    def multiply_adds(self) -> float | None:
        """A convolution's: those of threads over the problem's. Above 1, some are in vain."""
        _, fma = self.counters["classes"].get("fma", [0, 0])
        done, needed = fma + self.counters["mma_flop"] // 2, products(self.which)
        return done / needed if done and needed else None

    def per_request(self, what: str, unit: str) -> float | None:
        """`unit` ("sectors", "wavefronts") a warp's request of `what` ("global_load") takes."""
        requests = self.counters[f"{what}_requests"]
        return self.counters[f"{what}_{unit}"] / requests if requests else None

    @property
    def traffic(self) -> float:
        """The bytes of all sectors over those of the pass's tensors."""
        sectors = sum(self.counters[f"global_{way}_sectors"] for way in ("load", "store"))
        return sectors * SECTOR_BYTES / least_bytes(self.which)

    def roofline_share(self, gpu: GPU) -> float | None:
        """A prediction: the least time that the pass could take over what the kernel would.

        The kernel is taken to be bound by the slowest of what the GPU does side by side: issue of
        instructions, arithmetic, the L1 cache and shared memory (a wavefront, or 4 sectors, a cycle
        of an SM, a quarter of its issue rate), and memory, from which each byte comes once. Latency
        and an SM without work are not in it.
        """
        if not self.is_main:
            return None
        fma_flop, mma_flop = 64 * self.warp_instructions("fma"), self.counters["mma_flop"]
        sectors = sum(self.counters[f"global_{way}_sectors"] for way in ("load", "store"))
        wavefronts = sum(self.counters[f"shared_{way}_wavefronts"] for way in ("load", "store"))
        memory = least_bytes(self.which) / gpu.bandwidth
        takes = max(
            self.counters["warp_instructions"] / gpu.issue,
            fma_flop / gpu.float32 + mma_flop / gpu.tensor,
            (sectors / 4 + wavefronts) / (gpu.issue / 4),
            memory,
        )
        peak = gpu.tensor if mma_flop else gpu.float32
        flop = 2 * products(self.which) if fma_flop or mma_flop else 0
        return max(flop / peak, memory) / takes

    @property
    def barriers(self) -> float | None:
        """Of each block."""
        return self.counters["barriers"] / self.counters["blocks"] or None


def launches(gpu: Gpu, passes: Iterator[Pass]) -> Iterator[Launch]:
    """Runs the passes by every algorithm, unchecked."""
    for which in passes:
        algorithms = run(gpu, which)
        while True:
            with gpu.counting() as counted, gpu.options(CHECKS="none"):
                algorithm, _ = next(algorithms, (None, None))
            if algorithm is None:
                break
            largest = max(counters["warp_instructions"] for counters in counted)
            for counters in counted:
                is_main = counters["warp_instructions"] == largest
                yield Launch(which, algorithm, counters, is_main)


def least_bytes(which: Pass) -> int:
    """The size of all tensors of the pass."""
    tensors = (t for t in (*which.arguments, *which.results) if isinstance(t, Tensor))
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors)


def products(which: Pass) -> int:
    """The multiply-adds of a convolution's pixels, not of padding; 0 for pools."""
    p = which.problem.conv if isinstance(which.problem, Conv2dPoolProblem) else which.problem
    if not isinstance(p, Conv2dProblem):
        return 0

    def pixels(size, count, taps, stride, pad, dilation):
        places = (i * stride - pad + t * dilation for i in range(count) for t in range(taps))
        return sum(0 <= place < size for place in places)

    rows = pixels(p.H, p.P, p.R, p.stride_h, p.pad_top, p.dilation_h)
    columns = pixels(p.W, p.Q, p.S, p.stride_w, p.pad_left, p.dilation_w)
    return p.N * p.K * p.C // p.groups * rows * columns


# ---------------------------------------------------------------- problems

# Layers of the benchmarks, of fewer images or cut to fewer pixels: what is counted is the same for
# each tile. 2x2 pools of Model A, and of VGG-16 with its 64 channels.
MODEL_A = (2, 1, 28, 28), (16, 5, 5)
CONV3_2 = dict(shape=(1, 256, 16, 16), filters=(256, 3, 3), padding=1)
DEPTHWISE = dict(shape=(1, 32, 28, 28), filters=(32, 3, 3), padding=1, groups=32)
CASES: dict[str, Callable[[Gpu], Iterator[Pass]]] = {
    "Model A conv1, 28x28": partial(random_conv2d, shape=MODEL_A[0], filters=MODEL_A[1], padding=2),
    "Model A conv2, 14x14": partial(
        random_conv2d, shape=(2, 16, 14, 14), filters=(32, 5, 5), padding=2
    ),
    "VGG-16 conv1_1, 64x64 of its 224x224": partial(
        random_conv2d, shape=(1, 3, 64, 64), filters=(64, 3, 3), padding=1
    ),
    "VGG-16 conv3_2, 16x16 of its 56x56": partial(random_conv2d, **CONV3_2),
    "the same, channels_last": partial(random_conv2d, **CONV3_2, layout=torch.channels_last),
    "the same, channels_last, float16": partial(
        random_conv2d, **CONV3_2, layout=torch.channels_last, dtype=torch.float16
    ),
    "depthwise 3x3, 32x28x28": partial(random_conv2d, **DEPTHWISE),
    "depthwise 3x3, channels_last": partial(random_conv2d, **DEPTHWISE, layout=torch.channels_last),
    "2x2 pool, 64x32x32 NCHW": partial(
        random_pools, layout=torch.contiguous_format, shape=(1, 64, 32, 32), kernel_size=2
    ),
    "2x2 pool, 64x32x32 channels_last": partial(
        random_pools, layout=torch.channels_last, shape=(1, 64, 32, 32), kernel_size=2
    ),
    "adaptive pool, 512x7x7 to 1x1": partial(
        random_pools, layout=torch.contiguous_format, shape=(1, 512, 7, 7), output_size=1
    ),
    "Model A conv1 + ReLU + 2x2 max pool": partial(
        random_conv2d_pool,
        kind="max",
        shape=MODEL_A[0],
        filters=MODEL_A[1],
        conv=dict(padding=2),
        pool=dict(kernel_size=2),
    ),
    "VGG-16 conv1_2 + ReLU + 2x2 max pool, 16x16 of its 224x224": partial(
        random_conv2d_pool,
        kind="max",
        shape=(1, 64, 16, 16),
        filters=(64, 3, 3),
        conv=dict(padding=1),
        pool=dict(kernel_size=2),
    ),
}


# ---------------------------------------------------------------- the table

COLUMNS: dict[str, Callable[[Launch], float | None]] = {
    "instr/FMA": lambda launch: launch.instructions_per_fma,
    "FMA": lambda launch: launch.multiply_adds,
    "load sect/req": lambda launch: launch.per_request("global_load", "sectors"),
    "store sect/req": lambda launch: launch.per_request("global_store", "sectors"),
    "traffic": lambda launch: launch.traffic,
    "shared load wf/req": lambda launch: launch.per_request("shared_load", "wavefronts"),
    "shared store wf/req": lambda launch: launch.per_request("shared_store", "wavefronts"),
    "barriers": lambda launch: launch.barriers,
    "A100 share": lambda launch: launch.roofline_share(GPUS["A100"]),
    "H100 share": lambda launch: launch.roofline_share(GPUS["H100"]),
}
LEGEND = """
instr/FMA: warp instructions of PTX a multiply-add, or an mma; FMA: multiply-adds of threads over
those that the problem has; sect/req: 32-byte sectors a warp's request touches; traffic: bytes of
all sectors, caches not counted, over the size of the pass's tensors; wf/req: passes over the banks
a request takes, of 16 bytes a thread at least 4; barriers: of each block; A100, H100 share: of the
roofline, as these counts predict it.
"""


def lines(launches: Iterator[Launch]) -> Iterator[str]:
    for launch in launches:
        values = (value(launch) for value in COLUMNS.values())
        cells = (
            f"{'-' if value is None else format(value, '.4g'):>{len(heading)}}"
            for heading, value in zip(COLUMNS, values, strict=True)
        )
        yield "  ".join([f"{launch.kernel:40}", f"{launch.algorithm:14}", *cells])


def main() -> None:
    """Prints the table, or why there is none."""
    try:
        tools = find_tools()
    except LookupError as reason:
        print(f"skipped: {reason}")
        return
    gpu = Gpu(build(*tools) / "launchers.so")
    print("  ".join([f"{'kernel':40}", f"{'algorithm':14}", *COLUMNS]))
    for name, case in CASES.items():
        print(f"\n{name}")
        for line in lines(launches(gpu, case(gpu))):
            print(line, flush=True)
        gpu.free()
    print(LEGEND)


if __name__ == "__main__":
    main()
