"""Every kind of image becomes upright, opaque RGB, or one of our errors says why not."""

from __future__ import annotations

import io
import logging
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import tracemalloc
import warnings
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, PngImagePlugin

from vit_edge.errors import (
    ArrayError,
    ImageDecodeError,
    ImageError,
    ImageTooLargeError,
    UnsupportedImageError,
)
from vit_edge.images import ImageLimits
from vit_edge.images.files import describe
from vit_edge.images.load import load_image

WHITE = (255, 255, 255)


def _photo(width: int = 40, height: int = 30) -> Image.Image:
    """A smooth picture without any symmetry."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [5 * x + y, 3 * y + 40 + 0 * x, 200 - 2 * x - y]
    return Image.fromarray(np.clip(np.stack(channels, axis=2), 0, 255).astype(np.uint8))


def _encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _array(source: Any, **options: Any) -> NDArray[np.uint8]:
    image = load_image(source, **options)
    assert image.mode == "RGB"
    return np.asarray(image)


def _png(
    width: int, height: int, *chunks: tuple[bytes, bytes], bits: int = 8, colour: int = 0
) -> bytes:
    """A PNG, grey (colour 0) or RGB (2), with these chunks between header and end."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", header), *chunks, (b"IEND", b"")):
        crc = zlib.crc32(kind + body)
        data += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)
    return data


# --- sources ---------------------------------------------------------------------------------


def test_all_kinds_of_sources_give_the_same_image(tmp_path: Path) -> None:
    data = _encoded(_photo(), "PNG")
    path = tmp_path / "photo.jpg"  # a PNG by content
    path.write_bytes(data)
    expected = np.asarray(_photo())
    with path.open("rb") as file, Image.open(path) as lazy:
        for source in (path, str(path), data, bytearray(data), file, io.BytesIO(data), lazy):
            np.testing.assert_array_equal(_array(source), expected)
    np.testing.assert_array_equal(_array(_photo()), expected)
    np.testing.assert_array_equal(_array(expected), expected)


def test_a_file_object_is_read_from_its_start_and_left_where_it_was() -> None:
    file = io.BytesIO(_encoded(_photo(), "PNG"))
    file.seek(0, io.SEEK_END)
    load_image(file)
    assert not file.closed
    assert file.tell() == len(file.getvalue())


def test_a_stream_that_cannot_seek_is_read_from_where_it_is() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as out:
        out.write(_encoded(_photo(), "JPEG"))
    with os.fdopen(reading, "rb", buffering=0) as file:
        assert load_image(file).size == (40, 30)


def test_an_endless_stream_is_refused() -> None:
    class Endless(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            return b"\xff" * size

    with pytest.raises(ImageTooLargeError, match="more than 1,000 bytes"):
        load_image(Endless(), limits=ImageLimits(max_file_bytes=1000))  # type: ignore[arg-type]


def test_a_text_file_object_is_refused() -> None:
    with pytest.raises(ImageDecodeError, match="Open it in binary mode"):
        load_image(io.StringIO("text"))  # type: ignore[arg-type]


def test_a_file_object_that_fails_is_an_image_error() -> None:
    class Broken:
        def read(self, size: int) -> bytes:
            raise RuntimeError("the tape tore")

    with pytest.raises(ImageDecodeError, match="the tape tore"):
        load_image(Broken())  # type: ignore[arg-type]


@pytest.mark.parametrize("source", [None, 3, ["a.jpg"], object()])
def test_what_is_no_image_at_all_is_refused_by_its_type(source: Any) -> None:
    with pytest.raises(ImageDecodeError, match=f"got {type(source).__name__}"):
        load_image(source)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("dir/photo.jpg", "dir/photo.jpg"),
        (Path("photo.jpg"), "photo.jpg"),
        ("\x1b[31mred.jpg", r"'\x1b[31mred.jpg'"),
        (b"1234", "<bytes, 4 B>"),
        (np.zeros((4, 5, 3), np.uint8), "array uint8[4, 5, 3]"),
        (Image.new("L", (5, 4)), "<Pillow image L 5x4>"),
        (io.BytesIO(), "<BytesIO>"),
        (None, "<NoneType>"),
    ],
)
def test_sources_have_names_for_messages(source: object, expected: str) -> None:
    assert describe(source) == expected


# --- modes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "RGBX", "LA", "PA", "RGBA"]
)
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = _photo().convert("LA").convert("PA") if mode == "PA" else _photo().convert(mode)
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_allclose(_array(image), expected, atol=1)


@pytest.mark.parametrize("mode", ["La", "RGBa"])
def test_premultiplied_alpha_is_composited(mode: str) -> None:
    image = Image.new("LA" if mode == "La" else "RGBA", (3, 3), 0).convert(mode)
    assert (_array(image) == 255).all()


def test_lab_is_refused() -> None:
    with pytest.raises(UnsupportedImageError, match="CIELAB"):
        load_image(Image.new("LAB", (4, 4)))


@pytest.mark.parametrize("ycck", [False, True])
def test_a_cmyk_jpeg_is_converted(ycck: bool) -> None:
    data = _encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100)
    if ycck:  # Adobe's marker says how the four channels are coded: 0 CMYK, 2 YCCK
        at = data.index(b"Adobe") + 11
        data = data[:at] + b"\2" + data[at + 1 :]
        with Image.open(io.BytesIO(data)) as reference:
            expected = np.asarray(reference.convert("RGB"))
    else:
        expected = np.full((16, 16, 3), (255, 0, 0), np.uint8)
    np.testing.assert_allclose(_array(data), expected, atol=3)


# --- transparency ----------------------------------------------------------------------------


def _transparent_images() -> Iterator[tuple[str, Image.Image]]:
    """Images whose left half is fully transparent and whose right half is opaque grey 100."""
    alpha = Image.new("L", (8, 4), 255)
    alpha.paste(0, (0, 0, 4, 4))
    rgba = Image.new("RGBA", (8, 4), (100, 100, 100, 255))
    rgba.putalpha(alpha)
    yield "RGBA", rgba
    yield "LA", rgba.convert("LA")
    for mode, hidden in (("L", 7), ("RGB", (7, 7, 7))):
        image = Image.new(mode, (8, 4), 100 if mode == "L" else (100, 100, 100))
        image.paste(hidden, (0, 0, 4, 4))
        image.info["transparency"] = hidden
        yield f"{mode}+tRNS", image
    for name, transparency in (("index", 1), ("bytes", b"\xff\x00")):
        image = Image.new("P", (8, 4), 0)
        image.putpalette([100, 100, 100, 7, 7, 7])
        image.paste(1, (0, 0, 4, 4))
        image.info["transparency"] = transparency
        yield f"P+{name}", image


@pytest.mark.parametrize(("name", "image"), list(_transparent_images()), ids=lambda v: str(v)[:10])
@pytest.mark.parametrize("background", [WHITE, (0, 0, 0), (10, 200, 30)])
@pytest.mark.parametrize("form", ["PNG", None])
def test_transparency_is_composited_on_the_background(
    name: str, image: Image.Image, background: tuple[int, int, int], form: str | None
) -> None:
    found = _array(_encoded(image, form) if form else image, background=background)
    assert (found[:, :4] == background).all(), name
    assert (found[:, 4:] == 100).all(), name


def test_half_transparent_pixels_are_mixed() -> None:
    image = Image.new("RGBA", (2, 2), (200, 0, 100, 128))
    expected = [255 * 127 / 255 + c * 128 / 255 for c in (200, 0, 100)]
    np.testing.assert_allclose(_array(_encoded(image, "PNG"))[0, 0], expected, atol=0.51)


def test_a_transparent_bilevel_png_is_composited() -> None:
    image = Image.new("1", (4, 4), 1)
    data = _encoded(image, "PNG", transparency=1)
    assert (_array(data, background=(1, 2, 3)) == (1, 2, 3)).all()


# --- deep samples ----------------------------------------------------------------------------


def _ramp_16_bit() -> NDArray[np.uint16]:
    ramp = np.linspace(0, 65535, 64 * 64).round()
    return np.asarray(ramp.reshape(64, 64), np.uint16)


def _rounded(values: NDArray[Any], white: float) -> NDArray[np.uint8]:
    return np.floor(values.astype(np.float64) * 255 / white + 0.5).astype(np.uint8)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM", None])
def test_16_bit_grey_is_scaled_and_not_clipped(form: str | None) -> None:
    image = Image.fromarray(_ramp_16_bit())
    pgm = b"P5 64 64 65535\n" + _ramp_16_bit().astype(">u2").tobytes()
    source = pgm if form == "PPM" else _encoded(image, form) if form else image
    found = _array(source)
    np.testing.assert_array_equal(found[..., 0], _rounded(_ramp_16_bit(), 65535))


def test_a_dark_16_bit_png_stays_dark() -> None:
    data = _encoded(Image.fromarray(np.full((4, 4), 200, np.uint16)), "PNG")
    assert (_array(data) == 1).all()


def test_big_endian_16_bit_tiff_is_scaled() -> None:
    image = Image.frombytes("I;16B", (64, 64), _ramp_16_bit().astype(">u2").tobytes())
    found = _array(_encoded(image, "TIFF"))
    np.testing.assert_array_equal(found[..., 0], _rounded(_ramp_16_bit(), 65535))


def test_16_bit_colour_png_is_scaled_within_a_level() -> None:
    ramp = _ramp_16_bit()
    rows = b"".join(b"\0" + np.repeat(row, 3).astype(">u2").tobytes() for row in ramp)
    data = _png(64, 64, (b"IDAT", zlib.compress(rows)), bits=16, colour=2)
    difference = _array(data)[..., 1].astype(int) - _rounded(ramp, 65535)
    assert np.abs(difference).max() <= 1


def test_a_transparent_value_of_16_bit_grey_is_composited() -> None:
    values = np.full((4, 4), 40_000, np.uint16)
    values[0] = 1234
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = ((b"tRNS", struct.pack(">H", 1234)), (b"IDAT", zlib.compress(rows)))
    data = _png(4, 4, *chunks, bits=16)
    found = _array(data, background=(0, 255, 0))
    assert (found[0] == (0, 255, 0)).all()
    assert (found[1:] == 156).all()


def test_a_transparent_colour_of_a_16_bit_png_is_composited() -> None:
    values = np.full((4, 4, 3), 40_000, np.uint16)
    values[0] = 1234
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = ((b"tRNS", struct.pack(">HHH", 1234, 1234, 1234)), (b"IDAT", zlib.compress(rows)))
    found = _array(_png(4, 4, *chunks, bits=16, colour=2), background=(0, 255, 0))
    assert (found[0] == (0, 255, 0)).all()
    assert (found[1:] == 156).all()


def test_a_12_bit_tiff_is_scaled_to_its_own_white() -> None:
    levels = np.linspace(0, 4095, 32).round().astype(np.uint32)
    packed = b"".join(
        int(first << 12 | second).to_bytes(3, "big")
        for first, second in zip(levels[::2], levels[1::2], strict=True)
    )
    data = _encoded(Image.frombytes("I;16", (6, 4), packed), "TIFF")  # 4 rows of 12 bytes
    for tag, kind, before, after in ((256, 4, 6, 8), (258, 3, 16, 12)):
        entry = struct.pack("<HHII", tag, kind, 1, before)
        assert entry in data
        data = data.replace(entry, struct.pack("<HHII", tag, kind, 1, after))
    np.testing.assert_array_equal(_array(data)[..., 0].ravel(), _rounded(levels, 4095))


@pytest.mark.parametrize(("most", "white"), [(255, 255), (256, 65535), (65535, 65535)])
def test_32_bit_integers_are_scaled_by_the_least_white_that_holds_them(
    most: int, white: int, caplog: pytest.LogCaptureFixture
) -> None:
    values = np.linspace(0, most, 64).round().astype(np.int32).reshape(8, 8)
    found = _array(_encoded(Image.fromarray(values), "TIFF"))
    np.testing.assert_array_equal(found[..., 0], _rounded(values, white))
    assert f"{white} is taken as white" in caplog.text


@pytest.mark.parametrize(("most", "white"), [(1.0, 1), (200.5, 255), (3000.0, 65535)])
def test_floats_are_scaled_by_the_least_white_that_holds_them(most: float, white: int) -> None:
    values = np.linspace(0, most, 64).astype(np.float32).reshape(8, 8)
    found = _array(_encoded(Image.fromarray(values), "TIFF"))[..., 0]
    np.testing.assert_allclose(found, values * (255 / white), atol=0.501)


@pytest.mark.parametrize("bad", [-0.5, float("nan"), float("inf"), 1e6])
def test_floats_that_do_not_say_what_white_is_are_refused(bad: float) -> None:
    image = Image.fromarray(np.array([[0, bad]], np.float32))
    with pytest.raises(UnsupportedImageError, match=r"Scale them to 0\.\.255"):
        load_image(image)


# --- orientation -----------------------------------------------------------------------------


def _exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_exif_orientation_is_applied_as_pillow_does(form: str, orientation: int) -> None:
    if form == "AVIF" and form not in Image.registered_extensions().values():
        pytest.skip("this Pillow has no AVIF")
    if form == "TIFF":
        data = _encoded(_photo(), form, tiffinfo={0x0112: orientation})
    else:
        data = _encoded(_photo(), form, exif=_exif(orientation))
    with Image.open(io.BytesIO(data)) as reference:
        expected = np.asarray(ImageOps.exif_transpose(reference).convert("RGB"))
    assert expected.shape[:2] == ((30, 40) if orientation < 5 else (40, 30))
    np.testing.assert_array_equal(_array(data), expected)


def test_an_opened_tiff_is_not_turned_twice() -> None:
    data = _encoded(_photo(), "TIFF", tiffinfo={0x0112: 6})
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(_array(image), _array(data))


def test_orientation_in_xmp_and_in_imagemagicks_text_is_applied() -> None:
    xmp, magick = PngImagePlugin.PngInfo(), PngImagePlugin.PngInfo()
    xmp.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    block = _exif(6)
    magick.add_text("Raw profile type exif", f"\nexif\n{len(block):8}\n{block.hex()}\n")
    expected = np.asarray(_photo().transpose(Image.Transpose.ROTATE_270))
    for info in (xmp, magick):
        np.testing.assert_array_equal(_array(_encoded(_photo(), "PNG", pnginfo=info)), expected)


@pytest.mark.parametrize(
    "block", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", _exif(6)[:16], b"Exif\0\0nonsense"]
)
def test_corrupt_exif_is_ignored_with_one_warning(
    block: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    data = _encoded(_photo(), "PNG", exif=block)
    np.testing.assert_array_equal(_array(data), np.asarray(_photo()))
    assert [r.name for r in caplog.records if "corrupt EXIF" in r.message] == ["vit_edge"]


@pytest.mark.parametrize("headers", [1, 2])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [(1, "B"), (3, "H"), (4, "L"), (9, "l")])
def test_orientation_is_read_as_cameras_write_it(
    headers: int, order: str, kind: tuple[int, str]
) -> None:
    number, code = kind
    value = struct.pack(order + code, 6).ljust(4, b"\0")
    entry = struct.pack(f"{order}HHL", 0x0112, number, 1) + value
    directory = struct.pack(f"{order}HLH", 42, 8, 1) + entry + bytes(4)
    block = b"Exif\0\0" * headers + {"<": b"II", ">": b"MM"}[order] + directory
    data = _encoded(_photo(), "WEBP", lossless=True, exif=block)
    turned = _photo().transpose(Image.Transpose.ROTATE_270)
    expected = np.asarray(_photo() if code == "B" else turned)  # as Pillow: no turn from a BYTE
    np.testing.assert_array_equal(_array(data), expected)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_outside_1_to_8_changes_nothing(orientation: int) -> None:
    data = _encoded(_photo(), "PNG", exif=_exif(orientation))
    np.testing.assert_array_equal(_array(data), np.asarray(_photo()))


# --- several frames --------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
def test_the_first_frame_is_used_and_that_is_said_once(
    form: str, caplog: pytest.LogCaptureFixture
) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    if form == "MPO":  # two JPEGs, the first of which has a marker; Pillow 10.1 writes broken ones
        first, second = (_encoded(frame, "JPEG") for frame in frames[:2])
        data = first[:2] + b"\xff\xe2\0\x0aMPF\0II*\0" + first[2:] + second
    else:
        data = _encoded(frames[0], form, save_all=True, append_images=frames[1:])
    np.testing.assert_allclose(_array(data), np.asarray(frames[0]), atol=2)
    assert len([r for r in caplog.records if "several frames" in r.message]) == 1


def test_a_single_frame_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    for form in ("GIF", "PNG", "WEBP", "TIFF", "JPEG", "BMP", "PPM"):
        load_image(_encoded(_photo(), form))
    assert not caplog.records


# --- damaged files ---------------------------------------------------------------------------

TRUNCATABLE = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")


@pytest.mark.parametrize("form", TRUNCATABLE)
@pytest.mark.parametrize("overlook", [False, True])
def test_a_truncated_file_is_refused_or_whole_but_never_grey_filled(
    form: str, overlook: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", overlook)  # what a careless host does
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    data = _encoded(Image.fromarray(noise), form)
    whole = _array(data)
    refused = 0
    for length in [*range(1, len(data) - 40, len(data) // 60), *range(len(data) - 40, len(data))]:
        try:
            np.testing.assert_array_equal(_array(data[:length]), whole)
        except ImageError:
            refused += 1
    assert refused >= 60


def test_a_tiff_with_compressed_strips_is_refused_when_truncated() -> None:
    data = _encoded(_photo(200, 200), "TIFF", compression="tiff_lzw")
    strips_end = len(data) - 200  # Pillow writes the strips before or after the directory
    for cut in (data[: strips_end // 2], data[:-100]):
        with pytest.raises(ImageDecodeError):
            load_image(cut)


@pytest.mark.parametrize("form", TRUNCATABLE)
def test_flipped_bytes_give_an_image_or_an_image_error(form: str) -> None:
    data = _encoded(_photo(), form)
    random = np.random.default_rng(1)
    for _ in range(150):
        broken = bytearray(data)
        for at in random.integers(0, min(len(data), 400), 3):
            broken[at] = random.integers(0, 256)
        with suppress(ImageError):
            assert load_image(bytes(broken)).mode == "RGB"


@pytest.mark.parametrize(
    ("data", "looks_like"),
    [
        (b"", "an empty file"),
        (b"<!DOCTYPE html><html>404</html>", "an HTML page"),
        (b"hello, world", "text, beginning 'hello"),
        ("grün, grün".encode(), "text, beginning"),
        (b"\x1f\x8b\x08\0", "gzip data"),
        (b"PK\3\4rest", "a zip archive"),
        (b"\0" * 100, "nothing but zero bytes"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", "a video"),
        (b"\x93NUMPY\1\0", "a NumPy file"),
        (b"\x01\x02\x03\x04", "unknown data, beginning 01 02 03 04"),
        (b"BMnot a bitmap", "cannot be decoded"),
    ],
)
def test_what_is_no_image_is_refused_with_what_it_looks_like(
    data: bytes, looks_like: str, tmp_path: Path
) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)
    with pytest.raises(ImageDecodeError, match=re.escape(looks_like)) as raised:
        load_image(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "camera RAW"),
        (b"II*\0\x10\0\0\0CR\2\0", "camera RAW"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"%PDF-1.7", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "EPS"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"\xff\x0a\0\0", "JPEG XL"),
        (b"8BPS\0\1", "Photoshop"),
        (b"\0\0\1\0\1\0\x10\x10", "Windows icon"),
        (b"\0\0\2" + b"\0" * 9 + b"\x08\0\x08\0\x18\0", "TGA"),
    ],
)
def test_image_formats_that_are_not_decoded_are_named(data: bytes, name: str) -> None:
    with pytest.raises(UnsupportedImageError, match=name):
        load_image(data)


def test_a_raw_photo_that_begins_with_its_thumbnail_is_refused() -> None:
    with pytest.raises(UnsupportedImageError, match="camera RAW"):
        load_image(_encoded(_photo(), "TIFF", tiffinfo={254: 1}))


def test_avif_without_its_decoder_is_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vit_edge.images.decode._avif_is_built_in", lambda: False)
    with pytest.raises(UnsupportedImageError, match=r"Pillow >= 11\.3"):
        load_image(b"\0\0\0\x18ftypavif\0\0\0\0avifmif1")


# --- what is no regular file -----------------------------------------------------------------


def test_a_fifo_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.jpg")
    with pytest.raises(ImageDecodeError, match="it is a FIFO"):
        load_image(tmp_path / "fifo.jpg")


def test_a_fifo_that_takes_the_place_of_a_file_does_not_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "file.jpg").write_bytes(b"x")
    regular = (tmp_path / "file.jpg").stat()
    monkeypatch.setattr(Path, "stat", lambda self, **_: regular)  # what was there a moment ago
    with pytest.raises(ImageDecodeError, match="it is a FIFO"):
        load_image(tmp_path / "fifo.jpg")


def test_a_directory_a_device_and_a_socket_are_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(tmp_path)  # the path of a socket is limited to 108 bytes
        try:
            listener.bind("s.jpg")
        finally:
            os.chdir(here)
        for path, kind in ((tmp_path, "a directory"), ("/dev/zero", "a device")):
            with pytest.raises(ImageDecodeError, match=kind):
                load_image(path)
        with pytest.raises(ImageDecodeError, match="a socket"):
            load_image(tmp_path / "s.jpg")


def test_missing_files_and_dangling_links_are_refused(tmp_path: Path) -> None:
    (tmp_path / "link.jpg").symlink_to(tmp_path / "nowhere.jpg")
    with pytest.raises(ImageDecodeError, match="dangling link"):
        load_image(tmp_path / "link.jpg")
    with pytest.raises(ImageDecodeError, match="no such file. Check"):
        load_image(tmp_path / "missing.jpg")


@pytest.mark.parametrize("path", ["a\0b.jpg", "x" * 5000, "photo.jpg/inside.jpg"])
def test_impossible_paths_are_refused(path: str, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"x")
    with pytest.raises(ImageDecodeError):
        load_image(str(tmp_path / path))


# --- too large -------------------------------------------------------------------------------


def _headers_of_large_images() -> Iterator[tuple[str, bytes]]:
    """Files of a few bytes that promise more than 50 million pixels."""
    yield "PNG 400 Mpx", _png(20_000, 20_000, (b"IDAT", zlib.compress(b"\0")))
    yield "PNG 169 Mpx", _png(13_000, 13_000, (b"IDAT", zlib.compress(b"\0")))
    yield "GIF", b"GIF89a" + struct.pack("<HH", 65535, 65535) + _encoded(_photo(), "GIF")[10:]
    bmp = _encoded(_photo(), "BMP")
    yield "BMP", bmp[:18] + struct.pack("<ii", 30_000, 30_000) + bmp[26:]
    jpeg = _encoded(_photo(), "JPEG")
    at = jpeg.index(b"\xff\xc0") + 5
    yield "JPEG", jpeg[:at] + struct.pack(">HH", 65000, 65000) + jpeg[at + 4 :]
    yield "PPM", b"P6 100000 100000 255\n"
    webp = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + b"\xfe\x3f\0\xfe\x3f\0"
    yield "WEBP", b"RIFF" + struct.pack("<I", len(webp)) + webp


@pytest.mark.parametrize(
    ("name", "data"),
    list(_headers_of_large_images()),
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_large_images_are_refused_from_the_header(name: str, data: bytes) -> None:
    # WebP: libwebp itself already refuses a header without any frame behind it.
    expected = ImageError if name == "WEBP" else ImageTooLargeError
    with pytest.raises(expected):
        load_image(data)


def test_the_pixel_limit_holds_for_arrays_and_pillow_images() -> None:
    limits = ImageLimits(max_pixels=99)
    for source in (np.zeros((10, 10, 3), np.uint8), Image.new("L", (10, 10))):
        with pytest.raises(ImageTooLargeError, match="10 x 10 = 100 pixels, at most 99"):
            load_image(source, limits=limits)
    assert load_image(Image.new("L", (9, 11)), limits=limits).size == (9, 11)


def test_a_raised_limit_works_without_pillows_own_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # warns above 100, raises above 200
    assert load_image(_encoded(_photo(), "PNG")).size == (40, 30)


def test_the_limit_of_bytes_holds_for_files(tmp_path: Path) -> None:
    path = tmp_path / "photo.bmp"
    path.write_bytes(_encoded(_photo(), "BMP"))
    with pytest.raises(ImageTooLargeError, match="3,654 bytes, at most 1,000"):
        load_image(path, limits=ImageLimits(max_file_bytes=1000))


def test_a_progressive_jpeg_of_many_scans_is_refused() -> None:
    data = _encoded(_photo(), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    many = data[:last] + data[last:-2] * 200 + data[-2:]
    with pytest.raises(ImageTooLargeError, match="scans, at most 100"):
        load_image(many)
    assert load_image(data).size == (40, 30)


def test_start_of_scan_bytes_in_metadata_or_behind_the_image_are_not_counted() -> None:
    data = _encoded(_photo(), "JPEG", comment=b"\xff\xda" * 500) + b"\xff\xda" * 500
    assert load_image(data).size == (40, 30)


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP"])
def test_a_chunk_that_inflates_to_gigabytes_is_bounded(kind: bytes) -> None:
    bomb = zlib.compress(bytes(50_000_000), 9)
    image = zlib.compress(b"\0\0" * 1)
    data = _png(1, 1, (kind, b"a\0\0" + bomb), (b"IDAT", image))
    tracemalloc.start()
    try:
        with suppress(ImageError):
            load_image(data)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 10_000_000


# --- arrays ----------------------------------------------------------------------------------


def test_a_grey_array_is_taken_as_grey() -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    np.testing.assert_array_equal(_array(grey), np.repeat(grey[..., None], 3, axis=2))


def test_an_array_of_any_strides_is_taken() -> None:
    array = np.asarray(_photo())
    for view in (
        array[::2, ::-3],
        array[..., ::-1],
        array.transpose(1, 0, 2),
        np.asfortranarray(array),
    ):
        np.testing.assert_array_equal(_array(view), view)


@pytest.mark.parametrize(
    ("array", "hint"),
    [
        (np.zeros((4, 4, 3), np.float32), r"\(image \* 255\)"),
        (np.full((4, 4, 3), 200.0), r"\(image\)\.round\(\)"),
        (np.full((4, 4, 3), np.nan), "NaN"),
        (np.zeros((4, 4, 3), bool), r"astype\(np\.uint8\) \* 255"),
        (np.zeros((4, 4, 3), np.uint16), "// 257"),
        (np.zeros((4, 4, 3), np.int64), "other integers"),
        (np.array([[object()]]), "no numbers"),
        (np.zeros((3, 224, 224), np.uint8), r"image\.transpose\(1, 2, 0\)"),
        (np.zeros((4, 4, 4), np.uint8), "4 channels"),
        (np.zeros((4, 4, 1), np.uint8), r"image\[:, :, 0\]"),
        (np.zeros((4, 4, 7), np.uint8), "7 channels"),
        (np.zeros((2, 4, 4, 3), np.uint8), "a batch"),
        (np.zeros((4,), np.uint8), "1 axes"),
        (np.zeros((), np.uint8), "0 axes"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
    ],
)
def test_other_arrays_are_refused_with_the_way_to_convert(array: NDArray[Any], hint: str) -> None:
    with pytest.raises(ArrayError, match=hint) as raised:
        load_image(array)
    assert describe(array) in str(raised.value)


# --- Pillow images ---------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["P", "RGBA", "I;16", "RGB", "L", "CMYK"])
def test_the_image_of_the_caller_is_left_as_it_is(mode: str) -> None:
    image = Image.new(mode, (6, 5), 3)
    image.info.update(exif=_exif(6))
    before = (image.mode, image.size, image.tobytes(), dict(image.info))
    assert load_image(image).size == (5, 6)
    assert (image.mode, image.size, image.tobytes(), image.info) == before


def test_a_lazy_truncated_image_is_refused() -> None:
    with (
        Image.open(io.BytesIO(_encoded(_photo(), "JPEG")[:-100])) as image,
        pytest.raises(ImageDecodeError),
    ):
        load_image(image)


def test_a_closed_image_is_refused(tmp_path: Path) -> None:
    _photo().save(tmp_path / "photo.png")
    with Image.open(tmp_path / "photo.png") as image:
        pass
    image.close()
    with pytest.raises(ImageDecodeError, match="photo.png"):
        load_image(image)


def test_a_lazy_eps_is_refused_and_never_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import EpsImagePlugin

    def ghostscript(*_: object, **__: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", ghostscript)
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    with Image.open(io.BytesIO(eps)) as image, pytest.raises(UnsupportedImageError, match="EPS"):
        load_image(image)


# --- warnings, threads, imports --------------------------------------------------------------


def _tiff_that_makes_pillow_warn() -> bytes:
    data = _encoded(_photo(), "TIFF", tiffinfo={65000: "x" * 50})
    at = data.index(struct.pack("<HH", 65000, 2))
    return data[: at + 4] + struct.pack("<I", 1 << 28) + data[at + 8 :]


def test_the_warnings_of_pillow_neither_leak_nor_change_the_answer() -> None:
    data = _tiff_that_makes_pillow_warn()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    assert seen, "the file does not make Pillow warn: the test shows nothing"
    np.testing.assert_array_equal(_array(data), np.asarray(_photo()))  # warnings are errors here


def test_the_warnings_of_other_threads_are_not_muted() -> None:
    data, done, raised = _tiff_that_makes_pillow_warn(), threading.Event(), []

    def decode() -> None:
        while not done.is_set():
            load_image(data)

    worker = threading.Thread(target=decode)
    worker.start()
    for _ in range(200):
        try:
            warnings.warn("from the host", UserWarning, stacklevel=1)
        except UserWarning:
            raised.append(True)
    done.set()
    worker.join()
    assert len(raised) == 200


def test_many_threads_decode_at_once_without_touching_the_filters_of_the_host() -> None:
    data, failures = _tiff_that_makes_pillow_warn(), []
    load_image(data)
    before = list(warnings.filters)

    def decode() -> None:
        try:
            for _ in range(20):
                load_image(data)
        except Exception as error:
            failures.append(error)

    workers = [threading.Thread(target=decode) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures
    assert warnings.filters == before


def test_pillows_global_switches_are_never_changed() -> None:
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    for form in TRUNCATABLE:
        load_image(_encoded(_photo(), form))
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)


def test_importing_imports_no_reader_and_decoding_only_the_one_needed() -> None:
    script = (
        "import sys, vit_edge.images.load\n"
        "def plugins(): return sorted(m for m in sys.modules if m.endswith('ImagePlugin'))\n"
        "assert plugins() == [], plugins()\n"
        "vit_edge.images.load.load_image(b'P6 1 1 255\\n123')\n"
        "assert plugins() == ['PIL.PpmImagePlugin'], plugins()\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_logging_goes_through_the_logger_of_the_package() -> None:
    assert logging.getLogger("vit_edge").level == logging.NOTSET
