"""What may be given as an image, what it is called, and the bytes of its file.

Never are more bytes read than allowed, and never from what would block.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vit_edge.errors import ImageDecodeError, ImageTooLargeError, VitEdgeError

ImageLike: TypeAlias = "str | os.PathLike[str] | bytes | BinaryIO | Image.Image | NDArray[np.uint8]"


@dataclass(frozen=True)
class ImageLimits:
    """How large an image may be. Checked against its header, before anything is decoded."""

    max_pixels: int = 50_000_000  # above every phone and most cameras; 200 MB decoded as RGBA
    max_file_bytes: int = 250_000_000  # max_pixels of uncompressed RGBA, and metadata
    # A progressive JPEG makes the decoder walk the image once per scan. libjpeg's own script has
    # 10, mozjpeg tries up to 64; a hostile file of a few kB can hold thousands.
    max_jpeg_scans: int = 100


DEFAULT_LIMITS = ImageLimits()

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|data:")


def describe(source: object) -> str:
    """Name an image in messages: its path, or what it is."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"<{type(source).__name__}, {len(source)} B>"
    if isinstance(source, np.ndarray):
        return f"array {source.dtype}{list(source.shape)}"
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
    else:
        path = getattr(source, "filename" if isinstance(source, Image.Image) else "name", None)
    if path and isinstance(path, (str, bytes)):
        text = os.fsdecode(path)
        return text if text.isprintable() else ascii(text)
    if isinstance(source, Image.Image):
        return f"<Pillow image {source.mode} {source.width}x{source.height}>"
    return f"<{type(source).__name__}>"


def is_url(text: str) -> bool:
    """True for what a browser would fetch, and not for a file that is there."""
    return bool(_URL.match(text)) and not os.path.lexists(text)


def read_source(source: object, name: str, limits: ImageLimits) -> bytes:
    """Read the encoded file behind a path, bytes or a file object.

    Raises:
        ImageDecodeError: It is something else, no regular file, gives no bytes, or fails.
        ImageTooLargeError: It is longer than limits.max_file_bytes.
    """
    if isinstance(source, (str, os.PathLike)):
        return _read_file(source, name, limits)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    if hasattr(source, "read"):
        return _read_stream(cast(BinaryIO, source), name, limits)
    raise ImageDecodeError(
        f"{name}: not an image: expected a path, bytes, a file object, a Pillow image or a uint8 "
        f"array, got {type(source).__name__}."
    )


def _read_file(path: str | os.PathLike[str], name: str, limits: ImageLimits) -> bytes:
    """Read a regular file whole; a FIFO, socket or device is refused and never waited for."""
    # Opening some devices has effects, so the path is looked at first; it may change until it is
    # opened, so the opened file is looked at again, and O_NONBLOCK keeps a FIFO from blocking.
    path, flags = Path(_on_disk(os.fsdecode(path))), os.O_RDONLY
    for flag in ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY"):
        flags |= getattr(os, flag, 0)
    try:
        _require_regular(path.stat(), name, limits)
        with os.fdopen(os.open(path, flags), "rb", buffering=0) as file:
            _require_regular(os.fstat(file.fileno()), name, limits)
            return _read_at_most(file, name, limits)
    except FileNotFoundError:
        if is_url(name):
            raise ImageDecodeError(f"{name}: URLs are not fetched. Download it.") from None
        link = " (a dangling link)" if path.is_symlink() else ""
        raise ImageDecodeError(f"{name}: no such file{link}. Check the path.") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageDecodeError(f"{name}: cannot be read: {reason}.") from None


def _on_disk(path: str) -> str:
    """The same path; text that the locale lacks, such as a table's, names a file in UTF-8."""
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        with contextlib.suppress(UnicodeEncodeError):  # not even UTF-8 has it: no file has it
            return os.fsdecode(path.encode("utf-8"))
    return path


def _read_stream(file: BinaryIO, name: str, limits: ImageLimits) -> bytes:
    """Read a file object as Pillow does: from its start if it can seek, else from where it is.

    Its position is put back and it stays open.
    """
    try:
        seekable = file.seekable() if hasattr(file, "seekable") else hasattr(file, "seek")
        if not seekable:
            return _read_at_most(file, name, limits)
        position = file.tell()
        file.seek(0)
        try:
            return _read_at_most(file, name, limits)
        finally:
            file.seek(position)
    except VitEdgeError:
        raise
    except Exception as error:  # a foreign object: it may raise anything
        raise ImageDecodeError(
            f"{name}: cannot be read: {str(error) or type(error).__name__}."
        ) from error


def _require_regular(status: os.stat_result, name: str, limits: ImageLimits) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _FILE_KINDS.get(stat.S_IFMT(status.st_mode), "a special file")
        raise ImageDecodeError(f"{name}: not an image file: it is {kind}.")
    if status.st_size > limits.max_file_bytes:
        raise _too_long(name, f"{status.st_size:,}", limits)


_FILE_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def _too_long(name: str, found: str, limits: ImageLimits) -> ImageTooLargeError:
    return ImageTooLargeError(
        f"{name}: {found} bytes, at most {limits.max_file_bytes:,} are read "
        "(ImageLimits.max_file_bytes)."
    )


def _read_at_most(file: io.RawIOBase | BinaryIO, name: str, limits: ImageLimits) -> bytes:
    """Read to the end, in as many pieces as the file likes, or to just past the limit."""
    parts: list[bytes] = []
    left = limits.max_file_bytes + 1
    while left > 0:
        part = file.read(min(left, 1 << 24))
        if not isinstance(part, bytes):
            raise ImageDecodeError(
                f"{name}: reading gave {type(part).__name__}, not bytes. Open it in binary mode."
            )
        if not part:
            return parts[0] if len(parts) == 1 else b"".join(parts)
        parts.append(part)
        left -= len(part)
    raise _too_long(name, f"more than {limits.max_file_bytes:,}", limits)
