"""Tell what a file is from its first bytes, whatever its name says."""

from __future__ import annotations

import codecs
import re

from vit_edge.errors import LFS_MAGIC, LFS_POINTER

HEAD_BYTES = 4096  # what is looked at: magic numbers and, for text, enough to find a tag

# The formats that are decoded. The rule: what torchvision's ImageFolder lists (JPEG, PNG, PPM, BMP,
# TIFF, WebP), and what the web and telephones add (GIF, AVIF). All of them have a magic number and
# a decoder in Pillow's wheels. Left out: what starts a program (EPS, WMF, PDF), has no magic number
# (TGA, PCX), or is exotic next to its record of memory errors (JPEG 2000, PSD, FLI, SGI, DDS, ...).
_DECODED = (
    ("JPEG", b"\xff\xd8\xff"),
    ("PNG", b"\x89PNG\r\n\x1a\n"),
    ("GIF", b"GIF87a"),
    ("GIF", b"GIF89a"),
    ("BMP", b"BM"),
    ("TIFF", b"II*\0"),
    ("TIFF", b"MM\0*"),
    ("TIFF", b"II+\0"),
    ("TIFF", b"MM\0+"),
)

# What is recognised only to be refused by name: what telephones, cameras and editors write. Any
# other format is "unknown data".
_REFUSED = (
    ("JPEG 2000", b"\0\0\0\x0cjP  "),
    ("JPEG 2000", b"\xff\x4f\xff\x51"),
    ("JPEG XL", b"\0\0\0\x0cJXL "),
    ("JPEG XL", b"\xff\x0a"),
    ("EPS or PostScript", b"%!PS"),
    ("EPS or PostScript", b"\xc5\xd0\xd3\xc6"),
    ("PDF", b"%PDF"),
    ("camera RAW (Olympus)", b"IIRO"),
    ("camera RAW (Olympus)", b"IIRS"),
    ("camera RAW (Panasonic)", b"IIU\0"),
    ("camera RAW (Fujifilm)", b"FUJIFILMCCD-RAW"),
    ("Photoshop (PSD)", b"8BPS"),
    ("Windows icon", b"\0\0\1\0"),
    ("OpenEXR", b"\x76\x2f\x31\x01"),
    ("Radiance HDR", b"#?RADIANCE"),
    ("DirectDraw surface (DDS)", b"DDS "),
)

_OTHER = (
    ("gzip data", b"\x1f\x8b"),
    ("a zip archive", b"PK\3\4"),
    ("a NumPy file", b"\x93NUMPY"),
    ("a Matroska or WebM video", b"\x1a\x45\xdf\xa3"),
    (LFS_POINTER, LFS_MAGIC),
)


def decoded_format(head: bytes) -> str | None:
    """Name the decodable format these first bytes announce, or None."""
    if head[:2] == b"II" and head[8:10] == b"CR":
        return None  # Canon CR2 is a TIFF whose first image is a thumbnail
    if name := _announced(_DECODED, head):
        return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if re.match(rb"P[1-6f][ \t\r\n#]", head):
        return "PPM"
    if _iso_brands(head) & {b"avif", b"avis"}:
        return "AVIF"
    return None


def refused_format(head: bytes) -> str | None:
    """Name the image format that is recognised but never decoded here, or None."""
    if name := _announced(_REFUSED, head):
        return name
    if head[:2] == b"II" and head[8:10] == b"CR":
        return "camera RAW (Canon CR2)"
    brands = _iso_brands(head)
    if b"crx " in brands:
        return "camera RAW (Canon CR3)"
    if brands & {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}:
        return "HEIC"
    if _is_tga(head):
        return "TGA"
    if b"<svg" in head.lower():
        return "SVG"
    return None


def appearance(head: bytes) -> str:
    """Say what bytes that are no image look like, for an error message."""
    if not head:
        return "an empty file"
    if name := _announced(_OTHER, head):
        return name
    if _iso_brands(head):
        return "a video or other ISO media file"
    if not head.strip(b"\0"):
        return "nothing but zero bytes"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "an HTML page (a download that went wrong?)"
    if text.startswith(b"<?xml"):
        return "an XML document"
    if _is_text(head):
        return f"text, beginning {head[:40].decode('utf-8', 'replace')!r}"
    return f"unknown data, beginning {head[:8].hex(' ')}"


def _announced(formats: tuple[tuple[str, bytes], ...], head: bytes) -> str | None:
    return next((name for name, magic in formats if head.startswith(magic)), None)


def _iso_brands(head: bytes) -> set[bytes]:
    """Brands in the `ftyp` box of an ISO base media file (ISO/IEC 14496-12, 4.3); else empty."""
    if head[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(head[:4], "big"), len(head))
    return {head[8:12]} | {head[at : at + 4] for at in range(16, end, 4)}


def _is_tga(head: bytes) -> bool:
    """Whether these bytes can head a TGA file (TGA 2.0, p. 6), which has no magic number."""
    if len(head) < 18 or head[1] > 1 or head[16] not in (8, 15, 16, 24, 32):
        return False
    if head[1]:  # with a palette
        return head[2] in (1, 9)
    return head[2] in (2, 3, 10, 11) and not any(head[3:8])


def _is_text(head: bytes) -> bool:
    """Whether these are UTF-8 characters without control codes other than white space."""
    if any(byte < 32 and byte not in b"\t\n\r\f" for byte in head):
        return False
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # the last character may be cut
    except UnicodeDecodeError:
        return False
    return True
