"""explain(model, input): a line for each convolution and pool, and who runs it."""

import pytest
import torch
import torch.nn.functional as F
from small import conv, images, norm
from torch import nn

import cnnkernels
from cnnkernels import cli, convert, explain
from cnnkernels.explanation import Step


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(conv(), norm(), nn.ReLU())
        self.body = conv()
        self.odd = nn.LPPool2d(2, 2)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.body(self.stem(x))), 2)
        return F.adaptive_avg_pool2d(self.odd(x), 1)


def algorithm(op, *args, **kwargs):
    candidates = cnnkernels.algorithms(op, *args, **kwargs)
    passes = {"fprop", "max_forward", "avg_forward"}
    return next(c.algorithm for c in candidates if passes & {*c.runs})


def test_a_converted_model():
    model = convert(Net().eval())
    x = images()

    steps = explain(model, x).steps

    weight = conv().weight
    first = algorithm("conv2d_relu", x, weight, padding=1)
    second = algorithm("conv2d_relu_max_pool2d", x, weight, padding=1, pool_kernel_size=2)
    assert steps[:2] == [
        Step("stem.0", "conv2d + norm + relu", first, "with stem.1, stem.2"),
        Step("body", "conv2d + relu + max_pool2d", second, "with a function, a function"),
    ]
    assert steps[2] == Step("odd", "avg_pool2d", "torch", "no kernels for this type")
    assert steps[3].layer == "" and steps[3].op == "adaptive_avg_pool2d"
    assert steps[3].algorithm != "torch"


def test_what_is_not_fused_stands_alone():
    model = convert(Net())
    model.body.register_forward_hook(lambda *_: None)

    assert [s.op for s in explain(model, images()).steps[:3]] == ["conv2d", "conv2d", "max_pool2d"]


def test_a_model_that_was_not_converted():
    steps = explain(nn.Sequential(conv(), nn.ReLU()), images()).steps

    assert steps == [Step("0", "convolution", "torch", "convert() was not called")]


def test_a_function_whose_caller_cannot_be_traced():
    class Choosing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = conv()

        def forward(self, x):
            return F.max_pool2d(self.layer(x), 2) if x.sum() < 1e9 else x

    step = explain(convert(Choosing()), images()).steps[1]

    assert step.algorithm == "torch" and "control flow" in step.note


def test_it_prints_as_a_table():
    lines = str(explain(convert(Net().eval()), images())).splitlines()

    assert lines[0].split() == ["layer", "op", "algorithm", "note"]
    assert lines[2].split()[:6] == ["stem.0", "conv2d", "+", "norm", "+", "relu"]
    assert lines[5].startswith("  (root)")


def test_the_emulators_kernels_and_hooks_left_behind():
    model = convert(nn.Sequential(conv(), nn.ReLU()))
    with cnnkernels.emulate_cuda():
        (step,) = explain(model, images()).steps
        assert step.algorithm == algorithm("conv2d_relu", images(), model[0].weight, padding=1)

    assert not nn.modules.module._has_any_global_hook()
    with pytest.raises(RuntimeError):
        explain(model, torch.ones(1, 3, 6, 6))
    assert not nn.modules.module._has_any_global_hook()


def test_the_command(capsys):
    assert cli.main(["explain", "--model", "a", "--batch-size", "2"]) == 0
    assert "conv2d + relu + max_pool2d" in capsys.readouterr().out
