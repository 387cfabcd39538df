"""Bytes of an image file -> a loaded Pillow image, or one of our errors.

Everything hostile about image files is met here: what kind of file it is, how large it says it is,
and whatever Pillow raises or warns about on the way.
"""

from __future__ import annotations

import importlib
import io
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageFile

from vit_edge.errors import (
    ImageDecodeError,
    ImageTooLargeError,
    UnsupportedImageError,
    VitEdgeError,
)
from vit_edge.images.files import ImageLimits
from vit_edge.images.formats import HEAD_BYTES, appearance, decoded_format, refused_format
from vit_edge.images.reduced import Picture, ask_for_less, whole

# format -> its reader in Pillow. Used directly, not through Image.open: only the one plugin is
# imported, nothing but this list can ever be reached, and the size is checked by our limits instead
# of the process-wide Image.MAX_IMAGE_PIXELS. JpegImageFile also reads MPO, as its first picture.
_READERS = {
    "AVIF": ("AvifImagePlugin", "AvifImageFile"),
    "BMP": ("BmpImagePlugin", "BmpImageFile"),
    "GIF": ("GifImagePlugin", "GifImageFile"),
    "JPEG": ("JpegImagePlugin", "JpegImageFile"),
    "PNG": ("PngImagePlugin", "PngImageFile"),
    "PPM": ("PpmImagePlugin", "PpmImageFile"),
    "TIFF": ("TiffImagePlugin", "TiffImageFile"),
    "WEBP": ("WebPImagePlugin", "WebPImageFile"),
}
FORMATS = frozenset(_READERS)

# ISO/IEC 10918-1, B.1.1.3. In coded data 0xff stands only before 00 and restart markers, D0 to D7.
_START_OF_SCAN, _END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")

_NEW_SUBFILE_TYPE, _DNG_VERSION = 254, 50706  # TIFF 6.0 p. 36; DNG 1.7 p. 21


def decode(data: bytes, name: str, limits: ImageLimits, least_px: int | None = None) -> Picture:
    """Decode the first frame of an image file. Call it inside `pillow_at_work`.

    Args:
        data: The whole file.
        name: What to call it in errors.
        limits: What is refused, from the header.
        least_px: A JPEG may be decoded smaller, as long as both sides keep this many pixels. None:
            it may not.

    Returns:
        A loaded image, in the file's own mode and orientation; Pillow's reader turns a TIFF
        upright.

    Raises:
        ImageDecodeError: No image, or a damaged or truncated one.
        UnsupportedImageError: An image of a format outside FORMATS.
        ImageTooLargeError: The header promises more than the limits allow.
    """
    form = _required_format(data, name)
    if form == "JPEG":
        _require_scans(data, name, limits)
    if form == "PPM":
        from vit_edge.images import pnm  # each format when it is met

        if (header := pnm.read_header(data, name)) is not None:
            require_pixels(header.size, name, limits)
            data = pnm.simplified(data, header, name)
    module_name, class_name = _READERS[form]
    reader = getattr(importlib.import_module(f"PIL.{module_name}"), class_name)
    image: ImageFile.ImageFile = reader(_Complete(data, form), "")
    require_pixels(image.size, name, limits)
    if form == "TIFF":
        _require_no_camera_raw(image, name)
    if form == "BMP":
        from vit_edge.images.bmp import unpack_runs

        unpack_runs(image, data, name)
    smaller = ask_for_less(image, least_px) if form == "JPEG" and least_px is not None else None
    image.load()
    if smaller is not None:
        return smaller
    require_pixels(image.size, name, limits)  # some readers learn the true size only now
    return whole(image)


def load_opened(image: Image.Image, name: str, limits: ImageLimits) -> Picture:
    """Load a caller's Pillow image, which may still be a lazy and hostile file.

    Raises:
        UnsupportedImageError: A file of a format outside FORMATS.
        ImageTooLargeError: More pixels than the limits allow.
    """
    if isinstance(image, ImageFile.ImageFile) and image.format not in FORMATS | {"MPO"}:
        # Loading could start a program (EPS); .copy() makes it the caller's decision.
        raise UnsupportedImageError(
            f"{name}: a {image.format} image, which is not decoded here. If you trust it, pass "
            "image.copy()."
        )
    require_pixels(image.size, name, limits)
    image.load()
    return whole(image)


@contextmanager
def pillow_at_work(name: str) -> Iterator[None]:
    """Turn whatever Pillow raises into our errors, and keep its warnings from this thread.

    The one place where foreign exceptions are mapped. Pillow's readers raise OSError, SyntaxError,
    ValueError, struct.error, zlib.error, EOFError, OverflowError, IndexError, KeyError and more
    over damaged files, so everything is caught.
    """
    _mute_warnings_while_decoding()
    outer, _thread.decoding = _thread.decoding, True
    try:
        yield
    except VitEdgeError:
        raise
    except (MemoryError, Image.DecompressionBombError) as error:
        raise ImageTooLargeError(
            f"{name}: needs more memory than there is or than Pillow allows: {_said(error)}. "
            "Scale the image down first."
        ) from error
    except Exception as error:
        raise ImageDecodeError(
            f"{name}: cannot be decoded: {_said(error)}. It is damaged, truncated or of a rare "
            "kind; get it again, or save it anew as JPEG or PNG."
        ) from error
    finally:
        _thread.decoding = outer


def require_pixels(size: tuple[int, int], name: str, limits: ImageLimits) -> None:
    """Refuse a width x height beyond the limit, or without pixels."""
    width, height = size
    if width < 1 or height < 1:
        raise ImageDecodeError(f"{name}: an image of {width} x {height} pixels has no content.")
    if width * height > limits.max_pixels:
        raise ImageTooLargeError(
            f"{name}: {width} x {height} = {width * height:,} pixels, at most "
            f"{limits.max_pixels:,} are decoded (ImageLimits.max_pixels). Scale it down first, or "
            "raise the limit if you trust the file."
        )


def _required_format(data: bytes, name: str) -> str:
    """Name the format to decode, or say what the data is instead."""
    head = data[:HEAD_BYTES]
    form = decoded_format(head)
    allowed = ", ".join(sorted(FORMATS))
    if form == "AVIF" and not _avif_is_built_in():
        raise UnsupportedImageError(
            f"{name}: an AVIF image, which this Pillow cannot decode. Install Pillow >= 11.3, or "
            "convert the file."
        )
    if form is not None:
        return form
    refused = refused_format(head)
    if refused is not None:
        raise UnsupportedImageError(
            f"{name}: the image format is {refused}, which is not decoded here. Convert it to one "
            f"of {allowed}."
        )
    raise ImageDecodeError(
        f"{name}: not an image: it looks like {appearance(head)}. Expected one of {allowed}."
    )


def _require_scans(data: bytes, name: str, limits: ImageLimits) -> None:
    """Refuse a JPEG whose scans would keep the decoder busy for minutes."""
    if _count_of_pair(data, _START_OF_SCAN) <= limits.max_jpeg_scans:
        return  # an upper bound, and the usual case: metadata and appended videos may hold more
    scans, at = 0, 2
    while (found := _MARKER.search(data, at)) and found[0] != _END_OF_IMAGE:
        scans += found[0] == _START_OF_SCAN
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    if scans > limits.max_jpeg_scans:
        raise ImageTooLargeError(
            f"{name}: a JPEG of {scans} scans, at most {limits.max_jpeg_scans} are decoded "
            "(ImageLimits.max_jpeg_scans). Save it anew as a baseline JPEG."
        )


def _count_of_pair(data: bytes, pair: bytes) -> int:
    """Count where two different bytes follow each other: data.count(pair) in a tenth of its time.

    That would be a twentieth of decoding a photo, and more of decoding it "fast".
    """
    value = int.from_bytes(pair, "little")
    found = 0
    for start in (0, 1):
        pairs = np.frombuffer(data, "<u2", (len(data) - start) // 2, start)
        found += int(np.count_nonzero(pairs == value))
    return found


def _avif_is_built_in() -> bool:
    try:
        plugin = importlib.import_module("PIL.AvifImagePlugin")
    except ImportError:  # Pillow before 11.3
        return False
    return bool(plugin.SUPPORTED)


def _require_no_camera_raw(image: ImageFile.ImageFile, name: str) -> None:
    """Refuse DNG, NEF, ARW, ...: TIFF files whose first image is a thumbnail of the photo."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    reduced = tags.get(_NEW_SUBFILE_TYPE, 0)
    if _DNG_VERSION in tags or (isinstance(reduced, int) and reduced & 1):
        raise UnsupportedImageError(
            f"{name}: a camera RAW file, or a TIFF that begins with a thumbnail; neither is "
            "decoded here. Convert it to JPEG, PNG or a plain TIFF."
        )


def _said(error: BaseException) -> str:
    """The text of a foreign error on one line, never empty."""
    return " ".join(str(error).split())[:200] or type(error).__name__


# Of the file by Pillow's readers, in Python: a marker, chunk, block or tag takes some, what lies
# between markers one for each byte. A photo takes some hundreds.
_MAX_READS = 1 << 16
_BYTES_A_READ = 64  # more for large files: the chunks of some PNGs have 256 bytes, of most some kB


class _Complete(io.BytesIO):
    """A file that is read in so many pieces, and whose missing end is an error.

    That each piece takes a microsecond or two of Python makes a hostile file slow that holds
    millions.

    The host may have asked Pillow to overlook a missing end, by ImageFile.LOAD_TRUNCATED_IMAGES (it
    is global, and not ours to touch). Pillow then paints missing pixels grey: it stops quietly at
    an empty read, for PNG at any short one.
    """

    def __init__(self, data: bytes, form: str) -> None:
        super().__init__(data)
        self._exact = form == "PNG"
        self._reads_left = _MAX_READS + len(data) // _BYTES_A_READ

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads_left -= 1
        if self._reads_left < 0:
            raise OSError("its parts are more and smaller than those of an image")
        data = super().read(size)
        if ImageFile.LOAD_TRUNCATED_IMAGES and size is not None and size > 0:
            ended = len(data) < size if self._exact else not data
            if ended:
                raise OSError("the file ends too early")
        return data


class _Thread(threading.local):
    """What the current thread is doing."""

    decoding = False


_thread = _Thread()


class _WarningsWhileDecoding(type):
    """A warning category of which every warning is a member, in a thread that is decoding."""

    def __subclasscheck__(cls, category: type) -> bool:
        return _thread.decoding or super().__subclasscheck__(category)


class _WhileDecoding(Warning, metaclass=_WarningsWhileDecoding):
    """The category that is ignored; nothing is ever warned of it by name."""


def _mute_warnings_while_decoding() -> None:
    """Ignore the warnings of threads that are decoding, and of no others.

    Pillow warns of corrupt metadata, which does not concern the pixels; a host that turns warnings
    into errors would get another answer than one that does not. warnings.catch_warnings swaps the
    filters of the whole process, so threads that decode side by side can leave them broken. This
    filter stays, and matches only while `_thread.decoding` is set in the thread that warns.
    """
    if not warnings.filters or warnings.filters[0][2] is not _WhileDecoding:
        warnings.simplefilter("ignore", _WhileDecoding)
