"""The reference networks: plain torch.nn, and what convert makes of them."""

import pytest
import torch
from accuracy import assert_accurate
from torch import nn

import cnnkernels
from cnnkernels.models import build_model, model_names

INPUTS = {"a": (4, 1, 28, 28)}
PARAMETERS = {"a": 1 * 16 * 25 + 16 + 16 * 32 * 25 + 32 + 1568 * 10 + 10}


def test_every_model_is_tested():
    assert model_names() == list(INPUTS) == list(PARAMETERS)


def test_unknown_model_is_an_error_that_names_the_known_ones():
    with pytest.raises(ValueError, match="'b': not one of a"):
        build_model("b")


@pytest.mark.parametrize("name", INPUTS)
def test_is_plain_torch_with_ten_outputs(name):
    model = build_model(name)

    assert {type(m).__module__.split(".")[0] for m in model.modules()} == {"torch"}
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert model(torch.randn(INPUTS[name])).shape == (INPUTS[name][0], 10)


def test_builds_a_new_model_each_time():
    first, second = build_model("a"), build_model("a")

    assert not set(map(id, first.modules())) & set(map(id, second.modules()))


@pytest.mark.parametrize("name", INPUTS)
def test_converts_wholly(name):
    model = cnnkernels.convert(build_model(name), strict=True)

    assert cnnkernels.unconverted(model) == []


def test_model_a_fuses():
    fused = cnnkernels.nn.ConvReLU2d, nn.Identity, cnnkernels.nn.MaxPool2d

    model = cnnkernels.convert(build_model("a"))

    assert [type(m) for m in model] == [*fused, *fused, nn.Flatten, nn.Linear]


@pytest.mark.parametrize("name", INPUTS)
def test_converted_model_gives_torchs_outputs_and_gradients(backend, name):
    model = build_model(name).to(backend.device)
    images = torch.randn(INPUTS[name]).to(backend.device)

    def run(model, images):
        output = model(images)
        return [output.detach(), *torch.autograd.grad(output.square().sum(), model.parameters())]

    theirs = run(model, images)
    reference = run(model.double(), images.double())
    model.float()
    mine = run(cnnkernels.convert(model), images)

    for a, b, exact in zip(mine, theirs, reference, strict=True):
        assert_accurate(a, b, exact, name)
