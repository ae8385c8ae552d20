"""override_torch(): torch's own functions, by our kernels."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from accuracy import integers
from torch import nn

import cnnkernels


class Functional(nn.Module):
    """What convert() cannot change: functions, and a subclass of Conv2d."""

    class Scaled(nn.Conv2d):
        def forward(self, input):
            return 2 * super().forward(input)

    def __init__(self):
        super().__init__()
        self.scaled = self.Scaled(3, 4, 3, padding="same")
        self.weight = nn.Parameter(integers(6, 2, 3, 3, dtype=torch.float32))

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.scaled(x)), 2)
        x = F.conv2d(x, self.weight, stride=2, padding=1, groups=2)
        x, indices = F.max_pool2d(x, kernel_size=2, stride=1, return_indices=True)
        y, places = F.adaptive_max_pool2d(x, 1, return_indices=True)
        averages = F.avg_pool2d(x, 2) + F.adaptive_avg_pool2d(x, (1, 1))
        return averages + y + torch.max_pool2d(x, 2), indices, places


CALLS = Counter(conv2d=2, max_pool2d=3, adaptive_max_pool2d=1, avg_pool2d=1, adaptive_avg_pool2d=1)


def run(model, input):
    output, *indices = model(input)
    grads = torch.autograd.grad(output.sum(), list(model.parameters()))
    return [output.detach(), *indices, *grads]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_same_results_and_counts(layout):
    model = Functional()
    for parameter in model.parameters():
        parameter.data = integers(*parameter.shape, dtype=torch.float32, high=2)
    input = integers(2, 3, 12, 12, dtype=torch.float32, high=2).to(memory_format=layout)
    expected = run(model, input)
    with cnnkernels.override_torch() as override:
        results = run(model, input)
    assert override.calls == CALLS
    for result, reference in zip(results, expected, strict=True):
        assert torch.equal(result, reference)
    run(model, input)
    assert override.calls == CALLS  # it ended


def test_the_kernels_are_ours():
    weight = torch.randn(2, 1, 3, 3, requires_grad=True)
    with cnnkernels.override_torch():
        output = nn.functional.conv2d(torch.randn(1, 1, 5, 5), weight)
    assert "Conv2d" in type(output.grad_fn).__name__
    assert "Convolution" not in type(output.grad_fn).__name__


def test_what_has_no_kernels_stays_torchs():
    class Marked(torch.Tensor):
        pass

    ones = torch.ones(1, 1, 4, 4)
    with cnnkernels.override_torch() as override:
        assert F.max_pool2d(ones.long(), 2).dtype == torch.int64
        assert F.conv2d(ones.to(torch.complex64), ones.to(torch.complex64)).item() == 16
        assert type(F.max_pool2d(ones.as_subclass(Marked), 2)) is Marked
        assert F.relu(-ones).sum() == 0
    assert not override.calls


def test_bad_input_gets_torchs_error():
    with cnnkernels.override_torch(), pytest.raises(RuntimeError, match="Expected 3D"):
        F.conv2d(torch.ones(4, 4), torch.ones(1, 1, 2, 2))
    with cnnkernels.override_torch(), pytest.raises(TypeError):
        F.conv2d(torch.ones(1, 1, 4, 4), "weight")


def test_emulated_kernels_can_take_the_calls():
    input, weight = torch.randn(1, 2, 6, 6), torch.randn(3, 2, 3, 3)
    with cnnkernels.override_torch() as override, cnnkernels.emulate_cuda():
        result = F.conv2d(input, weight)
    assert override.calls["conv2d"] == 1
    torch.testing.assert_close(result, F.conv2d(input, weight))
