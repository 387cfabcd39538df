"""Altered copies of calibration images: what photos of one scene do not show.

Ranges and scales fit what was seen. Frames of one camera, or crops of one picture, leave channels
nearly constant that other images use in full, and a scale of each channel makes the most of that:
on 128 crops of one photo, INT8 kept 3 dB of a ViT. Copies in other colours, contrast and
brightness use these channels. They cost images that are like the real ones nothing.

Parameters are drawn in layers: each of them passes its whole range evenly, in an order of its own.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

COPIES = 32
CONTRAST = (0.3, 2.0)
BRIGHTNESS = (0.4, 1.6)  # of the mean
CAST = (0.7, 1.3)  # of each colour
_ORDERS = tuple(itertools.permutations(range(3)))  # of red, green and blue


def altered(images: NDArray[np.uint8], count: int = COPIES) -> NDArray[np.uint8]:
    """Copy images in other colours.

    Args:
        images: uint8[N, H, W, 3]; each gives one copy before any gives two.
        count: How many copies.

    Returns:
        uint8[count, H, W, 3], the same for the same images.
    """
    rng = np.random.default_rng(0)
    layers = (np.arange(count) + 0.5) / max(count, 1)

    def spread(low: float, high: float) -> NDArray[np.float64]:
        return low + (high - low) * rng.permutation(layers)

    contrast, brightness = spread(*CONTRAST), spread(*BRIGHTNESS)
    casts = np.stack([spread(*CAST) for _ in range(3)], axis=1)
    orders = rng.permutation(np.arange(count) % len(_ORDERS))
    negative = rng.permutation(np.arange(count) % 4 == 0)
    mirrored = rng.permutation(np.arange(count) % 2 == 0)
    copies = np.empty((count, *images.shape[1:]), np.uint8)
    for index in range(count):
        image = images[index % len(images)][..., _ORDERS[orders[index]]].astype(np.float32)
        if negative[index]:
            image = 255 - image
        if mirrored[index]:
            image = image[:, ::-1]
        mean = image.mean()
        image = (image - mean) * contrast[index] + mean * brightness[index]
        copies[index] = np.clip(np.rint(image * casts[index]), 0, 255)
    return copies
