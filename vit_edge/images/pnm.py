"""PNM files in the form that is read fast: binary, without comments, of 8 or 16 bits.

Pillow decodes text, and samples whose white is another value, one sample at a time, and text with
comments in time that grows with the square of its length.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vit_edge.errors import ImageDecodeError

_MAX_HEADER_BYTES = 1 << 16  # three numbers, and what somebody wrote about the picture
_MAX_DIGITS = 10  # Pillow's
_SPACE = b" \t\n\v\f\r"
_COMMENT = re.compile(rb"#[^\r\n]*[\r\n]?")
_PIECE_BYTES = 1 << 22  # of text that is turned into numbers at once


class Header(NamedTuple):
    """What stands before the samples."""

    kind: bytes  # P1 to P6
    size: tuple[int, int]  # width, height
    white: int  # the value that stands for it; 1 in bitmaps
    end: int  # where the samples begin


def read_header(data: bytes, name: str) -> Header | None:
    """Read the header of P1 to P6; None for other kinds, such as floats.

    Raises:
        ImageDecodeError: It is damaged, or longer than any header is.
    """
    kind, at = data[:2], 2
    if kind not in (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6"):
        return None
    numbers = []
    for _ in range(2 if kind in (b"P1", b"P4") else 3):
        number, at = _read_number(data, at, name)
        numbers.append(number)
    width, height, white = [*numbers, 1][:3]
    if not 0 < white < 65536:
        raise ImageDecodeError(f"{name}: a PNM file whose white is {white}, not 1 to 65535.")
    return Header(kind, (width, height), white, at)


def simplified(data: bytes, header: Header, name: str) -> bytes:
    """Return the same picture as a file that Pillow hands to its C code as it is.

    Raises:
        ImageDecodeError: Samples are missing, are no numbers, or exceed white.
    """
    kind, (width, height), white, end = header
    deep = kind in (b"P2", b"P5") and white > 255
    if kind == b"P4" or (kind in (b"P5", b"P6") and white == (65535 if deep else 255)):
        return data
    count = width * height * (3 if kind in (b"P3", b"P6") else 1)
    if kind == b"P1":
        return b"P4 %d %d\n" % header.size + _bits(data[end:], header.size, name)
    most = 65535 if deep else 255
    levels = np.minimum(np.rint(np.arange(65536) / white * most), most)
    table = levels.astype(">u2" if deep else np.uint8)
    if kind in (b"P5", b"P6"):
        wide = np.dtype(">u2" if white > 255 else np.uint8)
        if len(data) - end < count * wide.itemsize:
            raise _ended(name)
        samples = table[np.frombuffer(data, wide, count, end)]
    else:
        samples = _samples_from_text(data[end:], count, white, table, name)
    new_kind = b"P5" if kind in (b"P2", b"P5") else b"P6"
    body: bytes = samples.tobytes()
    return b"%s %d %d %d\n" % (new_kind, width, height, most) + body


def _read_number(data: bytes, at: int, name: str) -> tuple[int, int]:
    """Read one number of a header, and where the byte after it and its delimiter is."""
    digits, in_comment = b"", False
    for place in range(at, min(len(data), _MAX_HEADER_BYTES)):
        byte = data[place : place + 1]
        if in_comment:
            in_comment = byte not in b"\r\n"
        elif byte == b"#":
            in_comment = True
        elif byte not in _SPACE:
            digits += byte
            if not digits.isdigit() or len(digits) > _MAX_DIGITS:
                break
        elif digits:
            return int(digits), place + 1
    raise ImageDecodeError(
        f"{name}: not the header of a PNM file: expected its numbers in the first "
        f"{_MAX_HEADER_BYTES:,} bytes, got {digits!r} after {data[:2].decode('ascii')}."
    )


def _bits(text: bytes, size: tuple[int, int], name: str) -> bytes:
    """Pack the digits of a bitmap as P4 does: each row from a new byte on."""
    width, height = size
    digits = _without_comments(text).translate(None, _SPACE)[: width * height]
    if digits.translate(None, b"01"):
        raise ImageDecodeError(f"{name}: a bitmap in text with other digits than 0 and 1.")
    if len(digits) < width * height:
        raise _ended(name)
    bits = np.frombuffer(digits, np.uint8).reshape(height, width) - ord("0")
    return np.packbits(bits, axis=1).tobytes()


def _samples_from_text(
    text: bytes, count: int, white: int, table: NDArray[np.generic], name: str
) -> NDArray[np.generic]:
    text = _without_comments(text)
    samples, known, at = np.empty(count, table.dtype), 0, 0
    while known < count and at < len(text):
        end = at + _PIECE_BYTES
        while end < len(text) and text[end] not in _SPACE:  # not within a number
            end += 1
            if end > at + _PIECE_BYTES + _MAX_DIGITS:
                raise ImageDecodeError(f"{name}: holds something that is no number.")
        piece = b"".join((text[at:end], b" "))
        at = end
        if not piece.strip(_SPACE):
            continue
        numbers = _numbers(piece, name)[: count - known]
        if numbers.size and (numbers.min() < 0 or numbers.max() > white):
            raise ImageDecodeError(f"{name}: a sample that is not between 0 and {white}.")
        samples[known : known + numbers.size] = table[numbers]
        known += numbers.size
    if known < count:
        raise _ended(name)
    return samples


def _numbers(piece: bytes, name: str) -> NDArray[np.int64]:
    if piece.translate(None, b"0123456789" + _SPACE):
        raise ImageDecodeError(f"{name}: holds something that is no number.")
    return np.fromstring(piece.decode("ascii"), np.int64, sep=" ")


def _without_comments(text: bytes) -> bytes:
    return _COMMENT.sub(b"", text) if b"#" in text else text


def _ended(name: str) -> ImageDecodeError:
    return ImageDecodeError(f"{name}: a PNM file that ends before its last sample. Get it again.")
