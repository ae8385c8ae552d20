"""What a call costs beside its arithmetic: tiny CPU tensors on one thread."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from cnnkernels import functional

OPS = {
    "conv2d": lambda module, x, w, b: module.conv2d(x, w, b),
    "max_pool2d": lambda module, x, w, b: module.max_pool2d(x, 2),
    "avg_pool2d": lambda module, x, w, b: module.avg_pool2d(x, 2),
}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def call(op: str, module, grad: bool) -> Callable[[], torch.Tensor]:
    """A call without arguments; with `grad` also the backward pass."""
    torch.manual_seed(0)
    tensors = [
        torch.randn(*size, requires_grad=grad) for size in ((1, 1, 4, 4), (1, 1, 3, 3), (1,))
    ]
    if not grad:
        return lambda: OPS[op](module, *tensors)
    grad_output = torch.ones(1, 1, 2, 2)

    def step():
        output = OPS[op](module, *tensors)
        output.backward(grad_output)
        return output

    return step


@pytest.mark.parametrize("side", ["ours", "torch"])
@pytest.mark.parametrize("grad", [False, True], ids=["inference", "forward and backward"])
@pytest.mark.parametrize("op", OPS)
def test_call_cost(benchmark, op, grad, side):
    ours, torchs = call(op, functional, grad), call(op, F, grad)
    torch.testing.assert_close(ours(), torchs())
    benchmark.group = f"call cost: {op}, {'forward and backward' if grad else 'inference'}"
    benchmark(ours if side == "ours" else torchs)
