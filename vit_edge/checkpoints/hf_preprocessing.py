"""preprocessor_config.json of transformers -> Preprocessing."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from vit_edge.bundle.manifest import Interpolation, Preprocessing
from vit_edge.checkpoints.fields import Fields
from vit_edge.checkpoints.files import read_json
from vit_edge.errors import CheckpointError
from vit_edge.variants import HALF

log = logging.getLogger(__name__)

# PIL.Image.Resampling, by number.
_RESAMPLE: dict[int, Interpolation] = {
    0: "nearest",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
    4: "box",
    5: "hamming",
}
# In these processors one integer `size` means both sides; in others the shortest edge.
_SQUARE_SIZE = ("ViT", "DeiT")

# Steps of other processors that change pixels, and that no ViT classifier asks for.
_UNSUPPORTED = ("do_pad", "do_thumbnail", "do_align_long_axis", "do_flip_channel_order")


def preprocessing_of(
    path: Path, image_hw: tuple[int, int], asked_hw: tuple[int, int] | None = None
) -> Callable[[tuple[int, int]], Preprocessing]:
    """Read a preprocessor_config.json.

    Args:
        path: The file; if it does not exist, ViTImageProcessor's own defaults hold, and the log
            says so.
        image_hw: What the checkpoint's model takes; the file must end there ...
        asked_hw: ... unless the user decides where.

    Returns:
        The preprocessing for any other image size: the ratio of crop to resize stays.

    Raises:
        CheckpointError: The file asks for something unknown, or ends at another size.
    """
    if path.is_file():
        own = read_preprocessing(path)
        if own.crop_hw != image_hw:
            contradiction = (
                f"{path}: size: images end at {list(own.crop_hw)} px, but image_size of "
                f"config.json is {list(image_hw)} px"
            )
            if asked_hw is None:
                raise CheckpointError(
                    f"{contradiction}. Correct one of the two, or decide with --image-size, such "
                    f"as --image-size {'x'.join(map(str, image_hw))}"
                )
            log.warning("%s; --image-size decides: %s px", contradiction, list(asked_hw))
    else:
        log.info("%s: missing; taking ViTImageProcessor's defaults (squash, bilinear, 0.5)", path)
        own = Preprocessing("squash", image_hw, image_hw, "bilinear", HALF, HALF)

    def at(size_hw: tuple[int, int]) -> Preprocessing:
        height, width = (
            round(new * resized / cropped)
            for new, resized, cropped in zip(size_hw, own.resize_hw, own.crop_hw, strict=True)
        )
        return dataclasses.replace(own, resize_hw=(height, width), crop_hw=size_hw)

    return at


def read_preprocessing(path: Path) -> Preprocessing:
    """Read every field that decides a pixel; what we cannot do is refused by name.

    Raises:
        CheckpointError: The file is damaged, or asks for something unknown.
    """
    fields = Fields(read_json(path), str(path))
    for name in _UNSUPPORTED:
        if fields.truth(name, False):
            fields.problem(f"{name}: true is not supported")
    if not fields.truth("do_resize", True):
        fields.problem("do_resize: false is not supported: photos come in all sizes")
    resize, resize_hw = _resize(fields)
    crop_hw = _crop(fields) if fields.truth("do_center_crop", False) else resize_hw
    if resize == "cover" and crop_hw == resize_hw and not fields.truth("do_center_crop", False):
        fields.problem("size: shortest_edge without do_center_crop leaves images of any shape")
    normalised = fields.truth("do_normalize", True)
    processed = Preprocessing(
        resize,
        resize_hw,
        crop_hw,
        _interpolation(fields),
        fields.colour("image_mean", HALF) if normalised else (0.0, 0.0, 0.0),
        fields.colour("image_std", HALF) if normalised else (1.0, 1.0, 1.0),
        fields.number("rescale_factor", 1 / 255) if fields.truth("do_rescale", True) else 1.0,
    )
    fields.problems += [] if fields.problems else processed.problems()
    fields.done()
    return processed


def _resize(fields: Fields) -> tuple[Literal["squash", "cover"], tuple[int, int]]:
    """`size`: an integer, {height, width} or {shortest_edge}."""
    size = fields.data.get("size")
    kind = fields.data.get("image_processor_type") or fields.data.get("feature_extractor_type")
    if size is None and str(kind).startswith("ViT"):
        log.info("%s: no size; taking ViTImageProcessor's default, 224 px", fields.where)
        size = 224
    if type(size) is int and size > 0:
        if kind is None or str(kind).startswith(_SQUARE_SIZE):
            return "squash", (size, size)
        return "cover", (size, size)
    if isinstance(size, dict):
        sides = {name: value for name, value in size.items() if value is not None}
        if all(type(side) is int and side > 0 for side in sides.values()):
            if sides.keys() == {"height", "width"}:
                return "squash", (sides["height"], sides["width"])
            if sides.keys() == {"shortest_edge"}:
                return "cover", (sides["shortest_edge"], sides["shortest_edge"])
    fields.problem(
        f"size: {size!r} is not supported; expected an integer, height and width, or shortest_edge"
    )
    return "squash", (1, 1)


def _crop(fields: Fields) -> tuple[int, int]:
    """`crop_size`: an integer or {height, width}."""
    size = fields.data.get("crop_size")
    sides = size if isinstance(size, dict) else {"height": size, "width": size}
    height, width = sides.get("height"), sides.get("width")
    if type(height) is int and type(width) is int and height > 0 and width > 0:
        return height, width
    fields.problem(
        f"crop_size: {size!r} is not supported; expected an integer, or height and width"
    )
    return 1, 1


def _interpolation(fields: Fields) -> Interpolation:
    """`resample`: a number of PIL; bilinear is ViTImageProcessor's default."""
    number = 2 if fields.data.get("resample") is None else fields.data["resample"]
    if type(number) is int and number in _RESAMPLE:
        return _RESAMPLE[number]
    names = ", ".join(f"{n} ({name})" for n, name in _RESAMPLE.items())
    fields.problem(f"resample: {number!r} is unknown; expected one of {names}")
    return "bilinear"
