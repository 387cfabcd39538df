"""Conventions a foreign ONNX file does not state: its preprocessing, and what its classes are.

Both are asked for, never guessed: `--preprocess NAME|FILE` and `--labels FILE`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vit_edge.bundle.manifest import Interpolation, Preprocessing, preprocessing_from_table
from vit_edge.checkpoints.fields import Fields
from vit_edge.checkpoints.files import read_json
from vit_edge.checkpoints.hf_preprocessing import read_preprocessing
from vit_edge.checkpoints.label_file import labels_for as labels_for
from vit_edge.checkpoints.label_file import refuse_giant
from vit_edge.checkpoints.label_file import scores_in as scores_in
from vit_edge.checkpoints.timm_config import input_hw, preprocessing_from, pretrained_cfg
from vit_edge.errors import CheckpointError, UsageError
from vit_edge.variants import HALF, IMAGENET_MEAN, IMAGENET_STD


class Convention(NamedTuple):
    """The preprocessing a family of models evaluates with, at any image size."""

    resize: Literal["squash", "cover"]
    crop_ratio: Callable[[int], float]  # of the model's image size in px; 1 crops nothing
    interpolation: Interpolation
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    whose: str

    def at(self, image_hw: tuple[int, int]) -> Preprocessing:
        """The preprocessing that ends at this size."""
        ratio = self.crop_ratio(min(image_hw))
        height, width = (math.floor(side / ratio) for side in image_hw)
        return Preprocessing(
            self.resize, (height, width), image_hw, self.interpolation, self.mean, self.std
        )


def _uncropped(_size_px: int) -> float:
    return 1.0


# fmt: off
CONVENTIONS = {
    "google-vit": Convention(
        "squash", _uncropped, "bilinear", HALF, HALF,
        "google/vit-* and ViTImageProcessor's defaults",
    ),
    # pretrained_cfg of timm's augreg models: crop_pct 0.9 at 224, 1.0 at 384
    "timm-augreg": Convention(
        "cover", lambda size_px: 0.9 if size_px <= 224 else 1.0, "bicubic", HALF, HALF,
        "timm's vit_*.augreg_*",
    ),
    # facebookresearch/deit, datasets.py: resize to 256 / 224 of the size, bicubic
    "deit": Convention(
        "cover", lambda _: 224 / 256, "bicubic", IMAGENET_MEAN, IMAGENET_STD,
        "facebook/deit-* and dino-*",
    ),
    # pretrained_cfg of timm's deit_* models: crop_pct 0.9 at 224, 1.0 at 384
    "timm-deit": Convention(
        "cover", lambda size_px: 0.9 if size_px <= 224 else 1.0, "bicubic",
        IMAGENET_MEAN, IMAGENET_STD, "timm's deit_*",
    ),
    # ViT_B_16_Weights.IMAGENET1K_V1.transforms(): resize to 256 for a crop of 224
    "torchvision": Convention(
        "cover", lambda _: 224 / 256, "bilinear", IMAGENET_MEAN, IMAGENET_STD,
        "torchvision's vit_*, IMAGENET1K_V1",
    ),
}
# fmt: on


def preprocessing_for(
    name_or_file: str, image_hw: tuple[int, int], *, at_any_size: bool = False
) -> Preprocessing:
    """Read `--preprocess`.

    Args:
        name_or_file: One of CONVENTIONS, or a JSON file: preprocessor_config.json of transformers,
            config.json of timm, a bundle's manifest.json, or an object of Preprocessing's fields.
        image_hw: Height and width that the graph takes, in pixels.
        at_any_size: Return what a file says, at whatever size it says it.

    Raises:
        UsageError: Neither a name nor a file.
        CheckpointError: The file is of none of these kinds, asks for something that is not
            supported, or ends at another size than the graph takes.
    """
    if name_or_file in CONVENTIONS:
        return CONVENTIONS[name_or_file].at(image_hw)
    path = Path(name_or_file)
    if not path.is_file():
        close = difflib.get_close_matches(name_or_file, CONVENTIONS, 1)
        meant = f" (did you mean {close[0]}?)" if close else ""
        raise UsageError(
            f"--preprocess {name_or_file}: no such file, nor a name{meant}. Names are: "
            + "; ".join(f"{name} ({c.whose})" for name, c in CONVENTIONS.items())
        )
    steps = _preprocessing_of_file(path, image_hw)
    if steps.crop_hw != image_hw and not at_any_size:
        raise CheckpointError(
            f"{path}: images end at {list(steps.crop_hw)} px, the graph takes {list(image_hw)} px. "
            "This is another model's file, or the graph was exported at another size"
        )
    return steps


def _preprocessing_of_file(path: Path, image_hw: tuple[int, int]) -> Preprocessing:
    data = _json(path)
    if isinstance(data.get("preprocessing"), dict):
        return preprocessing_from_table(data["preprocessing"], f"{path}: preprocessing")
    if "resize_hw" in data or "crop_hw" in data:
        return preprocessing_from_table(data, str(path))
    if "pretrained_cfg" in data or "crop_pct" in data:
        cfg = pretrained_cfg(Fields(data, str(path)))
        at = preprocessing_from(cfg)
        size_hw = input_hw(cfg, {})
        cfg.done()
        return at(size_hw or image_hw)
    if is_of_transformers(data):
        return read_preprocessing(path)
    raise CheckpointError(
        f"{path}: no preprocessing in it. Expected preprocessor_config.json of transformers, "
        "config.json of timm (pretrained_cfg), manifest.json of a bundle, or an object with "
        "resize, resize_hw, crop_hw, interpolation, mean and std"
    )


def is_of_transformers(data: Mapping[str, Any]) -> bool:
    """True for the fields of a preprocessor_config.json of transformers."""
    return any(
        key in data
        for key in ("image_mean", "image_processor_type", "do_resize", "size", "image_processor")
    )


def _json(path: Path) -> dict[str, Any]:
    refuse_giant(path)
    return read_json(path)
