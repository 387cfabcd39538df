"""BMP with run lengths, unpacked in time that the file's length and its header bound.

Pillow's own decoder appends single bytes, so that a file of a few bytes keeps it busy for seconds.
"""

from __future__ import annotations

import io
from typing import cast

from PIL import ImageFile

from vit_edge.errors import ImageDecodeError

# Encoders put up to 255 pixels into a piece; even 50 million pixels of a drawing are fewer pieces.
_MAX_PIECES = 4_000_000
_END_OF_LINE, _END_OF_BITMAP, _DELTA = 0, 1, 2
_NIBBLES = bytes.maketrans(b"0123456789abcdef", bytes(range(16)))


def unpack_runs(image: ImageFile.ImageFile, data: bytes, name: str) -> None:
    """Replace the run lengths of an opened BMP by its pixels; leave any other BMP as it is.

    Args:
        image: Of Pillow's BMP reader, not yet loaded, its size checked.
        data: The whole file.
        name: What to call it in errors.

    Raises:
        ImageDecodeError: It ends too early, or is in more pieces than an encoder writes.
    """
    if not image.tile or image.tile[0][0] != "bmp_rle":
        return
    _, box, offset, arguments = image.tile[0]
    _, is_rle4, direction = cast(tuple[str, bool, int], arguments)
    width, height = image.size
    pixels = _unpack(data, offset, width, width * height, is_rle4)
    if pixels is None:
        raise ImageDecodeError(
            f"{name}: a BMP of more than {_MAX_PIECES:,} runs. Save it anew, as PNG or without "
            "run lengths."
        )
    if len(pixels) < width * height:
        raise ImageDecodeError(
            f"{name}: a BMP with {len(pixels):,} of {width * height:,} pixels: it is truncated or "
            "damaged. Get it again."
        )
    mode = "L" if image.mode in ("1", "L") else "P"
    image.fp = io.BytesIO(pixels)
    image.tile = [("raw", box, 0, (mode, 0, direction))]  # type: ignore[list-item]


def _unpack(data: bytes, at: int, width: int, wanted: int, is_rle4: bool) -> bytearray | None:
    """Return as many pixels as there are, at most those wanted; None if the pieces are too many.

    As Pillow does it, to the same pixels: runs end with their row, what is left out is 0.
    """
    pixels, x = bytearray(), 0
    for _ in range(_MAX_PIECES):
        if len(pixels) >= wanted or at + 2 > len(data):
            return pixels[:wanted]
        count, value = data[at], data[at + 1]
        at += 2
        if count:
            count = min(count, max(0, width - x))
            pair = bytes((value >> 4, value & 15) if is_rle4 else (value, value))
            pixels += (pair * (count // 2 + 1))[:count]
            x += count
        elif value == _END_OF_LINE:
            pixels += bytes(-len(pixels) % width)
            x = 0
        elif value == _END_OF_BITMAP:
            return pixels
        elif value == _DELTA:
            if at + 2 > len(data):
                return pixels
            pixels += bytes(min(wanted - len(pixels), data[at] + data[at + 1] * width))
            at, x = at + 2, len(pixels) % width
        else:
            count = min(wanted - len(pixels), value)
            size = (count + 1) // 2 if is_rle4 else count
            piece = data[at : at + size]
            pixels += (piece.hex().encode().translate(_NIBBLES) if is_rle4 else piece)[:count]
            if len(piece) < size:
                return pixels
            at, x = at + size + (at + size) % 2, x + value
    return None
