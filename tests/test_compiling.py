"""torch.compile(model, backend="cnnkernels"): what becomes ours in the graph, and its results."""

import copy
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from small import conv, images, norm, run
from torch import nn

from cnnkernels import compiling


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = conv(), conv(), conv()
        self.norm = norm()

    def forward(self, x):
        x = F.max_pool2d(torch.relu(self.norm(self.first(x))), 2)
        y = F.relu(self.second(x))
        return F.adaptive_avg_pool2d(F.silu(self.third(y)) + y, 1)


def calls(model, input):
    """Of our functions, in the graph that the backend makes."""
    found = []

    def compiler(graph, inputs):
        compiling.replace(graph)
        nodes = [node for node in graph.graph.nodes if node.op == "call_function"]
        found.extend(n.target.__name__ for n in nodes if "cnnkernels" in n.target.__module__)
        return graph

    torch._dynamo.reset()
    torch.compile(model, backend=compiler, fullgraph=True)(input)
    return found


FOLDED = ["folded", "conv2d_relu_max_pool2d"]
REST = ["conv2d_relu", "conv2d", "adaptive_avg_pool2d"]


def test_rows_become_one_call():
    input = images().repeat(1, 1, 2, 2)
    assert calls(Net().eval(), input) == [*FOLDED, *REST]
    assert calls(Net(), input) == ["conv2d", "max_pool2d", *REST]


def test_dtypes_without_kernels_stay_torchs():
    assert calls(lambda x: F.max_pool2d(x, 2), torch.ones(1, 4, 4, dtype=torch.int32)) == []


def test_values_used_elsewhere_stay():
    layer = conv()
    assert calls(lambda x: F.relu(y := layer(x)) + y, images()) == ["conv2d"]


def test_more_weights_than_outputs_are_not_folded():
    model = nn.Sequential(nn.Conv2d(64, 8, 3), norm(8), nn.ReLU()).eval()
    assert calls(model, torch.randn(1, 64, 6, 6)) == ["conv2d"]


def test_calls_by_keywords_and_statistics_of_the_batch():
    layer, bn = conv(), nn.BatchNorm2d(2, track_running_stats=False).eval()

    def function(x):
        return F.relu(input=bn(F.conv2d(input=x, weight=layer.weight, padding=1)))

    assert calls(function, images()) == ["conv2d"]


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_results_are_torchs(training):
    model = Net().double().train(training)
    input = images().double().repeat(1, 1, 2, 2)
    expected = run(copy.deepcopy(model), input)
    torch._dynamo.reset()

    compiled = torch.compile(model, backend=compiling.backend, fullgraph=True)

    for mine, theirs in zip(run(compiled, input), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    assert model.norm.num_batches_tracked == training


def test_torch_knows_the_backend_and_importing_us_does_not_import_dynamo():
    code = (
        "import sys, cnnkernels\n"
        "assert 'torch._dynamo' not in sys.modules\n"
        "import torch._dynamo as dynamo\n"
        "assert 'cnnkernels' in dynamo.list_backends()\n"
        "assert dynamo.lookup_backend('cnnkernels').__module__ == 'cnnkernels.compiling'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
