"""Small image files that show on any device whether preprocessing is what it was at export."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vit_edge.errors import UsageError

# Long sides, so that even incompressible content stays below about 25 kB a file: a golden file
# travels with every bundle.
_JPEG_PX = 144
_PNG_PX = 76

_ORIENTATION, _ROTATED = 0x0112, 6  # EXIF 2.32, 4.6.4 A: the camera was turned by 90 degrees


def make_probes(photos: Sequence[NDArray[np.uint8]]) -> dict[str, bytes]:
    """Encode photos in every way that has ever changed what a model sees.

    JPEG files may decode a little differently with another build of libjpeg. Compare what becomes
    of them within 2 levels: that allows one level here and there. One level everywhere becomes 3 by
    bicubic magnification, and is found. PNG files decode exactly.

    Args:
        photos: uint8[H, W, 3], at least one; they are taken in turn.

    Returns:
        File name -> encoded file; the same for the same photos and the same Pillow.

    Raises:
        UsageError: No photos.
    """
    if not photos:
        raise UsageError("make_probes needs at least one photo")
    jpegs = [_shrunk(photo, _JPEG_PX) for photo in photos]
    pngs = [_shrunk(photo, _PNG_PX) for photo in photos]

    def jpeg(index: int) -> Image.Image:
        return jpegs[index % len(jpegs)]

    def png(index: int) -> Image.Image:
        return pngs[index % len(pngs)]

    exif = Image.Exif()
    exif[_ORIENTATION] = _ROTATED
    return {
        "plain.jpg": _encoded(jpeg(0), "JPEG", quality=90),
        "plain.png": _encoded(png(1), "PNG"),
        "exif-rotated.jpg": _encoded(jpeg(2), "JPEG", quality=90, exif=exif.tobytes()),
        "rgba.png": _encoded(_half_transparent(png(3)), "PNG"),
        "palette-transparent.png": _encoded(
            png(4).quantize(64), "PNG", transparency=bytes(range(0, 256, 4))
        ),
        "grey-16-bit.png": _encoded(_grey_16_bit(png(5)), "PNG"),
        "grey.jpg": _encoded(jpeg(6).convert("L"), "JPEG", quality=90),
        "cmyk.jpg": _encoded(_shrunk(photos[7 % len(photos)], _PNG_PX).convert("CMYK"), "JPEG"),
        "tall.png": _encoded(png(8).resize((_PNG_PX // 8, 2 * _PNG_PX)), "PNG"),
    }


def _shrunk(photo: NDArray[np.uint8], long_side_px: int) -> Image.Image:
    """A copy that is no longer than `long_side_px` on either side."""
    image = Image.fromarray(photo)
    image.thumbnail((long_side_px, long_side_px), Image.Resampling.BICUBIC)
    return image


def _half_transparent(image: Image.Image) -> Image.Image:
    """Opaque on the left, transparent on the right, every alpha in between."""
    ramp = np.linspace(255, 0, image.width).round().astype(np.uint8)
    result = image.copy()
    result.putalpha(Image.fromarray(np.repeat(ramp[None], image.height, axis=0)))
    return result


def _grey_16_bit(image: Image.Image) -> Image.Image:
    """Grey with all 16 bits in use: clipping or dropping the lower byte both show."""
    rgb = np.asarray(image).astype(np.uint32)
    return Image.fromarray((rgb.sum(axis=2) * 65535 // 765).astype(np.uint16))


def _encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()
