"""The reference networks: plain torch.nn, and what convert makes of them."""

from contextlib import nullcontext

import pytest
import torch
from accuracy import assert_accurate
from torch import nn

import cnnkernels
from cnnkernels import compare
from cnnkernels.models import MODELS, build_model, model_names

INPUTS = {name: (4, *MODELS[name].input_shape) for name in ("a", "b", "c", "convnet")}
INPUTS |= {name: (1, *MODELS[name].input_shape) for name in ("vgg11", "vgg16")}
INPUTS |= {name: (2, *MODELS[name].input_shape) for name in ("vgg11-32", "vgg16-32")}
MNIST = ("a", "b", "c", "convnet")

# By the textbook's formula, K * C * R * S + K a layer; VGG's by torchvision.
CONVOLUTIONS = 1 * 16 * 25 + 16 + 16 * 32 * 25 + 32
PARAMETERS = {
    "a": CONVOLUTIONS + 1568 * 10 + 10,
    "b": CONVOLUTIONS + 1568 * 10 + 10,
    "c": CONVOLUTIONS + 512 * 10 + 10,
    "convnet": CONVOLUTIONS + 12800 * 10 + 10,
    "vgg11": 132_863_336,
    "vgg16": 138_357_544,
    "vgg11-32": 132_863_336 - 123_642_856 + 512 * 10 + 10,
    "vgg16-32": 138_357_544 - 123_642_856 + 512 * 10 + 10,
}


def test_every_model_is_tested():
    assert set(model_names()) == set(INPUTS) == set(PARAMETERS)


def test_unknown_model_is_an_error_that_names_the_known_ones():
    with pytest.raises(ValueError, match="'z': not one of a, b, c, convnet"):
        build_model("z")


@pytest.mark.parametrize("name", INPUTS)
def test_is_plain_torch_of_the_known_size(name):
    model = build_model(name).eval()

    assert {type(m).__module__.split(".")[0] for m in model.modules() if m is not model} == {
        "torch"
    }
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    outputs = (INPUTS[name][0], MODELS[name].classes)
    with torch.no_grad():
        assert model(torch.randn(INPUTS[name])).shape == outputs


def test_vgg_has_torchvisions_state_dict():
    names = set(build_model("vgg16").state_dict())
    convolutions = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    expected = {f"features.{i}.{part}" for i in convolutions for part in ("weight", "bias")}
    expected |= {f"classifier.{i}.{part}" for i in (0, 3, 6) for part in ("weight", "bias")}
    assert names == expected


def test_builds_a_new_model_each_time():
    first, second = build_model("a"), build_model("a")

    assert not set(map(id, first.modules())) & set(map(id, second.modules()))


@pytest.mark.parametrize("name", INPUTS)
def test_converts_wholly(name):
    model = cnnkernels.convert(build_model(name), strict=True)

    assert cnnkernels.unconverted(model) == []


def test_model_a_fuses():
    fused = cnnkernels.nn.ConvReLUPool2d, nn.Identity, nn.Identity

    model = cnnkernels.convert(build_model("a"))

    assert [type(m) for m in model] == [*fused, *fused, nn.Flatten, nn.Linear]


@pytest.mark.parametrize("name", MNIST)
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "place"), [("vgg16", "native"), ("vgg16-32", "native"), ("vgg16-32", "emulated")]
)
def test_vgg_logits_and_gradients_follow_the_accuracy_rule(name, place):
    model = build_model(name)
    images = torch.rand(1, *MODELS[name].input_shape)
    with cnnkernels.emulate_cuda() if place == "emulated" else nullcontext():
        found = compare.parity(model, [(images, torch.zeros(1, dtype=torch.int64))])
    assert len(found.rows) == len(list(model.parameters())) + 2
    assert found.holds, [row for row in found.rows if not row.holds]
    assert found.left_out < 1e-3
