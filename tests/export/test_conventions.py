"""--preprocess and --labels: by name, or from the files that others write."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from vit_edge.bundle.manifest import Preprocessing
from vit_edge.errors import BundleError, CheckpointError, UsageError
from vit_edge.export.foreign.conventions import CONVENTIONS, labels_for, preprocessing_for
from vit_edge.variants import HALF, VARIANTS, variant

requires = ("torch",)


def write(folder: Path, name: str, data: Any) -> str:
    path = folder / name
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return str(path)


@pytest.mark.parametrize("name", CONVENTIONS)
@pytest.mark.parametrize("image_hw", [(224, 224), (384, 384), (160, 224)])
def test_a_convention_ends_at_the_size_of_the_graph(name: str, image_hw: tuple[int, int]) -> None:
    found = preprocessing_for(name, image_hw)
    assert found.crop_hw == image_hw
    assert found.problems() == []


@pytest.mark.parametrize("row", VARIANTS.values(), ids=lambda row: row.name)
def test_the_conventions_are_those_of_the_variants(row: Any) -> None:
    if row.size in ("testing", "cifar10"):
        return
    image_hw = (row.image_px, row.image_px)
    if row.hf is not None:
        name = "google-vit" if row.family == "vit" else "deit"
        assert preprocessing_for(name, image_hw) == row.preprocessing
    if row.timm is not None and row.family == "vit" and row.image_px in (224, 384):
        assert preprocessing_for("timm-augreg", image_hw) == row.timm_preprocessing


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="did you mean google-vit.*timm-augreg.*torchvision"):
        preprocessing_for("google-vita", (224, 224))


def test_the_files_of_other_libraries_are_read(tmp_path: Path) -> None:
    hf = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 224, "width": 224},
        "resample": 3,
        "image_mean": HALF,
        "image_std": HALF,
    }
    found = preprocessing_for(write(tmp_path, "preprocessor_config.json", hf), (224, 224))
    assert (found.resize, found.interpolation) == ("squash", "bicubic")
    nested = {"image_processor": hf, "processor_class": "CLIPProcessor"}  # of transformers 5
    assert preprocessing_for(write(tmp_path, "processor_config.json", nested), (224, 224)) == found
    timm = {
        "architecture": "vit_tiny_patch16_224",
        "pretrained_cfg": {
            "input_size": [3, 224, 224], "crop_pct": 0.9, "interpolation": "bicubic",
            "mean": HALF, "std": HALF,
        },
    }  # fmt: skip
    found = preprocessing_for(write(tmp_path, "config.json", timm), (224, 224))
    assert found == variant("tiny-patch16-224").timm_preprocessing
    own = dataclasses.asdict(found)
    assert preprocessing_for(write(tmp_path, "own.json", own), (224, 224)) == found
    del own["rescale_factor"], own["background"]
    assert preprocessing_for(write(tmp_path, "short.json", own), (224, 224)) == found
    manifest = {"schema_version": 2, "preprocessing": own}
    assert preprocessing_for(write(tmp_path, "manifest.json", manifest), (224, 224)) == found


@pytest.mark.parametrize(
    "data",
    [
        {"image_processor_type": "ViTImageProcessor", "size": 384},
        {
            "pretrained_cfg": {
                "input_size": [3, 384, 384], "crop_pct": 1.0, "interpolation": "bicubic",
                "mean": HALF, "std": HALF,
            }
        },
        dataclasses.asdict(
            Preprocessing("squash", (384, 384), (384, 384), "bilinear", HALF, HALF)
        ),
    ],
    ids=["transformers", "timm", "own"],
)  # fmt: skip
def test_a_file_for_another_size_is_refused_with_both(data: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"\[384, 384\] px, the graph takes \[224, 224\] px"):
        preprocessing_for(write(tmp_path, "p.json", data), (224, 224))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("{", "cannot be read as JSON"),
        ({"hidden_size": 768}, "no preprocessing in it"),
        ({"resize_hw": [224, 224], "colour": 1}, "'colour', an unknown key"),
        ({"pretrained_cfg": {"mean": HALF}}, "crop_pct: missing"),
        ({"do_resize": True, "size": 224, "do_pad": True}, "do_pad"),
    ],
)
def test_a_file_that_says_too_little_or_too_much_is_refused(
    data: Any, said: str, tmp_path: Path
) -> None:
    with pytest.raises((CheckpointError, BundleError), match=said):
        preprocessing_for(write(tmp_path, "p.json", data), (224, 224))


def test_labels_come_one_a_line_or_from_a_config(tmp_path: Path) -> None:
    lines = Path(write(tmp_path, "labels.txt", "cat\ndog\r\nEuropean\tred fox\n"))
    expected = ("cat", "dog", "European red fox")
    assert labels_for(lines, 3, "x") == expected
    hf = {"id2label": {"2": "European red fox", "0": "cat", "1": "dog"}}
    assert labels_for(Path(write(tmp_path, "hf.json", hf)), 3, "x") == expected
    timm = {"pretrained_cfg": {}, "label_names": list(expected)}
    assert labels_for(Path(write(tmp_path, "timm.json", timm)), 3, "x") == expected


def test_without_labels_imagenet_has_names_and_others_have_numbers() -> None:
    assert labels_for(None, 1000, "x")[281] == "tabby, tabby cat"
    assert labels_for(None, 3, "x") == ("class_0", "class_1", "class_2")


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("labels.txt", "cat\ndog", "2 labels, but the logits have 3 classes"),
        ("labels.txt", "", "0 labels"),
        ("config.json", {"id2label": {"0": "cat", "2": "dog"}}, "none for class 1"),
        ("config.json", {"hidden_size": 3}, "id2label, label_names: neither is there"),
        ("config.json", {"label_names": ["cat"]}, "1 labels"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    name: str, data: Any, said: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=said):
        labels_for(Path(write(tmp_path, name, data)), 3, "x")


def test_labels_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read as text"):
        labels_for(tmp_path / "nowhere.txt", 3, "x")
    (tmp_path / "picture.txt").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(CheckpointError, match="cannot be read as text"):
        labels_for(tmp_path / "picture.txt", 3, "x")
