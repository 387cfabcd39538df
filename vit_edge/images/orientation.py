"""Which way up an image is: EXIF orientation, from the same places as PIL.ImageOps.exif_transpose.

Read here and not by Image.getexif: older versions of Pillow look in fewer places, and a directory
that ends too early would be ignored without a word.
"""

from __future__ import annotations

import logging
import re
import struct

from PIL import Image

_logger = logging.getLogger("vit_edge")

_ORIENTATION = 0x0112  # EXIF 2.32, 4.6.4 A
_HEADERS = re.compile(rb"(Exif\0\0){0,2}")  # some cameras write it twice, as Pillow knows too
# By TIFF type (TIFF 6.0, p. 15). Pillow reads a BYTE as bytes, and no orientation from it.
_INTEGERS = {3: "H", 4: "L", 6: "b", 8: "h", 9: "l"}
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

    EXIF data counts first, XMP data where there is none. Corrupt EXIF data is ignored, with a
    warning of the logger "vit_edge".
    """
    if image.format == "TIFF":
        return None  # Pillow's reader has done it
    info, stated = image.info, None
    try:
        if exif := info.get("exif") or _exif_from_text(info.get("Raw profile type exif", "")):
            stated = _orientation_from_exif(exif)
    except (ValueError, TypeError, IndexError, struct.error) as error:
        _logger.warning("%s: corrupt EXIF data ignored: %s", name, error)
    if stated is None:
        xmp = info.get("XML:com.adobe.xmp") or info.get("xmp") or ""
        text = xmp if isinstance(xmp, str) else bytes(xmp).decode("latin-1")
        digit = re.search(r'tiff:Orientation(?:="|>)([0-9])', text)
        stated = int(digit[1]) if digit else 1
    return _TURNS.get(stated)


def _exif_from_text(text: str) -> bytes:
    """Read ImageMagick's PNG text chunk: three lines of heading, then hexadecimal digits."""
    return bytes.fromhex("".join(text.split("\n")[3:]))


def _orientation_from_exif(exif: bytes) -> int | None:
    """Find the orientation in a block of EXIF data: a TIFF header and its first directory.

    Raises:
        ValueError, struct.error: It is damaged.
    """
    exif = _HEADERS.sub(b"", exif, count=1)
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        raise ValueError(f"it begins {exif[:4]!r}, neither II nor MM")
    (start,) = struct.unpack_from(f"{order}L", exif, 4)
    (entries,) = struct.unpack_from(f"{order}H", exif, start)
    for at in range(start + 2, start + 2 + 12 * entries, 12):
        tag, kind = struct.unpack_from(f"{order}HH", exif, at)
        if tag == _ORIENTATION:
            if kind not in _INTEGERS:
                return 1
            return int(struct.unpack_from(order + _INTEGERS[kind], exif, at + 8)[0])
    return None
