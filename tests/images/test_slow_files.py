"""Files that would keep Pillow's readers in Python busy: the same pixels, or an error at once."""

from __future__ import annotations

import io
import random
import struct
import time
import zlib

import numpy as np
import PIL
import pytest
from PIL import Image, PpmImagePlugin
from PIL.BmpImagePlugin import BmpImageFile

from vit_edge.errors import ImageDecodeError, ImageTooLargeError
from vit_edge.images.decode import decode, pillow_at_work
from vit_edge.images.files import DEFAULT_LIMITS
from vit_edge.images.load import load_image

CPU_SECONDS = 6  # Pillow takes up to a minute for the files below, we a tenth of a second


def ours(data: bytes) -> Image.Image:
    with pillow_at_work("x"):
        return decode(data, "x", DEFAULT_LIMITS).image


def refused_quickly(data: bytes) -> str:
    before = time.process_time()
    with pytest.raises((ImageDecodeError, ImageTooLargeError)) as error:
        load_image(data)
    assert time.process_time() - before < CPU_SECONDS
    return str(error.value)


def bmp(width: int, height: int, body: bytes, bits: int = 8) -> bytes:
    """A BMP of run lengths; a negative height is one from the top."""
    colours = 2**bits
    palette = b"".join(bytes((i * 16 % 256, i, 255 - i, 0)) for i in range(colours))
    at = 54 + len(palette)
    head = struct.pack(
        "<IiiHHIIiiII",
        40, width, height, 1, bits, 1 if bits == 8 else 2, len(body), 0, 0, colours, 0,
    )  # fmt: skip
    return b"BM" + struct.pack("<IHHI", at + len(body), 0, 0, at) + head + palette + body


def runs(seed: int, width: int, height: int, bits: int) -> bytes:
    """Random pieces of all kinds, some of them longer than their row."""
    draw, body = random.Random(seed), b""
    for _ in range(height * 4):
        kind = draw.choice(("run", "run", "literal", "line", "delta"))
        if kind == "run":
            body += bytes((draw.randint(1, width + 2), draw.randrange(256)))
        elif kind == "literal":
            count = draw.randint(3, width + 3)
            size = count if bits == 8 else (count + 1) // 2
            body += bytes((0, count)) + draw.randbytes(size) + bytes(size % 2)
        elif kind == "line":
            body += b"\0\0"
        else:
            body += bytes((0, 2, draw.randrange(width), draw.randrange(2)))
    return body + bytes((0, 2, 0, 255)) + b"\0\1"


@pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 12, reason="older ones misread moves")
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("seed", range(25))
def test_run_lengths_are_unpacked_to_the_pixels_that_pillow_has(seed: int, bits: int) -> None:
    draw = random.Random(seed)
    width, height = draw.randint(1, 40), draw.randint(1, 40)
    upside = draw.choice((1, -1))
    data = bmp(width, upside * height, runs(seed, width, height, bits), bits)
    reference = BmpImageFile(io.BytesIO(data))
    reference.load()
    found = ours(data)
    assert found.mode == reference.mode
    assert np.array_equal(np.asarray(found), np.asarray(reference))
    assert found.getpalette() == reference.getpalette()


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"\1\5\0\0" * 6999 + b"\0\1", id="rows of one pixel, ended early"),
        pytest.param(b"\0\2\0\0" * 500_000 + b"\0\1", id="moves that go nowhere"),
        pytest.param(b"\0\0" * 500_000, id="ends of lines without pixels"),
        pytest.param(b"\1\5" * 300_000, id="runs beyond the row"),
        pytest.param(b"\0\x03abc", id="literal cut off"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_run_lengths_that_promise_more_than_they_hold_are_refused(body: bytes) -> None:
    assert "of 49,000,000 pixels" in refused_quickly(bmp(7000, 7000, body))


def test_more_runs_than_an_encoder_writes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vit_edge.images.bmp._MAX_PIECES", 1000)
    assert "more than 1,000 runs" in refused_quickly(bmp(7000, 7000, b"\0\2\0\0" * 1001))
    whole = bmp(20, 30, (b"\1\5" * 20 + b"\0\0") * 30 + b"\0\1")
    assert load_image(whole).size == (20, 30)


def pillows(data: bytes) -> Image.Image:
    image = PpmImagePlugin.PpmImageFile(io.BytesIO(data))
    image.load()
    return image


@pytest.mark.parametrize("kind", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("white", [1, 2, 15, 200, 254, 255, 256, 1023, 65534, 65535])
def test_pnm_files_give_the_pixels_that_pillow_has(kind: int, white: int) -> None:
    draw = np.random.default_rng(kind * 70000 + white)
    width, height = 17, 9
    count = width * height * (3 if kind in (3, 6) else 1)
    values = draw.integers(0, 2 if kind == 1 else white + 1, count)
    head = b"P%d\n# a picture 12\n %d%s%d\n" % (kind, width, b"#x\r\t", height)
    head += b"" if kind == 1 else b"%d\n" % white
    ends = (b"", b"", b" # 1\n") if kind == 1 else (b" ", b"\n", b"\t\r\n", b"#1 2\n ", b" # \r")
    body = b"".join(b"%d%s" % (v, ends[i % len(ends)]) for i, v in enumerate(values))
    if kind > 3:
        body = values.astype(">u2" if white > 255 else np.uint8).tobytes()
    found, reference = ours(head + body), pillows(head + body)
    assert found.mode == reference.mode
    assert np.array_equal(np.asarray(found), np.asarray(reference))


HEAD = b"P2\n7000 7000 255\n"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"P6\n" + b"#" * 1_000_000 + b"\n2 2\n255\n" + bytes(12), id="long comment"),
        pytest.param(b"P6\n" + b"#a\n" * 300_000 + b"2 2\n255\n" + bytes(12), id="comments"),
        pytest.param(b"P5" + b" " * 1_000_000 + b"2 2\n255\n" + bytes(12), id="spaces"),
        pytest.param(b"P5\n" + b"#", id="a comment without end"),
        pytest.param(HEAD + b" " * 3_000_000, id="text without numbers"),
        pytest.param(HEAD + b"#1\n" * 1_000_000, id="comments for numbers"),
        pytest.param(HEAD + b"1" * 3_000_000, id="a number without end"),
        pytest.param(HEAD + bytes(3_000_000), id="a sparse file"),
        pytest.param(b"P1\n7000 7000\n" + bytes(3_000_000), id="a sparse bitmap"),
        pytest.param(b"P3\n2 2 255\n" + b"1 " * 11, id="a sample less"),
        pytest.param(b"P2\n2 2 255\n1 2 3 256", id="a sample above white"),
        pytest.param(b"P2\n2 2 255\n1 2 3 -4", id="a sample below black"),
        pytest.param(b"P1\n2 2\n1 0 2 1", id="a digit that is no bit"),
        pytest.param(b"P5\n2 2 254\n" + bytes(3), id="a byte less"),
        pytest.param(b"P5\n2 2 70000\n" + bytes(8), id="white beyond 16 bits"),
        pytest.param(b"P2\n20000 20000 255\n" + b"1 " * 9, id="more pixels than allowed"),
    ],
)
def test_pnm_files_that_never_come_to_an_end_are_refused(data: bytes) -> None:
    refused_quickly(data)


def test_text_with_half_a_million_comments_takes_time_that_grows_with_its_length() -> None:
    before = time.process_time()
    image = load_image(b"P2\n1000 500\n255\n" + b"#x\n7 " * 500_000)
    assert time.process_time() - before < CPU_SECONDS
    assert image.getextrema() == ((7, 7),) * 3


JUNK = {
    "fill bytes": b"\xff",
    "stuffed bytes": b"\xff\0",
    "restart markers": b"\xff\xd0",
    "empty comments": b"\xff\xfe\0\2",
    "empty application data": b"\xff\xe5\0\2",
    "zeros": b"\0",
}


@pytest.mark.parametrize("junk", JUNK.values(), ids=list(JUNK))
def test_junk_between_the_markers_of_a_jpeg_is_refused_and_a_little_is_not(junk: bytes) -> None:
    written = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 10, 10)).save(written, "JPEG")
    data = written.getvalue()
    at = 4 + int.from_bytes(data[4:6], "big")  # behind JFIF's own segment
    refused_quickly(data[:at] + junk * (3_000_000 // len(junk)) + data[at:])
    assert load_image(data[:at] + junk * 40 + data[at:]).size == (8, 8)


def chunk(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def png(pixels: np.ndarray, *, chunk_bytes: int, before: bytes = b"") -> bytes:
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    stream = zlib.compress(rows, 1)
    pieces = (stream[at : at + chunk_bytes] for at in range(0, len(stream), chunk_bytes))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    content = b"".join(chunk(b"IDAT", piece) for piece in pieces)
    return b"\x89PNG\r\n\x1a\n" + head + before + content + chunk(b"IEND", b"")


def test_a_png_of_very_many_chunks_is_refused_and_one_of_small_chunks_is_not() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3), np.uint8)
    found = load_image(png(noise, chunk_bytes=256))
    assert np.array_equal(np.asarray(found), noise)
    refused_quickly(png(noise[:8, :8], chunk_bytes=256, before=chunk(b"prVt", b"") * 250_000))
