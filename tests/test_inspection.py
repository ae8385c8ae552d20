"""What moves a network, on networks of which the answer is known."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cnnkernels import inspection
from cnnkernels.inspection import FILTERS, excite, fixed_filters, occlusion, saliency


def linear(weight: torch.Tensor) -> nn.Module:
    """Logits that are sums of pixels: 0 by `weight`, (C, H, W), and 1 constant."""
    layer = nn.Linear(weight.numel(), 2)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([weight.flatten(), torch.zeros(weight.numel())]))
        layer.bias.zero_()
    return nn.Sequential(nn.Flatten(), layer)


def test_saliency_of_a_linear_model_is_its_weight() -> None:
    weight = torch.randn(3, 5, 7)
    found = saliency(linear(weight), torch.rand(3, 5, 7), 0)
    assert torch.equal(found, weight.abs().amax(0))


def test_occlusion_is_lost_where_the_model_looks() -> None:
    weight, image = torch.zeros(1, 12, 12), torch.zeros(1, 12, 12)
    weight[0, 2:5, 6:9] = image[0, 2:5, 6:9] = 1
    model = linear(weight)
    found = occlusion(model, image, 0, size=3, batch_size=7)
    assert found.shape == (12, 12)
    row, column = divmod(found.argmax().item(), 12)
    assert 2 <= row < 5 and 6 <= column < 9
    assert found[8:, :4].abs().max() < 1e-6
    with torch.no_grad():
        whole = model(image[None]).softmax(1)[0, 0]
        hidden = model(torch.full((1, 1, 12, 12), image.mean())).softmax(1)[0, 0]
    corner = occlusion(model, image, 0, size=12)
    torch.testing.assert_close(corner, (whole - hidden).expand(12, 12))


def test_excitation_finds_the_pattern_of_a_filter() -> None:
    """A linear unit is excited most by light where its weight is positive; shifts wrap at edges."""
    weight = torch.ones(1, 12, 12)
    weight[0, 6:] = -1
    found = excite(linear(weight), "1", [0], (1, 12, 12), steps=40)
    assert found.shape == (1, 1, 12, 12)
    assert found[0, 0, 3].min() > 0.9 and found[0, 0, 8].max() < 0.1


def test_excitation_raises_the_filters_output() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))
    found = excite(model, "0", [1, 3], (3, 8, 8), steps=30)
    again = excite(model, "0", [1, 3], (3, 8, 8), steps=30)
    assert torch.equal(found, again) and 0 <= found.min() and found.max() <= 1
    with torch.no_grad():
        outputs = model[0](found).mean((2, 3))
        of_noise = model[0](torch.rand(100, 3, 8, 8)).mean((2, 3)).amax(0)
    assert outputs[0, 1] > of_noise[1] and outputs[1, 3] > of_noise[3]
    assert not model[0]._forward_hooks


def test_unknown_layers_and_filters() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3))
    with pytest.raises(ValueError, match="no layer 'x': not one of 0"):
        excite(model, "x", [0], (1, 8, 8))
    for index in (2, -1):
        with pytest.raises(ValueError, match=r"layer 0 has the filters 0\.\.1"):
            excite(model, "0", [index], (1, 8, 8))


@pytest.mark.parametrize("name", FILTERS)
def test_fixed_filters_are_convolutions_by_them(name: str) -> None:
    kernels = list(FILTERS[name].values())
    image = torch.rand(1, 1, 9, 11)
    found = fixed_filters(kernels)(image)
    torch.testing.assert_close(found, F.conv2d(image, torch.stack(kernels)[:, None]))
    assert not found.requires_grad


def test_edges_and_sobel_measure_slopes() -> None:
    """On a ramp that rises by 1 a pixel to the right: Sobel's 2, edges' the halves' distance."""
    ramp = torch.arange(10.0).expand(1, 1, 10, 10)
    for name, expected in (("sobel", [2, 0]), ("edges", [2, -2, 0, 0])):
        found = fixed_filters(list(FILTERS[name].values()))(ramp).mean((0, 2, 3))
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize("filters", [[], [torch.rand(3)], [torch.rand(2, 2), torch.rand(3, 3)]])
def test_what_is_no_set_of_filters(filters: list) -> None:
    with pytest.raises(ValueError, match="matrices of one shape"):
        inspection.fixed_filters(filters)
