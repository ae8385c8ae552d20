"""The reference networks: plain torch.nn, and what convert makes of them."""

import importlib.util
from contextlib import nullcontext

import pytest
import torch
from accuracy import assert_accurate
from torch import nn

import cnnkernels
from cnnkernels import compare
from cnnkernels.fusion import rows
from cnnkernels.models import MODELS, build_model, model_names

MNIST = ("a", "b", "c", "convnet", "net", "mlp")
TORCHVISIONS = ("alexnet", "vgg11", "vgg13", "vgg16", "vgg19", "resnet18", "resnet50", "resnet152")

# By the textbook's formula, K * C * R * S + K a layer; of torchvision's networks, as it says.
CONVOLUTIONS = 1 * 16 * 25 + 16 + 16 * 32 * 25 + 32
VGG_CLASSIFIER = (512 * 49 * 4096 + 4096) + (4096 * 4096 + 4096) + (4096 * 1000 + 1000)
PARAMETERS = {
    "a": CONVOLUTIONS + 1568 * 10 + 10,
    "b": CONVOLUTIONS + 1568 * 10 + 10,
    "c": CONVOLUTIONS + 512 * 10 + 10,
    "convnet": CONVOLUTIONS + 12800 * 10 + 10,
    "net": (1 * 32 * 25 + 32) + (32 * 12 * 12 * 10 + 10),
    "mlp": (784 * 512 + 512) + (512 * 512 + 512) + (512 * 10 + 10),
    "cifar": (3 * 16 * 9 + 16)
    + (16 * 32 * 9 + 32)
    + (32 * 64 * 9 + 64)
    + (64 * 4 * 4 * 500 + 500)
    + (500 * 10 + 10),
    "alexnet": 61_100_840,
    "vgg11": 132_863_336,
    "vgg13": 133_047_848,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "resnet152": 60_192_808,
}
PARAMETERS |= {
    f"{name}-32": PARAMETERS[name] - VGG_CLASSIFIER + 512 * 10 + 10
    for name in ("vgg11", "vgg13", "vgg16", "vgg19")
}


def test_every_model_is_tested():
    assert set(model_names()) == set(PARAMETERS)


def test_unknown_model_is_an_error_that_names_the_known_ones():
    with pytest.raises(ValueError, match="'z': not one of a, b, c, convnet"):
        build_model("z")


@pytest.mark.parametrize("name", PARAMETERS)
def test_is_plain_torch_of_the_known_size(name):
    with torch.device("meta"):
        model = build_model(name).eval()
        images = torch.empty(2, *MODELS[name].input_shape)

    leaves = [module for module in model.modules() if not any(module.children())]
    assert {type(module).__module__.split(".")[0] for module in leaves} == {"torch"}
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert model(images).shape == (2, MODELS[name].classes)


@pytest.mark.parametrize("name", PARAMETERS)
def test_has_as_many_classes_as_asked_for(name):
    with torch.device("meta"):
        model = build_model(name, classes=7).eval()
        assert model(torch.empty(1, *MODELS[name].input_shape)).shape == (1, 7)


@pytest.fixture(scope="module")
def torchvision_models():
    """Torchvision's; its compiled ops, which no model here calls, may be for another torch."""
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    try:
        return importlib.import_module("torchvision.models")
    except RuntimeError:  # it insists on these two where its compiled part did not load
        for op in ("nms", "qnms"):
            schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{op}", schema)
        return importlib.import_module("torchvision.models")


@pytest.mark.parametrize("name", TORCHVISIONS)
def test_state_dict_is_torchvisions(name, torchvision_models):
    with torch.device("meta"):
        mine = build_model(name).state_dict()
        theirs = torchvision_models.get_model(name).state_dict()
    assert [(key, v.shape) for key, v in mine.items()] == [(k, v.shape) for k, v in theirs.items()]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alexnet", "resnet18", "resnet50"])
def test_weights_and_outputs_are_torchvisions(name, torchvision_models):
    torch.manual_seed(1)
    mine = build_model(name).eval()
    torch.manual_seed(1)
    theirs = torchvision_models.get_model(name).eval()
    for weight, expected in zip(
        mine.state_dict().values(), theirs.state_dict().values(), strict=True
    ):
        assert torch.equal(weight, expected)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(mine(images), theirs(images))


def test_builds_a_new_model_each_time():
    first, second = build_model("a"), build_model("a")

    assert not set(map(id, first.modules())) & set(map(id, second.modules()))


@pytest.mark.parametrize("name", PARAMETERS)
def test_converts_wholly(name):
    with torch.device("meta"):
        model = cnnkernels.convert(build_model(name), strict=True)

    assert cnnkernels.unconverted(model) == []


def test_model_a_fuses():
    model = cnnkernels.convert(build_model("a"))

    assert [row.names for row in rows(model)] == [("0", "1", "2"), ("3", "4", "5")]


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_every_convolution_of_a_resnet_is_in_a_row(name):
    with torch.device("meta"):
        model = cnnkernels.convert(build_model(name))

    found = [row for module in model.modules() for row in rows(module)]
    assert len(found) == sum(isinstance(module, nn.Conv2d) for module in model.modules())


@pytest.mark.parametrize("name", [*MNIST, "cifar"])
def test_converted_model_gives_torchs_outputs_and_gradients(backend, name):
    model = build_model(name).eval().to(backend.device)
    images = torch.randn(4, *MODELS[name].input_shape).to(backend.device)

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
    ("name", "place"),
    [
        ("vgg16", "native"),
        ("vgg16-32", "native"),
        ("vgg16-32", "emulated"),
        ("alexnet", "native"),
        ("resnet18", "native"),
    ],
)
def test_logits_and_gradients_follow_the_accuracy_rule(name, place):
    model = build_model(name)
    images = torch.rand(1, *MODELS[name].input_shape)
    with cnnkernels.emulate_cuda() if place == "emulated" else nullcontext():
        found = compare.parity(model, [(images, torch.zeros(1, dtype=torch.int64))])
    assert len(found.rows) == len(list(model.parameters())) + 2
    assert found.holds, [row for row in found.rows if not row.holds]
    assert found.left_out < 1e-3


# Of the decisions, few are so close that rounding may turn them: the coarser it is, the more.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "tf32", "eps", "left_out"),
    [("implicit_gemm", False, compare.EPS, 1e-3), ("tensor_core", True, 2**-10, 2e-2)],
    ids=["implicit_gemm", "tensor_core"],
)
def test_vgg_by_matrix_products_follows_the_accuracy_rule(algorithm, tf32, eps, left_out):
    """All convolutions by that algorithm, forward and backward, emulated."""
    model = build_model("vgg16-32")
    images = torch.rand(1, *MODELS["vgg16-32"].input_shape)
    with cnnkernels.emulate_cuda(tf32=tf32), cnnkernels.algorithm(algorithm):
        found = compare.parity(
            model, [(images, torch.zeros(1, dtype=torch.int64))], fuse=False, eps=eps
        )
    assert found.holds, [row for row in found.rows if not row.holds]
    assert found.left_out < left_out
