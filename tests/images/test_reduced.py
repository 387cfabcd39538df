"""Fast decoding: JPEGs decoded at a fraction of their size, and everything else as it was."""

from __future__ import annotations

import io
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from vit_edge.bundle.manifest import Preprocessing
from vit_edge.errors import ImageDecodeError, ImageError, ImageTooLargeError, UsageError
from vit_edge.images import ImageLimits
from vit_edge.images import preprocess as subject
from vit_edge.images.load import load_image, load_picture
from vit_edge.images.preprocess import preprocess
from vit_edge.images.reduced import Picture, whole
from vit_edge.images.resize import _resized_size

ZERO, ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
SQUASH = Preprocessing("squash", (32, 32), (32, 32), "bilinear", ZERO, ONE)
COVER = Preprocessing("cover", (36, 36), (32, 32), "bicubic", ZERO, ONE)
UNEVEN = Preprocessing("cover", (40, 28), (36, 24), "bicubic", ZERO, ONE)
# For smooth pictures: rounding when decoded and after each resized axis, and at the edges where
# libjpeg repeats the last pixel. The greatest of 400 random cases was 3.
LEVELS = 4.0


def _photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture of a few waves, half the shorter side long or longer, without any symmetry."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] * (4 * np.pi / min(width, height))
    planes = np.zeros((height, width, 3))
    for plane in planes.transpose(2, 0, 1):
        for down, right, start in rng.uniform(-1, 1, (3, 3)):
            plane += 128 / 3 + 40 * np.sin(y * down + x * right + np.pi * start)
    return Image.fromarray(planes.round().astype(np.uint8))


def _jpeg(image: Image.Image, orientation: int = 1, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, exif=exif, **options)
    return buffer.getvalue()


def _levels_apart(data: bytes, spec: Preprocessing) -> float:
    fast, exact = preprocess(data, spec, decoding="fast"), preprocess(data, spec)
    return float(np.abs(fast - exact).max() * 255)


@settings(max_examples=60)
@given(
    width=st.integers(16, 900),
    height=st.integers(16, 900),
    orientation=st.integers(1, 8),
    spec=st.sampled_from([SQUASH, COVER, UNEVEN]),
    subsampling=st.sampled_from([0, 2]),
    progressive=st.booleans(),
    seed=st.integers(0, 99),
)
def test_smooth_photos_of_any_size_and_orientation_keep_their_pixels(
    width: int,
    height: int,
    orientation: int,
    spec: Preprocessing,
    subsampling: int,
    progressive: bool,
    seed: int,
) -> None:
    options = {"subsampling": subsampling, "progressive": progressive}
    data = _jpeg(_photo(width, height, seed), orientation, **options)
    assert _levels_apart(data, spec) <= LEVELS


@pytest.mark.parametrize("orientation", range(1, 9))
def test_part_of_a_pixel_at_the_edge_is_accounted_for_in_every_orientation(
    orientation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = _jpeg(_photo(8 * 64 + 1, 8 * 64 + 1), orientation)  # 65 pixels, of the last one eighth
    spec = replace(SQUASH, resize_hw=(32, 32))
    assert load_picture(data, 64).image.size == (65, 65)
    assert _levels_apart(data, spec) <= LEVELS
    monkeypatch.setattr(subject, "load_picture", _forgetting_the_box)
    assert _levels_apart(data, spec) > 2 * LEVELS


def _forgetting_the_box(*arguments: Any, **options: Any) -> Picture:
    return whole(load_picture(*arguments, **options).image)


@settings(max_examples=60)
@given(
    width=st.integers(16, 900),
    height=st.integers(16, 900),
    spec=st.sampled_from([SQUASH, COVER, UNEVEN]),
)
def test_nothing_is_decoded_below_twice_what_it_is_resized_to(
    width: int, height: int, spec: Preprocessing
) -> None:
    data = _jpeg(Image.new("RGB", (width, height)))
    least_px = subject._least_px("fast", spec)
    picture = load_picture(data, least_px)
    resized = _resized_size((width, height), spec)
    assert picture.full_size == (width, height)
    if picture.image.size != picture.full_size:
        assert all(now >= 2 * then for now, then in zip(picture.image.size, resized, strict=True))


@pytest.mark.parametrize(
    ("least_px", "expected"), [(100, (100, 125)), (101, (200, 250)), (201, (400, 500)), (401, None)]
)
def test_the_smallest_of_the_sizes_that_suffice_is_decoded(
    least_px: int, expected: tuple[int, int] | None
) -> None:
    picture = load_picture(_jpeg(Image.new("RGB", (800, 1000))), least_px)
    assert picture.image.size == (expected or (800, 1000))


def test_a_large_jpeg_really_is_decoded_smaller() -> None:
    """Otherwise every other test here would pass for nothing."""
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    assert _levels_apart(_jpeg(Image.fromarray(noise)), SQUASH) > 0


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_the_mode_of_a_jpeg_stays_what_it_is(mode: str) -> None:
    image = _photo(400, 300).convert(mode)
    data = _jpeg(image)
    assert _levels_apart(data, SQUASH) <= LEVELS
    shown = np.asarray(load_picture(data, 75).image).mean((0, 1))
    np.testing.assert_allclose(shown, np.asarray(load_image(data)).mean((0, 1)), atol=0.5)


def test_of_a_multi_picture_jpeg_the_first_is_decoded_smaller_too() -> None:
    buffer = io.BytesIO()
    first, second = _photo(400, 300), Image.new("RGB", (400, 300))
    first.save(buffer, "MPO", save_all=True, append_images=[second], quality=95)
    assert load_picture(buffer.getvalue(), 64).image.size == (100, 75)
    assert _levels_apart(buffer.getvalue(), SQUASH) <= LEVELS


def _unchanged() -> dict[str, Any]:
    photo = _photo(400, 300)
    png = io.BytesIO()
    photo.save(png, "PNG")
    with Image.open(io.BytesIO(_jpeg(photo))) as lazy:
        return {
            "PNG": png.getvalue(),
            "a small JPEG": _jpeg(photo.resize((127, 120))),
            "an array": np.asarray(photo),
            "a Pillow image": photo,
            "a lazy Pillow image": lazy.copy(),
        }


@pytest.mark.parametrize("name", _unchanged())
def test_what_is_no_large_jpeg_file_gives_the_same_bits(name: str) -> None:
    source = _unchanged()[name]
    for spec in (SQUASH, COVER):
        fast: NDArray[np.float32] = preprocess(source, spec, decoding="fast")
        np.testing.assert_array_equal(fast, preprocess(source, spec))


def test_a_lazy_pillow_image_of_the_caller_keeps_its_size() -> None:
    with Image.open(io.BytesIO(_jpeg(_photo(400, 300)))) as lazy:
        preprocess(lazy, SQUASH, decoding="fast")
        assert lazy.size == (400, 300)


def test_nearest_picks_pixels_of_the_whole_image() -> None:
    spec = replace(SQUASH, interpolation="nearest")
    assert _levels_apart(_jpeg(_photo(400, 300)), spec) == 0


def test_a_truncated_jpeg_is_refused_in_fast_decoding_too() -> None:
    data = _jpeg(_photo(800, 600))
    for end in (len(data) // 3, len(data) * 9 // 10):
        with pytest.raises(ImageDecodeError):
            preprocess(data[:end], SQUASH, decoding="fast")


def test_limits_hold_for_the_full_size() -> None:
    data = _jpeg(Image.new("RGB", (800, 600)))
    with pytest.raises(ImageTooLargeError, match="800 x 600"):
        preprocess(data, SQUASH, ImageLimits(max_pixels=479_999), decoding="fast")


def test_corrupt_exif_data_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    buffer = io.BytesIO()
    _photo(400, 300).save(buffer, "JPEG", exif=b"Exif\0\0XX broken")
    with caplog.at_level(logging.WARNING, "vit_edge"):
        preprocess(buffer.getvalue(), SQUASH, decoding="fast")
    assert [record.message.count("corrupt EXIF") for record in caplog.records] == [1]


def test_another_way_of_decoding_is_refused_with_those_there_are() -> None:
    with pytest.raises(UsageError, match='"exact" or "fast", not \'quick\''):
        preprocess(_jpeg(_photo(40, 30)), SQUASH, decoding="quick")  # type: ignore[arg-type]


def test_odd_and_broken_jpegs_fare_alike_in_both_ways_of_decoding(shared_data: Path) -> None:
    logging.getLogger("vit_edge").addFilter(silent := lambda _: False)
    try:
        outcomes = [
            (path.name, _outcome(data, "exact"), _outcome(data, "fast"))
            for path in sorted((shared_data / "images" / "hostile").rglob("*"))
            if path.is_file() and (data := path.read_bytes()).startswith(b"\xff\xd8\xff")
        ]
    finally:
        logging.getLogger("vit_edge").removeFilter(silent)
    assert len(outcomes) > 10
    assert [o for o in outcomes if o[1] != o[2]] == []


def _outcome(data: bytes, decoding: Any) -> str:
    try:
        return str(preprocess(data, SQUASH, decoding=decoding).shape)
    except ImageError as error:
        return type(error).__name__
