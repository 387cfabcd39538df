"""A caller's array -> an RGB image, or how to convert it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vit_edge.errors import ArrayError
from vit_edge.images.decode import pillow_at_work, require_pixels
from vit_edge.images.files import ImageLimits

_INTEGERS = "other integers. If they lie in 0..255: image.astype(np.uint8)"
_CONVERSIONS = {  # by dtype.kind
    "b": "booleans. Convert: image.astype(np.uint8) * 255",
    "i": _INTEGERS,
    "u": _INTEGERS,
}
_NO_NUMBERS = (
    "objects that are no numbers. Are the images of different sizes? Pass them one by one."
)


def image_from_array(array: NDArray[np.generic], name: str, limits: ImageLimits) -> Image.Image:
    """Check a caller's array and make an RGB image of it.

    Raises:
        ArrayError: Not uint8[H, W, 3] or uint8[H, W]; the message says how to convert.
    """
    problem = _dtype_problem(array) or _shape_problem(array)
    if problem:
        raise ArrayError(f"{name}: expected uint8[H, W, 3], RGB: {problem}")
    require_pixels((array.shape[1], array.shape[0]), name, limits)
    with pillow_at_work(name):
        return Image.fromarray(np.ascontiguousarray(array)).convert("RGB")


def _dtype_problem(array: NDArray[np.generic]) -> str | None:
    if array.dtype == np.uint8:
        return None
    if array.dtype == np.uint16:
        return "16 bits. Convert: ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)"
    if array.dtype.kind != "f":
        return _CONVERSIONS.get(array.dtype.kind, _NO_NUMBERS)
    if array.size and not np.isfinite(array).all():
        return "it holds NaN or infinite values. Find out where they come from."
    unit = array.size == 0 or (array.min() >= 0 and array.max() <= 1)
    factor = " * 255" if unit else ""
    return f"floats. Convert: (image{factor}).round().clip(0, 255).astype(np.uint8)"


def _shape_problem(array: NDArray[np.generic]) -> str | None:
    shape = array.shape
    if 0 in shape:
        return "it has no pixels."
    if array.ndim == 4:
        return "a batch. Pass its images one by one."
    if array.ndim not in (2, 3):
        return f"{array.ndim} axes."
    if array.ndim == 2 or shape[2] == 3:
        return None
    if shape[0] == 3:
        return "this looks like [3, H, W]. Convert: image.transpose(1, 2, 0)"
    if shape[2] == 4:
        return "4 channels. If they are RGBA, pass PIL.Image.fromarray(image)"
    if shape[2] == 1:
        return "1 channel. If it is grey, pass image[:, :, 0]"
    return f"{shape[2]} channels."
