"""Which way up an image is: EXIF orientation, as PIL.ImageOps.exif_transpose decides it.

The places are looked at here and not by Image.getexif: older versions of Pillow look in fewer, and
a directory that ends too early would be ignored without a word. What a directory says is Pillow's
to decide: the type and the count of the tag, repeated tags, damage.
"""

from __future__ import annotations

import io
import logging
import re
import struct

from PIL import Image

_logger = logging.getLogger("vit_edge")

_ORIENTATION = 0x0112  # EXIF 2.32, 4.6.4 A
_HEADERS = re.compile(rb"(Exif\0\0){0,2}")  # some cameras write it twice, as Pillow knows too
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
        exif = info.get("exif")
        if exif is None and "Raw profile type exif" in info:
            exif = _exif_from_text(info["Raw profile type exif"])
        if exif is not None:
            stated = _orientation_from_exif(exif, name)
    except Exception as error:  # SyntaxError, struct.error, ValueError, ...: the data is anybody's
        _logger.warning("%s: corrupt EXIF data ignored: %s", name, error)
    if stated is None:
        xmp = info.get("XML:com.adobe.xmp") or info.get("xmp") or ""
        text = xmp if isinstance(xmp, str) else bytes(xmp).decode("latin-1")
        digit = re.search(r'tiff:Orientation(?:="|>)([0-9])', text)
        stated = int(digit[1]) if digit else 1
    return _TURNS.get(stated)  # type: ignore[call-overload, no-any-return]


def _exif_from_text(text: str) -> bytes:
    """Read ImageMagick's PNG text chunk: three lines of heading, then hexadecimal digits."""
    return bytes.fromhex("".join(text.split("\n")[3:]))


def _orientation_from_exif(exif: bytes, name: str) -> object:
    """Find the orientation in a block of EXIF data: a TIFF header and its first directory.

    Returns:
        Whatever Pillow makes of the tag; only the numbers 2 to 8 mean a turn. None without a tag.

    Raises:
        Exception: It is damaged.
    """
    from PIL import TiffImagePlugin  # readers are imported where one is needed

    exif = _HEADERS.sub(b"", bytes(exif), count=1)
    directory = TiffImagePlugin.ImageFileDirectory_v2(exif[:8])
    stream = io.BytesIO(exif)
    stream.seek(directory.next)
    directory.load(stream)
    order = "<" if exif[:2] == b"II" else ">"
    (start,) = struct.unpack_from(f"{order}L", exif, 4)
    entries = int.from_bytes(exif[start : start + 2], "little" if order == "<" else "big")
    if start + 2 + 12 * entries > len(exif) or start + 2 > len(exif):
        _logger.warning("%s: corrupt EXIF data ignored: it ends within its directory", name)
    stated: object = directory.get(_ORIENTATION)
    if isinstance(stated, tuple) and len(stated) == 1:
        return stated[0]
    return stated
