"""The probe files exercise what they claim to, stay small, and tolerate other JPEG decoders."""

from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from vit_edge.bundle.manifest import Preprocessing
from vit_edge.errors import UsageError
from vit_edge.images.load import load_image
from vit_edge.images.resize import resized_from_image
from vit_edge.parity.probes import make_probes

HALF = (0.5, 0.5, 0.5)
SPECS = (
    Preprocessing("squash", (224, 224), (224, 224), "bilinear", HALF, HALF),
    Preprocessing("cover", (248, 248), (224, 224), "bicubic", HALF, HALF),
    Preprocessing("squash", (32, 32), (32, 32), "bicubic", HALF, HALF),
)


def _photo(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (9, 9, 3), np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


PHOTOS = [_photo(375, 500, 0), _photo(500, 333, 1), _photo(64, 64, 2)]


def test_there_are_six_to_ten_small_files_even_of_noise() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)
    probes = make_probes([noise])
    assert 6 <= len(probes) <= 10
    assert max(len(data) for data in probes.values()) <= 25_000
    for data in probes.values():
        with Image.open(io.BytesIO(data)) as image:
            assert max(image.size) <= 200


def test_the_files_are_what_their_names_say() -> None:
    modes = {}
    for name, data in make_probes(PHOTOS).items():
        with Image.open(io.BytesIO(data)) as image:
            modes[name] = image.mode
            assert image.format == ("JPEG" if name.endswith(".jpg") else "PNG")
            if name == "exif-rotated.jpg":
                assert image.getexif()[0x0112] == 6
            if name == "palette-transparent.png":
                assert len(image.info["transparency"]) == 64
            if name == "tall.png":
                assert image.height > 10 * image.width
    assert modes.pop("grey-16-bit.png") in ("I;16", "I")  # "I" before Pillow 11
    assert modes == {
        "plain.jpg": "RGB",
        "plain.png": "RGB",
        "exif-rotated.jpg": "RGB",
        "rgba.png": "RGBA",
        "palette-transparent.png": "P",
        "grey.jpg": "L",
        "cmyk.jpg": "CMYK",
        "tall.png": "RGB",
    }


def test_the_same_photos_give_the_same_files() -> None:
    assert make_probes(PHOTOS) == make_probes(PHOTOS)


def test_no_photos_are_refused() -> None:
    with pytest.raises(UsageError, match="at least one photo"):
        make_probes([])


@pytest.mark.parametrize("spec", SPECS)
def test_an_ignored_orientation_or_alpha_shows_in_the_probes(spec: Preprocessing) -> None:
    probes = make_probes(PHOTOS)
    for name in ("exif-rotated.jpg", "rgba.png", "palette-transparent.png", "grey-16-bit.png"):
        right = resized_from_image(load_image(probes[name]), spec)
        with Image.open(io.BytesIO(probes[name])) as image:
            careless = image.convert("L" if "16" in name else "RGBA").convert("RGB")
        wrong = resized_from_image(careless, spec)
        assert np.abs(right.astype(int) - wrong).max() > 2


@pytest.mark.parametrize("spec", SPECS)
def test_decoders_that_differ_by_a_level_here_and_there_stay_within_two_after_resizing(
    spec: Preprocessing,
) -> None:
    # Were all samples off by a level, bicubic magnification could make 3 of it: its weights
    # add up to more than 1 in absolute value.
    random = np.random.default_rng(0)
    for name, data in make_probes(PHOTOS).items():
        if name.endswith(".jpg"):
            image = np.asarray(load_image(data)).astype(int)
            noise = random.integers(-1, 2, image.shape) * (random.random(image.shape) < 0.1)
            other = np.clip(image + noise, 0, 255).astype(np.uint8)
            here = resized_from_image(Image.fromarray(image.astype(np.uint8)), spec)
            there = resized_from_image(Image.fromarray(other), spec)
            assert np.abs(here.astype(int) - there).max() <= 2
