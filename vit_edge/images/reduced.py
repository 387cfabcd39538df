"""JPEGs decoded at 1/2, 1/4 or 1/8 of their size, and where their pixels then belong.

A JPEG stores blocks of 8 x 8 frequencies. Leaving out the high ones gives the image at a fraction
of its size for a fraction of the work (libjpeg's scale_denom, Pillow's `draft`).
"""

from __future__ import annotations

from typing import NamedTuple

from PIL import Image, ImageFile

Size = tuple[int, int]  # width, height
Box = tuple[float, float, float, float]  # left, top, right, bottom


class Picture(NamedTuple):
    """An image, and the full-size picture that it shows."""

    image: Image.Image
    full_size: Size  # of the picture
    box: Box  # what the picture covers of `image`: all, or all but part of a pixel at two edges


def whole(image: Image.Image) -> Picture:
    """Return the picture that an image of full size shows."""
    return Picture(image, image.size, (0, 0, *image.size))


def ask_for_less(image: ImageFile.ImageFile, least_px: int) -> Picture:
    """Have a JPEG decoded smaller that is opened but not yet loaded.

    Args:
        image: Of Pillow's JPEG reader. Its size changes, its mode does not.
        least_px: What neither side may fall below.

    Returns:
        The picture at 1/8, 1/4 or 1/2: the smallest that keeps least_px; whole if none does. The
        sides of its image are rounded up.
    """
    width, height = image.size
    divisor = next((d for d in (8, 4, 2) if min(width, height) >= d * least_px), 1)
    if divisor > 1:
        image.draft(None, (width // divisor, height // divisor))
    return Picture(image, (width, height), (0, 0, width / divisor, height / divisor))


def turned(picture: Picture, turn: Image.Transpose | None) -> Picture:
    """Turn a picture as it was stored; what its box leaves out may change sides."""
    if turn is None:
        return picture
    swapped, mirrored_x, mirrored_y = _EFFECTS[turn]
    image, size, stored_box = picture.image.transpose(turn), picture.full_size, picture.box
    covered_x, covered_y = stored_box[2:][::-1] if swapped else stored_box[2:]
    left = image.width - covered_x if mirrored_x else 0
    top = image.height - covered_y if mirrored_y else 0
    box = (left, top, left + covered_x, top + covered_y)
    return Picture(image, size[::-1] if swapped else size, box)


# Does a turn swap the axes? Does it then mirror x, or y?
_EFFECTS: dict[Image.Transpose, tuple[bool, bool, bool]] = {
    Image.Transpose.FLIP_LEFT_RIGHT: (False, True, False),
    Image.Transpose.ROTATE_180: (False, True, True),
    Image.Transpose.FLIP_TOP_BOTTOM: (False, False, True),
    Image.Transpose.TRANSPOSE: (True, False, False),
    Image.Transpose.ROTATE_270: (True, True, False),
    Image.Transpose.TRANSVERSE: (True, True, True),
    Image.Transpose.ROTATE_90: (True, False, True),
}
