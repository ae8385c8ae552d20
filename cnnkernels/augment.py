"""Random changes of training images: one affine map an image, sampled where the images are.

Torch's affine_grid and grid_sample take a whole batch, on any device, each image with a map of its
own; so a network trained on a GPU does not wait for images that are changed one at a time.
"""

import math
from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor

AUGMENTATIONS = ("flip", "rotate", "crop")
DRAWS = 4  # random numbers that an image needs

_ROTATION = math.radians(10)
_CROP = 1 / 8  # of the image's height and width: 4 pixels of 32, as is usual for CIFAR-10


def augment(images: Tensor, draws: Tensor, kinds: Collection[str]) -> Tensor:
    """Changes each image at random; what comes in from outside an image is 0.

    Args:
        images: (N, C, H, W).
        draws: (N, DRAWS), uniform in [0, 1): what is done to each image depends on its row alone.
        kinds: of AUGMENTATIONS: `flip` mirrors every other image; `rotate` turns by up to 10
            degrees; `crop` shifts by up to an eighth of the size, in whole pixels, as cropping
            from a padded image does.

    Returns:
        As `images`.
    """
    if not kinds or len(images) == 0:
        return images
    height, width = images.shape[2:]
    flip, turn, down, right = draws.to(images).unbind(1)
    zero = torch.zeros_like(flip)
    sign = torch.where(flip < 0.5, -1.0, 1.0).to(images) if "flip" in kinds else zero + 1
    angle = (2 * turn - 1) * _ROTATION if "rotate" in kinds else zero
    cos, sin = angle.cos(), angle.sin()
    # Sizes are 2 in the grid's units, whatever they are in pixels (torch: affine_grid).
    dx, dy = (
        2 * _whole(draw, _CROP * size) / size if "crop" in kinds else zero
        for draw, size in ((right, width), (down, height))
    )
    rows = (
        torch.stack((sign * cos, -sin * height / width, dx), 1),
        torch.stack((sign * sin * width / height, cos, dy), 1),
    )
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)


def _whole(draw: Tensor, limit: float) -> Tensor:
    """From [0, 1) to the whole numbers in [-limit, limit], each as likely."""
    limit = int(limit)
    return (draw * (2 * limit + 1)).floor() - limit
