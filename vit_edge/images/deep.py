"""Grey samples of more than 8 bits -> 8 bits: white becomes 255, nothing is clipped."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vit_edge.errors import UnsupportedImageError

_logger = logging.getLogger("vit_edge")

_BITS_PER_SAMPLE = 258  # TIFF 6.0, p. 29


def eight_bit_from_deep(image: Image.Image, name: str) -> Image.Image:
    """Scale 16-bit, 32-bit and float grey to 8 bits.

    Args:
        image: Loaded, of mode F or one that begins with I.
        name: What messages call it.

    Returns:
        An image of mode L, or LA with a transparent value.

    Raises:
        UnsupportedImageError: Nothing says what is white.
    """
    values = np.asarray(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        white = _white_of_16_bit(image)
    else:
        white = _guessed_white(values, name)
    if image.mode == "F":
        scaled = values * np.float32(255 / white)
        grey = np.rint(scaled, out=scaled).astype(np.uint8)
    else:
        levels = np.minimum(np.arange(65536), white)
        table = ((levels * 255 + white // 2) // white).astype(np.uint8)
        grey = table[values.astype(np.uint16, copy=False)]
    result = Image.fromarray(grey)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        result.putalpha(Image.fromarray((values != transparent).astype(np.uint8) * 255))
    return result


def _white_of_16_bit(image: Image.Image) -> int:
    """The largest value of a 16-bit image: 65535, unless its TIFF says fewer bits."""
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS_PER_SAMPLE, (16,))
    return int(2 ** bits[0]) - 1 if isinstance(bits, tuple) and 9 <= bits[0] <= 16 else 65535


def _guessed_white(values: NDArray[np.generic], name: str) -> int:
    """What 255 stands for in samples that do not say; see `load.load_image`."""
    kind = "float" if values.dtype.kind == "f" else "32-bit"
    least, most = float(values.min()), float(values.max())
    candidates = (1, 255, 65535) if kind == "float" else (255, 65535)
    white = next((white for white in candidates if least >= 0 and most <= white), None)
    if white is None:  # also for NaN, which compares false
        raise UnsupportedImageError(
            f"{name}: {kind} samples from {least:g} to {most:g}; what is black and what is white "
            "cannot be told. Scale them to 0..255 and save 8 bits."
        )
    _logger.warning("%s: %s samples up to %g; %d is taken as white", name, kind, most, white)
    return white
