"""Whatever preprocessor_config.json says: the pixels of transformers' own processor, or a refusal.

The judge is the installed transformers with Pillow. A configuration that it refuses, or from which
it makes images of several shapes, must be refused here too.
"""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from numpy.typing import NDArray
from PIL import Image

from vit_edge.bundle.manifest import Preprocessing
from vit_edge.checkpoints.hf_preprocessing import _PROCESSORS, read_preprocessing
from vit_edge.errors import CheckpointError
from vit_edge.graphs.uint8_input import fold
from vit_edge.images.preprocess import preprocess

requires = ("torch", "transformers", "onnx_ir")

KINDS = sorted(_PROCESSORS)
# Sides whose scaled lengths leave odd and even numbers of pixels to cut off.
SIZES = ((90, 60), (61, 97), (45, 45), (131, 40), (37, 120))


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        for width, height in SIZES
    ]


PICTURES = pictures()
Pixels = list[NDArray[np.float32]]


def theirs(file: Path, kind: str) -> Pixels | None:
    """Pixels of transformers; None where it refuses, or does not make one shape of all."""
    try:
        processor = getattr(transformers, f"{kind}ImageProcessorPil").from_pretrained(file.parent)
        found = [np.asarray(processor(p, return_tensors="np").pixel_values[0]) for p in PICTURES]
    except Exception:
        return None
    return found if len({pixels.shape for pixels in found}) == 1 else None


def ours(file: Path) -> tuple[Pixels, Preprocessing] | str:
    try:
        spec = read_preprocessing(file)
    except CheckpointError as error:
        return str(error)
    return [preprocess(picture, spec) for picture in PICTURES], spec


def written(folder: Path, kind: str, changes: dict[str, Any]) -> Path:
    file = folder / "preprocessor_config.json"
    named = {"image_processor_type": f"{kind}ImageProcessor"}
    file.write_text(json.dumps(named | changes))
    return file


def assert_same(file: Path, kind: str, *, supported: bool | None = None) -> None:
    expected, found = theirs(file, kind), ours(file)
    if isinstance(found, str):
        assert not supported, found
        return
    assert supported is not False, file.read_text()
    assert expected is not None, f"taken, but transformers refuses: {file.read_text()}"
    for mine, judge in zip(found[0], expected, strict=True):
        assert mine.dtype == np.float32
        np.testing.assert_array_equal(mine, judge, file.read_text())


SIXTEEN = {"height": 16, "width": 16}


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_of_every_processor_are_transformers(kind: str, tmp_path: Path) -> None:
    assert_same(written(tmp_path, kind, {}), kind, supported=True)


NULLS = [
    "size", "crop_size", "do_resize", "do_center_crop", "do_rescale", "rescale_factor",
    "do_normalize", "image_mean", "image_std", "resample", "default_to_square", "crop_pct",
    "rescale_offset", "include_top", "do_pad", "pad_size", "do_convert_rgb", "data_format",
]  # fmt: skip


@pytest.mark.parametrize("name", NULLS)
@pytest.mark.parametrize("kind", ["ViT", "DeiT", "EfficientNet", "ConvNext"])
def test_a_null_means_what_it_does_there(kind: str, name: str, tmp_path: Path) -> None:
    size = {"shortest_edge": 16} if kind == "ConvNext" else {"height": 20, "width": 20}
    assert_same(written(tmp_path, kind, {"size": size, "crop_size": SIXTEEN, name: None}), kind)
    off = {"do_normalize": False, "include_top": False, "do_rescale": False, name: None}
    assert_same(written(tmp_path, kind, {"size": size, "crop_size": SIXTEEN} | off), kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "changes",
    [
        {"size": 16}, {"size": [16, 18]}, {"size": SIXTEEN}, {"size": {"width": 14, "height": 16}},
        {"size": {"shortest_edge": 16}}, {"size": 16, "default_to_square": True},
        {"size": 16, "default_to_square": False}, {"size": [16, 18], "default_to_square": False},
        {"size": 16, "default_to_square": False, "max_size": 32},
        {"size": 19, "do_center_crop": True, "crop_size": 16},
        {"size": 19, "do_center_crop": True, "crop_size": 16, "default_to_square": False},
        {"size": 19, "do_center_crop": True, "crop_size": 16, "default_to_square": True},
        {"size": 17, "do_center_crop": True, "crop_size": [16, 14], "default_to_square": False},
        {"size": {"shortest_edge": 17}, "do_center_crop": True, "crop_size": SIXTEEN},
        {"size": {"shortest_edge": 20}, "do_center_crop": True, "crop_size": {"shortest_edge": 9}},
        {"size": 16, "do_center_crop": True, "crop_size": 20},
        {"size": SIXTEEN, "do_center_crop": False, "crop_size": 12},
        {"size": SIXTEEN, "do_center_crop": False, "crop_size": {"side": 12}},
        {"size": {"height": 16, "width": 16, "shortest_edge": None}},
        {"size": {"shortest_edge": 16, "longest_edge": 20}}, {"size": {"longest_edge": 20}},
        {"size": {"max_height": 16, "max_width": 16}}, {"size": [16]}, {"size": 16.0},
        {"size": "16"}, {"size": {}}, {"size": {"height": 16}}, {"size": True}, {"size": []},
    ],
    ids=str,
)  # fmt: skip
def test_sizes_and_crops_mean_what_they_do_there(
    kind: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    assert_same(written(tmp_path, kind, changes), kind)


@pytest.mark.parametrize(
    "changes",
    [
        {"do_normalize": False}, {"do_rescale": False},
        {"do_rescale": False, "do_normalize": False},
        {"rescale_factor": 1 / 127.5}, {"image_mean": 0.5, "image_std": 0.25},
        {"image_mean": 0, "image_std": 1}, {"image_mean": [0.1, 0.2, 0.3]},
        {"image_mean": [0.5]}, {"image_std": [0.5, 0.5]}, {"image_mean": "0.5"},
        {"resample": 0}, {"resample": 1}, {"resample": 2}, {"resample": 3}, {"resample": 4},
        {"resample": 5}, {"resample": "bicubic"}, {"resample": "BILINEAR"}, {"resample": 9},
        {"offset": True}, {"rescale_offset": True, "rescale_factor": 1 / 127.5},
        {"rescale_offset": True, "do_rescale": False}, {"rescale_offset": False},
        {"rescale_offset": True, "do_normalize": False},
        {"include_top": True, "do_normalize": False}, {"include_top": False},
        {"include_top": False, "rescale_offset": True, "rescale_factor": 1 / 127.5},
        {"crop_pct": 0.9}, {"crop_pct": 1.0}, {"crop_pct": 0.33},
        {"do_grayscale": True}, {"do_reduce_labels": True}, {"do_convert_rgb": False},
        {"data_format": "channels_last"}, {"do_pad": True, "pad_size": 20},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("kind", ["ViT", "CLIP", "EfficientNet", "ConvNext", "Beit"])
def test_scales_and_filters_mean_what_they_do_there(
    kind: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    size = {"shortest_edge": 16} if kind in ("CLIP", "ConvNext") else SIXTEEN
    crop = {"crop_size": SIXTEEN} if kind == "CLIP" else {}
    assert_same(written(tmp_path, kind, {"size": size, **crop} | changes), kind)


def test_random_configurations_are_followed_or_refused(tmp_path: Path) -> None:
    choices: dict[str, list[Any]] = {
        "size": [16, 17, [16, 16], SIXTEEN, {"shortest_edge": 19}, {"shortest_edge": 16}, None],
        "default_to_square": [True, False, None],
        "do_center_crop": [True, False, None],
        "crop_size": [15, SIXTEEN, [13, 16], None],
        "do_rescale": [True, False, None],
        "rescale_factor": [1 / 255, 1 / 127.5, 0.5, None],
        "rescale_offset": [True, False, None],
        "include_top": [True, False, None],
        "do_normalize": [True, False, None],
        "image_mean": [0.5, [0.485, 0.456, 0.406], None],
        "image_std": [0.5, [0.229, 0.224, 0.225], None],
        "crop_pct": [0.875, 0.9, 1.0, None],
        "resample": [0, 1, 2, 3, 4, 5, "bicubic", None],
    }
    rng = random.Random(0)
    taken = 0
    for kind in itertools.islice(itertools.cycle(KINDS), 300):
        names = rng.sample(sorted(choices), rng.randint(1, len(choices)))
        file = written(tmp_path, kind, {name: rng.choice(choices[name]) for name in names})
        assert_same(file, kind)
        taken += not isinstance(ours(file), str)
    assert taken > 80  # most are no dead ends


@pytest.mark.parametrize(
    "name",
    ["LevitImageProcessor", "PerceiverImageProcessor", "MobileViTImageProcessor", "FlavaProcessor",
     "DPTImageProcessor", "Siglip2ImageProcessor", "IdeficsImageProcessor", "NoSuchProcessor"],
)  # fmt: skip
def test_processors_with_steps_of_their_own_are_refused_by_name(name: str, tmp_path: Path) -> None:
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({"size": SIXTEEN, "image_processor_type": name}))
    with pytest.raises(CheckpointError, match=name):
        read_preprocessing(file)


@pytest.mark.parametrize(
    "named",
    [
        {}, {"feature_extractor_type": "ViTFeatureExtractor"},
        {"image_processor_type": "ViTImageProcessorFast"},
        {"image_processor_type": "ViTImageProcessorPil"},
        {"feature_extractor_type": "CLIPX", "image_processor_type": "ViTImageProcessor"},
    ],
)  # fmt: skip
def test_a_processor_has_several_names(named: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({"size": 16, **named}))
    assert_same(file, "ViT", supported=True)


def test_the_weights_of_a_uint8_input_carry_offset_and_second_division() -> None:
    spec = Preprocessing(
        "squash", (4, 4), (4, 4), "bilinear", (0.5, 0.4, 0.3), (0.2, 0.3, 0.5), 1 / 127.5,
        offset=-1.0, divided_twice=True,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (4, 4, 3), np.uint8)
    weight = rng.standard_normal((6, 3, 4, 4))
    wanted = np.einsum("dchw,chw->d", weight, preprocess(image, spec))
    folded = fold(weight, spec)
    found = (image.reshape(-1) - folded.mean) @ folded.matrix
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
