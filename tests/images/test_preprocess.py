"""Preprocessing equals transformers' PIL processor and timm's transform, and stays bounded."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Literal

import numpy as np
import PIL
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from vit_edge.bundle.manifest import Interpolation, Preprocessing
from vit_edge.errors import ArrayError
from vit_edge.images import resize as subject
from vit_edge.images.preprocess import pixels_from_resized, preprocess
from vit_edge.images.resize import resized_from_image

FILTERS: tuple[Interpolation, ...] = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
HALF = (0.5, 0.5, 0.5)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SQUASH = Preprocessing("squash", (32, 32), (32, 32), "bilinear", HALF, HALF)
COVER = Preprocessing("cover", (36, 36), (32, 32), "bicubic", HALF, HALF)


def _script() -> ModuleType:
    path = Path(__file__).parents[1] / "data" / "make_timm_transform.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


timm_script = _script()
pillow_version = int(PIL.__version__.split(".")[0])


def _noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def _spec_of_case(case: object) -> Preprocessing:
    c = timm_script.Case(*case)  # type: ignore[misc]
    resize_hw = tuple(int(size // c.crop_pct) for size in c.image_hw)
    return Preprocessing(
        "squash" if c.crop_mode == "squash" else "cover",
        resize_hw,  # type: ignore[arg-type]
        c.image_hw,
        c.interpolation,
        c.mean,
        c.std,
    )


# --- transformers ----------------------------------------------------------------------------


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("target_hw", [(32, 32), (48, 20), (20, 48)])
@pytest.mark.parametrize("source_hw", [(61, 83), (83, 61), (32, 32), (7, 5), (300, 41), (90, 45)])
def test_squash_equals_the_pil_processor_of_transformers_to_the_bit(
    interpolation: Interpolation, target_hw: tuple[int, int], source_hw: tuple[int, int]
) -> None:
    processors = pytest.importorskip("transformers.models.vit.image_processing_pil_vit")
    if pillow_version < 13 and subject._axis_order(source_hw[::-1], target_hw[::-1]) == (1, 0):
        pytest.skip("Pillow before 13 resizes the width of this image first, Pillow 13 its height")
    processor = processors.ViTImageProcessorPil(
        size={"height": target_hw[0], "width": target_hw[1]},
        resample=int(Image.Resampling[interpolation.upper()]),
        image_mean=list(IMAGENET_MEAN),
        image_std=list(IMAGENET_STD),
    )
    image = Image.fromarray(_noise(*source_hw))
    expected = processor(image, return_tensors="np")["pixel_values"][0]
    spec = Preprocessing("squash", target_hw, target_hw, interpolation, IMAGENET_MEAN, IMAGENET_STD)
    found = preprocess(image, spec)
    assert found.dtype == expected.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


# --- timm ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", timm_script.CASES, ids=lambda case: case.key)
def test_cover_equals_the_stored_answers_of_timm_to_the_bit(case: object) -> None:
    key = case.key  # type: ignore[attr-defined]
    spec = _spec_of_case(case)
    image = Image.fromarray(timm_script.synthetic_image(*case.source_hw))  # type: ignore[attr-defined]
    with np.load(timm_script.FIXTURE) as stored:
        resized, digest = stored[key], str(stored[key + "-sha256"])
    np.testing.assert_array_equal(resized_from_image(image, spec), resized)
    pixels = pixels_from_resized(resized[None], spec)[0]
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == digest


@pytest.mark.parametrize("case", timm_script.CASES[::5], ids=lambda case: case.key)
def test_cover_equals_the_installed_timm(case: object) -> None:
    pytest.importorskip("timm")
    _, expected = timm_script.timm_answers(case)
    image = Image.fromarray(timm_script.synthetic_image(*case.source_hw))  # type: ignore[attr-defined]
    assert np.abs(preprocess(image, _spec_of_case(case)) - expected).max() <= 1e-6


def test_a_crop_that_is_off_by_one_would_be_seen_by_the_timm_fixture() -> None:
    case = next(c for c in timm_script.CASES if c.source_hw == (37, 53))
    image = Image.fromarray(timm_script.synthetic_image(*case.source_hw))
    with np.load(timm_script.FIXTURE) as stored:
        resized = stored[case.key]
    shifted = Image.fromarray(np.roll(np.asarray(image), 1, axis=1))
    assert not np.array_equal(resized_from_image(shifted, _spec_of_case(case)), resized)


@settings(max_examples=200)
@given(
    size=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    new_size=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    interpolation=st.sampled_from(FILTERS),
)
def test_the_order_of_the_axes_is_that_of_pillow_13(
    size: tuple[int, int], new_size: tuple[int, int], interpolation: Interpolation
) -> None:
    if pillow_version != 13:
        pytest.skip("needs Pillow 13")
    image = Image.fromarray(_noise(size[1], size[0]))
    new_hw = new_size[::-1]
    spec = Preprocessing("squash", new_hw, new_hw, interpolation, HALF, HALF)
    expected = np.asarray(image.resize(new_size, Image.Resampling[interpolation.upper()]))
    np.testing.assert_array_equal(resized_from_image(image, spec), expected)


def test_a_tall_image_gives_the_same_pixels_with_every_pillow() -> None:
    # Made with Pillow 13; before it Image.resize itself gave other ones.
    spec = replace(SQUASH, interpolation="bicubic")
    resized = resized_from_image(Image.fromarray(timm_script.synthetic_image(90, 40)), spec)
    assert hashlib.sha256(resized.tobytes()).hexdigest()[:16] == "1dd818d330d7f07e"


# --- scaling and normalising -----------------------------------------------------------------


def test_every_level_is_normalised_as_in_the_float32_arithmetic_of_timm() -> None:
    levels = np.arange(256, dtype=np.uint8)
    image = np.repeat(levels.reshape(1, 16, 16, 1), 3, axis=3)
    spec = replace(SQUASH, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    unit = image.astype(np.float32).transpose(0, 3, 1, 2) / np.float32(255)
    mean = np.array(IMAGENET_MEAN, np.float32)[:, None, None]
    std = np.array(IMAGENET_STD, np.float32)[:, None, None]
    np.testing.assert_array_equal(pixels_from_resized(image, spec), (unit - mean) / std)


def test_another_rescale_factor_is_used() -> None:
    image = np.full((1, 2, 2, 3), 255, np.uint8)
    spec = replace(SQUASH, rescale_factor=1 / 127.5, mean=(1.0, 1.0, 1.0), std=(1.0, 1.0, 1.0))
    np.testing.assert_allclose(pixels_from_resized(image, spec), 1.0, atol=1e-6)


def test_pixels_are_contiguous_float32_in_the_order_nchw() -> None:
    resized = _noise(6 * 4, 5).reshape(4, 6, 5, 3)
    pixels = pixels_from_resized(resized, SQUASH)
    assert pixels.shape == (4, 3, 6, 5)
    assert pixels.dtype == np.float32
    assert pixels.flags.c_contiguous


def test_an_empty_batch_gives_an_empty_answer() -> None:
    assert pixels_from_resized(np.empty((0, 8, 8, 3), np.uint8), SQUASH).shape == (0, 3, 8, 8)


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((8, 8, 3), np.uint8), np.zeros((1, 3, 8, 8), np.uint8), np.zeros((1, 8, 8, 3))],
)
def test_pixels_from_resized_refuses_other_shapes_and_dtypes(wrong: NDArray[np.uint8]) -> None:
    with pytest.raises(ArrayError, match=r"expected uint8\[N, H, W, 3\]"):
        pixels_from_resized(wrong, SQUASH)


# --- extreme sizes ---------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [SQUASH, COVER, replace(COVER, resize_hw=(36, 54))])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (1, 10_000), (10_000, 1), (2, 3)])
def test_tiny_and_extreme_images_give_full_pixels(
    size: tuple[int, int], spec: Preprocessing
) -> None:
    image = Image.new("RGB", size, (10, 100, 200))
    resized = resized_from_image(image, spec)
    assert resized.shape == (32, 32, 3)
    assert (resized == (10, 100, 200)).all()


@settings(max_examples=150)
@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    interpolation=st.sampled_from(FILTERS[2:]),  # nearest and box jump: a tie may fall either way
    resize=st.sampled_from(["cover", "squash"]),
    target_hw=st.tuples(st.integers(8, 40), st.integers(8, 40)),
    crop_ratio=st.floats(0.5, 1.0),
)
def test_computing_only_the_crop_equals_cropping_the_whole_within_a_level(
    height: int,
    width: int,
    interpolation: Interpolation,
    resize: Literal["cover", "squash"],
    target_hw: tuple[int, int],
    crop_ratio: float,
) -> None:
    crop_hw = (int(target_hw[0] * crop_ratio), int(target_hw[1] * crop_ratio))
    spec = Preprocessing(resize, target_hw, crop_hw, interpolation, HALF, HALF)
    image = Image.fromarray(_noise(height, width))
    whole = resized_from_image(image, spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subject, "_MAX_RESIZED_PIXELS", 0)
        bounded = resized_from_image(image, spec)
    assert np.abs(whole.astype(int) - bounded).max() <= 1


@pytest.mark.parametrize("size", [(100, 500_000), (500_000, 100), (1, 5_000_000)])
@pytest.mark.parametrize("spec", [SQUASH, COVER])
def test_images_whose_resized_form_would_not_fit_into_memory_work(
    size: tuple[int, int], spec: Preprocessing
) -> None:
    big = replace(spec, resize_hw=(248, 248), crop_hw=(224, 224))
    assert (resized_from_image(Image.new("RGB", size, (1, 2, 3)), big) == (1, 2, 3)).all()


def test_the_centre_of_a_very_long_image_is_found_to_a_fraction_of_a_pixel() -> None:
    # A ramp of 1 level per pixel around the centre: half a pixel off would show.
    length, middle = 1_000_000, 500_000
    row = np.clip(np.arange(length) - middle + 128, 0, 255).astype(np.uint8)
    image = Image.fromarray(np.repeat(row[None, :, None], 3, axis=2))
    spec = Preprocessing("cover", (248, 248), (224, 224), "bilinear", HALF, HALF)
    resized = resized_from_image(image, spec)[0, :, 0]
    # The crop spans 224 / 248 of a source pixel on either side of the boundary 499,999 | 500,000.
    assert np.abs(resized.astype(int) - 127.5).max() <= 1
