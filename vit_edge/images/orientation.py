"""Which way up an image is: EXIF orientation, from the same places as PIL.ImageOps.exif_transpose.

Read here and not by Image.getexif, which parses every tag there is, and warns and raises over the
broken ones.
"""

from __future__ import annotations

import logging
import re
from typing import Literal

from PIL import Image

_logger = logging.getLogger("vit_edge")

_ORIENTATION = 0x0112  # EXIF 2.32, 4.6.4 A
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright_from(image: Image.Image, name: str) -> Image.Transpose | None:
    """Tell what turns a loaded image upright; None if nothing has to.

    Corrupt EXIF data is ignored, with a warning of the logger "vit_edge".
    """
    if image.format == "TIFF":
        return None  # Pillow's reader has done it
    return _TURNS.get(_stated_orientation(image, name))


def _stated_orientation(image: Image.Image, name: str) -> int:
    """The orientation that EXIF data or, failing that, XMP data states; 1 if neither does."""
    info = image.info
    try:
        exif = info.get("exif") or _exif_from_text(info.get("Raw profile type exif", ""))
        value = _orientation_from_exif(exif) if exif else None
    except (ValueError, TypeError, IndexError) as error:
        _logger.warning("%s: corrupt EXIF data ignored: %s", name, error)
        value = None
    if value is None:
        xmp = info.get("XML:com.adobe.xmp") or info.get("xmp") or ""
        text = xmp if isinstance(xmp, str) else bytes(xmp).decode("latin-1")
        found = re.search(r'tiff:Orientation(?:="|>)([0-9])', text)
        value = int(found[1]) if found else 1
    return value


def _exif_from_text(text: str) -> bytes:
    """ImageMagick's PNG text chunk: three lines of heading, then hexadecimal digits."""
    return bytes.fromhex("".join(text.split("\n")[3:]))


def _orientation_from_exif(exif: bytes) -> int | None:
    """Find the orientation in a block of EXIF data: a TIFF header and its first directory.

    Raises:
        ValueError: It is damaged.
    """
    exif = exif.removeprefix(b"Exif\0\0")
    order: Literal["little", "big"] = "little" if exif[:2] == b"II" else "big"
    if exif[:2] not in (b"II", b"MM"):
        raise ValueError(f"it begins {exif[:4]!r}, neither II nor MM")

    def number(at: int, size: int) -> int:
        if at + size > len(exif):
            raise ValueError(f"it ends at byte {len(exif)}, within its first directory")
        return int.from_bytes(exif[at : at + size], order)

    start = number(4, 4)
    for entry in range(start + 2, start + 2 + 12 * number(start, 2), 12):
        if number(entry, 2) == _ORIENTATION:
            return number(entry + 8, 4 if number(entry + 2, 2) == 4 else 2)
    return None
