"""preprocess.onnx makes the pixels of Pillow to the bit, whatever the image and the steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from PIL import Image

from vit_edge.bundle.manifest import Interpolation, Preprocessing
from vit_edge.graphs import preprocessing as subject
from vit_edge.images.preprocess import pixels_from_resized
from vit_edge.images.resize import resized_from_image

requires = ("onnx", "onnx_ir", "onnxruntime")

FILTERS = get_args(Interpolation)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SQUASH = Preprocessing("squash", (45, 37), (45, 37), "bilinear", MEAN, STD)
# The kinds of geometry that a manifest can hold; 33 and 50 fill no block of outputs.
GEOMETRIES = {
    "squash": SQUASH,
    "squash, cropped": replace(SQUASH, crop_hw=(33, 30)),
    "cover": replace(SQUASH, resize="cover", resize_hw=(64, 64), crop_hw=(56, 56)),
    "cover, odd, down": replace(
        SQUASH, resize="cover", resize_hw=(61, 61), crop_hw=(56, 50), crop_rounding="down"
    ),
    "cover, not square": replace(SQUASH, resize="cover", resize_hw=(60, 91), crop_hw=(50, 91)),
}
# Larger and smaller than the target in either axis, equal to it, thin, and taller than twice as
# wide: there Pillow begins with the other axis.
SIZES = (
    *((1, 1), (1, 37), (37, 1), (45, 37), (64, 64), (61, 90), (300, 61), (33, 400)),
    *((480, 640), (225, 223), (97, 31)),
)


def run(spec: Preprocessing, image: NDArray[np.uint8], **options: Any) -> NDArray[Any]:
    return session(spec, **options).run(None, {subject.INPUT: image})[0]


def session(
    spec: Preprocessing, *, levels: bool = False, opset: int = subject.OLDEST_OPSET
) -> onnxruntime.InferenceSession:
    dtype: Any = "float32" if levels else "uint8"
    model = onnx_ir.to_proto(subject.preprocessing_graph(spec, dtype, opset))
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, ["CPUExecutionProvider"]
    )


def noise(height: int, width: int) -> NDArray[np.uint8]:
    """Noise, of the two outermost levels for a third of it: overshoots are clipped."""
    rng = np.random.default_rng(height * 10_000 + width)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    extremes = rng.integers(0, 6, image.shape)
    return np.where(extremes == 0, 0, np.where(extremes == 1, 255, image)).astype(np.uint8)


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_the_graph_resizes_and_crops_as_pillow_does_to_the_bit(
    geometry: str, interpolation: Interpolation
) -> None:
    spec = replace(GEOMETRIES[geometry], interpolation=interpolation)
    opened = session(spec)
    for height, width in SIZES:
        image = noise(height, width)
        expected = resized_from_image(Image.fromarray(image), spec)
        (resized,) = opened.run(None, {subject.INPUT: image})
        np.testing.assert_array_equal(resized[0], expected, f"{height} x {width}")


@pytest.mark.parametrize("steps", [{}, {"offset": -1.0, "rescale_factor": 1 / 127.5},
                                   {"divided_twice": True}])  # fmt: skip
def test_the_pixels_are_those_of_numpy_to_the_bit(steps: dict[str, Any]) -> None:
    spec, image = replace(GEOMETRIES["cover"], **steps), noise(90, 70)
    expected = pixels_from_resized(resized_from_image(Image.fromarray(image), spec)[None], spec)
    pixels = run(spec, image, levels=True)
    assert (pixels.dtype, pixels.shape) == (np.float32, (1, 3, 56, 56))
    np.testing.assert_array_equal(pixels, expected)


def test_a_model_of_uint8_images_gets_them_as_they_were_resized() -> None:
    resized = run(SQUASH, noise(90, 70))
    assert (resized.dtype, resized.shape) == (np.uint8, (1, 45, 37, 3))


@pytest.mark.parametrize("opset", [13, 18, 20, 23])
def test_the_graph_is_the_same_in_every_operator_set(opset: int) -> None:
    image = noise(61, 90)
    found = run(GEOMETRIES["cover"], image, opset=opset)
    np.testing.assert_array_equal(found, run(GEOMETRIES["cover"], image))


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1), (3, 9_001)])
def test_of_a_very_long_image_only_what_is_kept_is_computed(size: tuple[int, int]) -> None:
    """Pillow's own coordinates are float32 there: see images.resize."""
    image = noise(*size)
    spec = replace(GEOMETRIES["cover"], interpolation="bicubic")
    expected = resized_from_image(Image.fromarray(image), spec).astype(int)
    assert np.abs(run(spec, image)[0] - expected).max() <= 1


def test_both_orders_of_the_axes_are_there_and_differ() -> None:
    """The rule which axis is first is not idle: for these images the other order rounds apart."""
    tall = noise(300, 61)
    spec = replace(SQUASH, interpolation="bicubic")
    sizes = {"first": (37, 300), "last": (61, 45)}
    either = [
        np.asarray(Image.fromarray(tall).resize(size, Image.Resampling.BICUBIC)
                   .resize((37, 45), Image.Resampling.BICUBIC))
        for size in sizes.values()
    ]  # fmt: skip
    assert not np.array_equal(*either)
    np.testing.assert_array_equal(run(spec, tall)[0], either[1])


def test_the_file_is_small() -> None:
    spec = replace(GEOMETRIES["cover"], resize_hw=(256, 256), crop_hw=(224, 224))
    model = subject.preprocessing_graph(spec, "float32")
    assert onnx_ir.to_proto(model).ByteSize() < 40_000
