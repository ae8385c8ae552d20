"""The table of layers, held to the textbook's formulas and to torch's own counter of FLOP."""

from pathlib import Path

import pytest
import torch
from test_models import PARAMETERS
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cnnkernels import cli
from cnnkernels.models import MODELS, build_model
from cnnkernels.summary import layers, summary

GUIDE = Path(__file__).parents[1] / "docs" / "models.md"


def output_size(w: int, f: int, p: int, s: int) -> int:
    return (w - f + 2 * p) // s + 1


@pytest.mark.parametrize("name", ["a", "c", "cifar", "alexnet", "vgg16", "resnet50"])
def test_layers_follow_the_textbook(name: str) -> None:
    with torch.device("meta"):
        modules = dict(build_model(name).named_modules())
    found = layers(name, MODELS[name].input_shape)
    assert sum(layer.parameters for layer in found) == PARAMETERS[name]
    assert found[-1].output == (MODELS[name].classes,)
    branches = any("downsample" in title for title in modules)
    depth, width, _ = MODELS[name].input_shape
    for layer in found:
        module = modules[layer.name]
        if isinstance(module, nn.Conv2d):
            filters, (f, _), (p, _), (s, _) = (
                *(module.out_channels, module.kernel_size),
                *(module.padding, module.stride),
            )
            depth = module.in_channels if branches else depth
            bias = filters if module.bias is not None else 0
            assert layer.parameters == filters * f * f * depth + bias
            if not branches:
                width, depth = output_size(width, f, p, s), filters
                assert layer.output == (depth, width, width)
                assert layer.flop == 2 * depth * width * width * f * f * module.in_channels
        elif isinstance(module, (nn.MaxPool2d, nn.AvgPool2d)) and not branches:
            width = output_size(width, module.kernel_size, module.padding, module.stride)
            assert layer.output == (depth, width, width)


@pytest.mark.parametrize("name", ["a", "vgg11", "resnet18"])
def test_flop_are_those_that_torch_counts(name: str) -> None:
    with torch.device("meta"):
        model, image = build_model(name).eval(), torch.empty(1, *MODELS[name].input_shape)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(image)
    products = ("Conv2d", "Linear")
    found = [layer for layer in layers(name, image.shape[1:]) if layer.type in products]
    unbiased = {
        f"{title}": module.bias is None
        for title, module in model.named_modules()
        if type(module).__name__ in products
    }
    # Torch counts a sum for the first product, too, and none for the bias.
    mine = sum(layer.flop + unbiased[layer.name] * _outputs(layer.output) for layer in found)
    assert mine == counter.get_total_flops()


def _outputs(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def test_command(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["summary", "--model", "vgg16", "--input", "3x224x224"]) == 0
    text = capsys.readouterr().out
    assert text == summary("vgg16") + "\n"
    first = next(line for line in text.splitlines() if "features.0 " in line)
    flop = 2 * 64 * 224 * 224 * 27
    assert first.split() == ["features.0", "Conv2d", "64x224x224", "1,792", f"{flop:,}"]
    assert text.splitlines()[-1].split()[1] == "138,357,544"


def test_the_table_of_the_guide() -> None:
    assert f"```\n{summary('a')}\n```" in GUIDE.read_text()


@pytest.mark.parametrize("shape", ["3x224", "axbxc", "3x0x3", ""])
def test_a_wrong_shape(shape: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        cli.main(["summary", "--input", shape])
    assert "is not CxHxW" in capsys.readouterr().err


def test_images_that_the_model_does_not_take(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["summary", "--model", "a", "--input", "3x28x28"]) == 2
    assert capsys.readouterr().err.startswith("error: model a: not for images of 3x28x28: ")
