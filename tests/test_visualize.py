"""Pictures of the first layer."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cnnkernels.models import build_model
from cnnkernels.visualize import first_layer, save_feature_maps


def test_the_maps_are_the_models_own():
    model, image = build_model("a"), torch.rand(1, 28, 28)
    maps = first_layer(model, image)
    assert list(maps) == ["convolution", "ReLU", "max pooling"]
    with torch.no_grad():
        convolution = F.conv2d(image[None], model[0].weight, model[0].bias, padding=2)
        expected = [convolution, convolution.relu(), F.max_pool2d(convolution.relu(), 2)]
    for found, reference in zip(maps.values(), expected, strict=True):
        torch.testing.assert_close(found, reference[0])


def test_a_picture_is_drawn(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib draws the pictures")
    path = tmp_path / "folder" / "maps.png"
    save_feature_maps(build_model("vgg11-32"), torch.rand(3, 32, 32), path, "noise")
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG") and len(content) > 10_000


def test_a_model_without_convolution():
    with pytest.raises(ValueError, match="Linear has no Conv2d"):
        first_layer(nn.Linear(2, 2), torch.rand(1, 2, 2))
