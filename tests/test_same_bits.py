"""The same inputs give the same bits, in whatever order blocks and warps run."""

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from accuracy import assert_same_bits
from ptx.gpu import DTYPES, PROBLEMS, Gpu
from ptx.passes import CHANNELS_LAST, NCHW, Pass, random_conv2d, random_conv2d_pool, random_pools
from ptx.passes import run as run_by_all
from torch import Tensor

import cnnkernels.functional as ours

# Sizes that are no multiple of any tile, and for each kernel enough of them for several blocks.
CASES: dict[str, Callable[..., Iterator[Pass]]] = {
    "conv 5x5": partial(random_conv2d, shape=(2, 1, 29, 37), filters=(9, 5, 5), padding=2),
    "conv strided": partial(
        random_conv2d, shape=(2, 3, 35, 67), filters=(9, 3, 3), stride=2, padding=1
    ),
    "conv any rows": partial(random_conv2d, shape=(2, 4, 19, 35), filters=(7, 2, 4), padding=1),
    "conv deep": partial(random_conv2d, shape=(2, 19, 13, 11), filters=(11, 3, 3), padding=1),
    "conv few outputs": partial(random_conv2d, shape=(3, 33, 5, 4), filters=(17, 2, 3)),
    "conv groups": partial(
        random_conv2d, shape=(2, 12, 17, 13), filters=(8, 3, 3), groups=4, dilation=2
    ),
    "conv depthwise": partial(
        random_conv2d, shape=(3, 19, 17, 13), filters=(19, 5, 4), groups=19, stride=2, padding=1
    ),
    "fused max": partial(
        random_conv2d_pool,
        kind="max",
        shape=(2, 2, 25, 27),
        filters=(5, 3, 3),
        conv=dict(padding=1),
        pool=dict(kernel_size=3, stride=2),
    ),
    "fused avg": partial(
        random_conv2d_pool,
        kind="avg",
        shape=(2, 1, 28, 26),
        filters=(5, 5, 5),
        conv=dict(padding=2),
        pool=dict(kernel_size=2),
    ),
    "pools": partial(random_pools, shape=(3, 19, 23, 29), kernel_size=3, stride=2, padding=1),
    "pools by vectors": partial(random_pools, shape=(3, 16, 22, 24), kernel_size=2),
    "pools by vectors, overlapping": partial(
        random_pools, shape=(3, 24, 13, 11), kernel_size=3, stride=2
    ),
    "adaptive": partial(random_pools, shape=(3, 19, 23, 29), output_size=(7, 5)),
    "adaptive by vectors": partial(random_pools, shape=(3, 16, 24, 20), output_size=(7, 6)),
    "adaptive by blocks": partial(random_pools, shape=(3, 19, 23, 29), output_size=1),
}
ORDERS = [
    dict(BLOCKS="order", SCHED="fwd"),
    dict(BLOCKS="order", SCHED="fwd"),
    dict(BLOCKS="shuffle", SCHED="rev"),
    dict(BLOCKS="shuffle", SCHED="random:1"),
]


def bits(tensors: list[Tensor]) -> list[bytes]:
    return [tensor.flatten().view(torch.uint8).numpy().tobytes() for tensor in tensors]


def results_of(gpu: Gpu, which: Pass, order: dict[str, str]) -> dict[str, list[bytes]]:
    with gpu.options(CHECKS="none", **order):  # test_ptx.py checks accesses
        return {algorithm: bits(results) for algorithm, results in run_by_all(gpu, which)}


@pytest.mark.parametrize("layout", [NCHW, CHANNELS_LAST], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_compiled_kernels_in_any_order(gpu, case, dtype, layout):
    for which in CASES[case](gpu, dtype=dtype, layout=layout):
        first, *others = (results_of(gpu, which, order) for order in ORDERS)
        assert first
        for other in others:
            assert other == first, which.function


def test_each_algorithm_is_among_them(gpu):
    dtypes = torch.float32, torch.float16
    passes = [p for case in CASES.values() for dtype in dtypes for p in case(gpu, dtype=dtype)]
    ran = {(which.op, algorithm) for which in passes for algorithm, _ in run_by_all(gpu, which)}
    assert ran == {(op, algorithm) for op in PROBLEMS for algorithm in gpu.algorithms(op)}


def test_blocks_are_shuffled(gpu):
    come = gpu.put(torch.zeros(1, dtype=torch.int32), "come")
    places = gpu.empty(torch.empty(100, dtype=torch.int32), "places")
    with gpu.options(BLOCKS="shuffle"):
        gpu.call("line_up", 100, come, places)
    order = places.tolist()
    assert sorted(order) == [*range(100)]
    # A host thread each, blocks in order would come nearly so.
    assert sum(abs(place - block) for block, place in enumerate(order)) > 1000


# Forward and backward on the CPU, where more threads take the blocks of a grid, or the parts of a
# native kernel's work, in another order.
X, W = torch.randn(5, 3, 29, 31), torch.randn(7, 3, 3, 3)
CALLS = {
    "conv": lambda x, w: ours.conv2d(x, w, padding=1),
    "fused max": lambda x, w: ours.conv2d_relu_max_pool2d(x, w, pool_kernel_size=3, pool_stride=2),
    "fused avg": lambda x, w: ours.conv2d_relu_avg_pool2d(x, w, pool_kernel_size=2),
    "max": lambda x, w: ours.max_pool2d(x, 3, 2),
    "avg": lambda x, w: ours.avg_pool2d(x, 3, 2),
    "adaptive max": lambda x, w: ours.adaptive_max_pool2d(x, (7, 5)),
    "adaptive avg": lambda x, w: ours.adaptive_avg_pool2d(x, (7, 5)),
    "global avg": lambda x, w: ours.adaptive_avg_pool2d(x, 1),
}


def forward_and_backward(function: Callable, tensors: list[Tensor]) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    output = function(*leaves)
    generator = torch.Generator().manual_seed(1)
    grad_output = torch.randn(output.shape, generator=generator).to(output)
    grads = torch.autograd.grad(output, leaves, grad_output, allow_unused=True)
    return [output.detach(), *(grad for grad in grads if grad is not None)]


@pytest.mark.parametrize("call", CALLS)
def test_ops_by_any_number_of_threads(backend, call):
    tensors = [tensor.to(backend.device) for tensor in (X, W)]
    assert_same_bits(lambda: forward_and_backward(CALLS[call], tensors))
