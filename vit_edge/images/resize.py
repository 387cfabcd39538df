"""A picture -> its resized centre, as the manifest's `Preprocessing` says.

Pillow resizes one axis after the other and rounds to 8 bits in between; Pillow 13 changed the order
for tall images. Here the order is that of Pillow 13 whatever the version, so that a device with an
older one makes the same pixels.
"""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vit_edge.bundle.manifest import Interpolation, Preprocessing
from vit_edge.images.reduced import Picture, Size, whole

_FILTERS = {name: Image.Resampling[name.upper()] for name in get_args(Interpolation)}
_SUPPORT_PX = 3  # of Lanczos, the widest filter (Pillow, src/libImaging/Resample.c)

# Up to this many pixels (200 MB in Pillow, as much as the largest image that is decoded) the whole
# image is resized and then cropped; beyond it, only what the crop keeps is computed.
_MAX_RESIZED_PIXELS = 50_000_000


def resized_from_image(image: Image.Image, spec: Preprocessing) -> NDArray[np.uint8]:
    """Resize an RGB image, as `load_image` gives it, and cut out its centre."""
    return resized_from_picture(whole(image), spec)


def resized_from_picture(picture: Picture, spec: Preprocessing) -> NDArray[np.uint8]:
    """Resize what an RGB image shows, and cut out its centre.

    Equal to resizing the whole image and then cropping, except where the whole would be larger than
    50 Mpx (a 10000:1 image that covers 248 x 248 would be 2.5 million pixels long). There only the
    crop is computed, from the same source coordinates: equal within 1 level, but for "nearest" and
    "box", which jump and may take the pixel beside.

    Args:
        picture: Its image has mode "RGB".
        spec: resize, resize_hw, crop_hw and interpolation are used.

    Returns:
        uint8[H, W, 3], H and W as in spec.crop_hw.
    """
    image, full_size, edges = picture
    new_size = _resized_size(full_size, spec)
    crop_h, crop_w = spec.crop_hw
    # CenterCrop of torchvision: Python's round, so that halves go to the even number.
    left, top = round((new_size[0] - crop_w) / 2), round((new_size[1] - crop_h) / 2)
    box = (left, top, left + crop_w, top + crop_h)
    resample = _FILTERS[spec.interpolation]
    # An image that was decoded smaller is larger than what it is resized to.
    if image.size == full_size and new_size[0] * new_size[1] > _MAX_RESIZED_PIXELS:
        return np.asarray(_crop_of_resized(image, new_size, box, resample))
    for axis in _axis_order(image.size, new_size):
        if image.size[axis] != new_size[axis]:
            span = edges[axis], edges[axis + 2]
            image = _resized_along(axis, image, new_size[axis], span, resample)
    return np.asarray(image.crop(box) if new_size != (crop_w, crop_h) else image)


def _resized_size(size: Size, spec: Preprocessing) -> Size:
    """(width, height) after resizing an image of `size` = (width, height)."""
    width, height = size
    target_h, target_w = spec.resize_hw
    if spec.resize == "squash":
        return target_w, target_h
    if target_h == target_w:  # torchvision.transforms.Resize(int): the shortest edge, truncating
        short, long = min(size), max(size)
        new_long = int(target_w * long / short)
        return (target_w, new_long) if width <= height else (new_long, target_w)
    ratio = min(height / target_h, width / target_w)  # timm.data.transforms.ResizeKeepRatio
    return round(width / ratio), round(height / ratio)


def _axis_order(size: Size, new_size: Size) -> tuple[int, int]:
    """Which axis is resized first (0: width, 1: height): the rule of Pillow 13.

    Source: ImagingResampleInner in src/libImaging/Resample.c. Pillow before 13 always began with
    the width. Either way nothing in between is much larger than the larger of the two images.
    """
    width_lost, height_lost = size[0] - new_size[0], size[1] - new_size[1]
    return (1, 0) if height_lost > max(0, 2 * width_lost) else (0, 1)


def _resized_along(
    axis: int,
    image: Image.Image,
    length: int,
    span: tuple[float, float],
    resample: Image.Resampling,
) -> Image.Image:
    """Resize one axis: `length` pixels of what lies within `span`."""
    size, box = list(image.size), [0.0, 0.0, *image.size]
    size[axis], box[axis], box[axis + 2] = length, *span
    return image.resize((size[0], size[1]), resample, (box[0], box[1], box[2], box[3]))


def _crop_of_resized(
    image: Image.Image,
    new_size: Size,
    box: tuple[int, int, int, int],
    resample: Image.Resampling,
) -> Image.Image:
    """`image.resize(new_size).crop(box)` in memory bounded by the image and the crop."""
    left, top, right, bottom = box
    first_x, last_x, *span_x = _window(image.width, new_size[0], left, right)
    first_y, last_y, *span_y = _window(image.height, new_size[1], top, bottom)
    order = _axis_order(image.size, new_size)
    image = image.crop((first_x, first_y, last_x, last_y))
    for axis in order:
        length, span = ((right - left, span_x), (bottom - top, span_y))[axis]
        image = _resized_along(axis, image, length, (span[0], span[1]), resample)
    return image


def _window(length: int, new_length: int, start: int, stop: int) -> tuple[int, int, float, float]:
    """Where the pixels start..stop of a resized axis come from.

    Returns:
        The first and last pixel that the filter can reach, and the exact span within those: Pillow
        keeps such coordinates in float32, too coarse for the whole of a long image.
    """
    scale = length / new_length
    reach = math.ceil(_SUPPORT_PX * max(scale, 1)) + 1
    first = max(math.floor(start * scale) - reach, 0)
    last = min(math.ceil(stop * scale) + reach, length)
    return first, last, start * scale - first, min(stop * scale, length) - first
