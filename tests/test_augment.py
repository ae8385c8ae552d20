"""Random changes of images: what each one does to pixels, and that nothing else decides it."""

import math

import pytest
import torch

from cnnkernels.augment import AUGMENTATIONS, DRAWS, augment


def draws(flip: float = 0.9, turn: float = 0.5, down: float = 0.5, right: float = 0.5):
    return torch.tensor([[flip, turn, down, right]])


def ramp(height: int = 16, width: int = 24) -> torch.Tensor:
    return torch.arange(1.0, 1 + 2 * height * width).view(1, 2, height, width)


def test_nothing_is_changed_unasked() -> None:
    x = ramp()
    assert augment(x, draws(0, 0, 0, 0), ()) is x
    torch.testing.assert_close(augment(x, draws(), AUGMENTATIONS), x)


def test_flip_mirrors_half() -> None:
    x = ramp()
    torch.testing.assert_close(augment(x, draws(flip=0.49), ("flip",)), x.flip(3))
    torch.testing.assert_close(augment(x, draws(flip=0.5), ("flip",)), x)


@pytest.mark.parametrize("dy", range(-2, 3))
@pytest.mark.parametrize("dx", range(-3, 4))
def test_crop_shifts_by_whole_pixels(dy: int, dx: int) -> None:
    x = ramp().double()  # 16 x 24: up to 2 and 3 pixels
    numbers = draws(down=(dy + 2.5) / 5, right=(dx + 3.5) / 7)
    found = augment(x, numbers, ("crop",))
    padded = torch.nn.functional.pad(x, (3, 3, 2, 2))
    torch.testing.assert_close(
        found, padded[:, :, 2 + dy : 18 + dy, 3 + dx : 27 + dx], rtol=0, atol=1e-9
    )


def test_rotation_turns_about_the_middle() -> None:
    """A linear ramp turned is the ramp of the turned direction, wherever it stays inside."""
    height, width = 33, 47
    y, x = torch.meshgrid(torch.arange(height) - 16.0, torch.arange(width) - 23.0, indexing="ij")
    y, x = y.double(), x.double()
    image = (100 + y)[None, None]
    inside = (y.abs() < 8) & (x.abs() < 12)
    for turn in (0.0, 0.25, 1.0):
        angle = math.radians((2 * turn - 1) * 10)
        found = augment(image, draws(turn=turn), ("rotate",))[0, 0]
        expected = 100 + math.cos(angle) * y + math.sin(angle) * x
        torch.testing.assert_close(found[inside], expected[inside], rtol=0, atol=1e-9)


def test_each_image_by_its_own_row() -> None:
    images, numbers = torch.rand(5, 3, 12, 12), torch.rand(5, DRAWS)
    found = augment(images, numbers, AUGMENTATIONS)
    alone = [augment(images[i : i + 1], numbers[i : i + 1], AUGMENTATIONS) for i in range(5)]
    torch.testing.assert_close(found, torch.cat(alone))
    assert (found - images).flatten(1).norm(dim=1).min() > 0.1


def test_an_empty_batch() -> None:
    assert augment(torch.rand(0, 3, 8, 8), torch.rand(0, DRAWS), AUGMENTATIONS).shape[0] == 0
