"""JPEGs decoded at 1/2, 1/4 or 1/8 of their size, and where their pixels then belong.

A JPEG stores blocks of 8 x 8 frequencies. Leaving out the high ones gives the image at a fraction
of its size for a fraction of the work (libjpeg's scale_denom, Pillow's `draft`).
"""

from __future__ import annotations

from typing import NamedTuple

from PIL import Image, ImageFile

Size = tuple[int, int]  # width, height
Box = tuple[float, float, float, float]  # left, top, right, bottom


class Decoded(NamedTuple):
    """An image as it is stored, whole or smaller."""

    image: ImageFile.ImageFile
    full_size: Size
    divisor: int  # 1, 2, 4 or 8: the sides of `image` are those of full_size / divisor, rounded up


class Picture(NamedTuple):
    """An upright RGB image, and the full-size picture that it shows."""

    image: Image.Image
    full_size: Size  # of the picture
    box: Box  # what the picture covers of `image`: all, or all but part of a pixel at two edges


def whole(image: Image.Image) -> Picture:
    """The picture that an image of full size shows."""
    return Picture(image, image.size, (0, 0, *image.size))


def ask_for_less(image: ImageFile.ImageFile, least_px: int) -> int:
    """Have a JPEG decoded smaller that is opened but not yet loaded.

    Args:
        image: Of Pillow's JPEG reader. Its size changes, its mode does not.
        least_px: What neither side may fall below.

    Returns:
        The divisor: the largest of 8, 4 and 2 that keeps least_px; 1, and nothing is done, if none
        does.
    """
    divisor = next((d for d in (8, 4, 2) if min(image.size) >= d * least_px), 1)
    if divisor > 1:
        image.draft(None, (image.width // divisor, image.height // divisor))
    return divisor


def picture_from_turned(
    image: Image.Image, decoded: Decoded, turn: Image.Transpose | None
) -> Picture:
    """Find the picture in an image that was decoded and then turned.

    Args:
        image: Upright.
        decoded: What it was before.
        turn: What was done to it.
    """
    swapped, mirrored_x, mirrored_y = _EFFECTS[turn]
    width, height = reversed(decoded.full_size) if swapped else decoded.full_size
    covered_x, covered_y = width / decoded.divisor, height / decoded.divisor
    x = image.width - covered_x if mirrored_x else 0
    y = image.height - covered_y if mirrored_y else 0
    return Picture(image, (width, height), (x, y, x + covered_x, y + covered_y))


# What a turn does to an image, which as stored ends in part of a pixel at the right and at the
# bottom: are the axes swapped? Is what was left over at the right, at the bottom, then on the other
# side?
_EFFECTS: dict[Image.Transpose | None, tuple[bool, bool, bool]] = {
    None: (False, False, False),
    Image.Transpose.FLIP_LEFT_RIGHT: (False, True, False),
    Image.Transpose.ROTATE_180: (False, True, True),
    Image.Transpose.FLIP_TOP_BOTTOM: (False, False, True),
    Image.Transpose.TRANSPOSE: (True, False, False),
    Image.Transpose.ROTATE_270: (True, True, False),
    Image.Transpose.TRANSVERSE: (True, True, True),
    Image.Transpose.ROTATE_90: (True, False, True),
}
