"""Images are turned as PIL.ImageOps.exif_transpose turns them, whatever cameras write."""

from __future__ import annotations

import io
import itertools
import random
import struct
import warnings
from collections.abc import Iterator

import numpy as np
import PIL
import pytest
from PIL import Image, ImageOps

from vit_edge.images import load_image

# The judge: older ones know one header and no XMP outside PNG, where we do as the newer ones.
pytestmark = pytest.mark.skipif(
    int(PIL.__version__.partition(".")[0]) < 12, reason="Pillow before 12 looks in fewer places"
)

TYPES = {1: "B", 2: "c", 3: "H", 4: "L", 5: "LL", 6: "b", 7: "c", 8: "h", 9: "l", 10: "ll",
         11: "f", 12: "d", 13: "L"}  # fmt: skip
HEADER = b"Exif\0\0"
XMP = b'<x tiff:Orientation="%d"/>'


def photo() -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (6, 9, 3), np.uint8))


def encoded_value(kind: int, value: int, count: int, order: str) -> bytes:
    code = TYPES[kind]
    if code == "c":
        one = str(value).encode()[:1]
    elif len(code) == 2:
        one = struct.pack(order + code, value, 1)
    elif code in "fd":
        one = struct.pack(order + code, float(value))
    else:
        one = struct.pack(order + code, value)
    return one * count


def block(
    entries: list[tuple[int, int, int, int]], order: str = "<", headers: int = 1, cut: int = 0
) -> bytes:
    """EXIF data of entries (tag, type, count, value), without its last `cut` bytes."""
    start, room = 8, 2 + 12 * len(entries) + 4
    directory, heap = struct.pack(order + "H", len(entries)), b""
    for tag, kind, count, value in entries:
        content = encoded_value(kind, value, count, order) if kind in TYPES else bytes(4)
        if len(content) > 4:
            place = struct.pack(order + "L", start + room + len(heap))
            heap += content
        else:
            place = content.ljust(4, b"\0")
        directory += struct.pack(order + "HHL", tag, kind, count) + place
    mark = b"II" if order == "<" else b"MM"
    data = mark + struct.pack(order + "HL", 42, start) + directory + bytes(4) + heap
    return HEADER * headers + data[: len(data) - cut]


def with_info(**info: object) -> Image.Image:
    image = photo()
    image.info.update(info)
    return image


def assert_turned_alike(image: Image.Image, what: object) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image.getexif().get(0x0112)
        except Exception:  # what Pillow cannot read turns nothing
            expected = image
        else:
            image = with_info(**image.info)
            try:
                expected = ImageOps.exif_transpose(image)
            except Exception:  # it was turned, but the other tags cannot be written again
                return
    expected = np.asarray(expected.convert("RGB"))
    found = np.asarray(load_image(image))
    assert found.shape == expected.shape, what
    np.testing.assert_array_equal(found, expected, str(what))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [0, *TYPES, 14, 16, 129])
def test_every_type_and_count_means_what_it_does_to_pillow(kind: int, order: str) -> None:
    for count, value in itertools.product((0, 1, 2, 3), range(1, 9)):
        exif = block([(0x0112, kind, count, value)], order)
        assert_turned_alike(with_info(exif=exif), (kind, count, value))


@pytest.mark.parametrize("headers", [0, 1, 2, 3])
@pytest.mark.parametrize("order", ["<", ">"])
def test_headers_may_be_missing_or_repeated(headers: int, order: str) -> None:
    exif = block([(0x0112, 3, 1, 6)], order, headers)
    assert_turned_alike(with_info(exif=exif), headers)
    assert (np.asarray(load_image(with_info(exif=exif))).shape == (9, 6, 3)) == (headers < 3)


@pytest.mark.parametrize("cut", range(0, 40, 3))
def test_what_ends_too_early_counts_as_far_as_pillow_reads(cut: int) -> None:
    exif = block([(0x0112, 3, 1, 6), (0x0100, 3, 1, 9), (0x010F, 2, 9, 1)], cut=cut)
    assert_turned_alike(with_info(exif=exif), cut)


def test_of_repeated_tags_pillows_counts() -> None:
    for first, second in itertools.product((3, 6, 8), (1, 5)):
        exif = block([(0x0112, 3, 1, first), (0x0112, 4, 1, second)])
        assert_turned_alike(with_info(exif=exif), (first, second))


def places() -> Iterator[dict[str, object]]:
    exif, other = block([(0x0112, 3, 1, 6)]), block([(0x0100, 3, 1, 6)])
    text = f"\nexif\n{len(exif):8}\n{exif.hex()}\n"
    yield {"exif": exif, "xmp": XMP % 3}
    yield {"exif": other, "xmp": XMP % 3}
    yield {"exif": b"", "xmp": XMP % 3}
    yield {"exif": b"", "Raw profile type exif": text}
    yield {"exif": other, "Raw profile type exif": text}
    yield {"Raw profile type exif": text}
    yield {"XML:com.adobe.xmp": (XMP % 5).decode(), "xmp": XMP % 3}
    yield {"XML:com.adobe.xmp": "", "xmp": XMP % 3}
    yield {"xmp": b"<tiff:Orientation>8</tiff:Orientation>"}
    yield {"xmp": XMP % 0}
    yield {"exif": block([(0x0112, 2, 1, 6)]), "xmp": XMP % 3}
    yield {"exif": block([(0x0112, 3, 2, 6)]), "xmp": XMP % 3}
    yield {"exif": block([(0x0112, 3, 1, 0)]), "xmp": XMP % 3}


@pytest.mark.parametrize("info", list(places()), ids=lambda info: "+".join(info))
def test_the_places_are_asked_in_pillows_order(info: dict[str, object]) -> None:
    assert_turned_alike(with_info(**info), info)


@pytest.mark.parametrize(
    ("form", "kind"),
    [*itertools.product(["JPEG", "PNG", "WEBP"], [1, 3, 4, 5, 9, 11]), ("TIFF", 3), ("TIFF", 4)],
)
def test_files_of_every_format_are_turned_alike(form: str, kind: int) -> None:
    for headers in (1, 2):
        exif = block([(0x0112, kind, 1, 6)], ">", headers)
        buffer = io.BytesIO()
        options = (
            {"lossless": True} if form == "WEBP" else {"quality": 100} if form == "JPEG" else {}
        )
        photo().save(buffer, form, exif=exif, **options)
        data = buffer.getvalue()
        with Image.open(io.BytesIO(data)) as image:
            expected = ImageOps.exif_transpose(image).convert("RGB")
        np.testing.assert_array_equal(np.asarray(load_image(data)), np.asarray(expected))


def test_random_and_damaged_blocks_turn_nothing_that_pillow_does_not() -> None:
    rng = random.Random(0)
    turned = 0
    for number in range(3000):
        entries = [
            (rng.choice((0x0112, 0x0112, 0x0100, 0x8769)), rng.choice((*TYPES, 0, 99)),
             rng.choice((0, 1, 1, 1, 2, 5)), rng.randint(0, 9))
            for _ in range(rng.randint(0, 4))
        ]  # fmt: skip
        exif = bytearray(block(entries, rng.choice("<>"), rng.randint(0, 3), rng.choice((0, 0, 9))))
        for _ in range(rng.choice((0, 0, 1, 3))):
            if exif:
                exif[rng.randrange(len(exif))] = rng.randrange(256)
        image = with_info(exif=bytes(exif))
        assert_turned_alike(image, (number, bytes(exif)))
        turned += np.asarray(load_image(image)).shape == (9, 6, 3)
    assert turned > 100  # the blocks are not all damaged
