"""preprocessor_config.json of transformers -> Preprocessing."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from vit_edge.bundle.manifest import Interpolation, Preprocessing
from vit_edge.checkpoints.fields import Fields
from vit_edge.checkpoints.files import read_json
from vit_edge.errors import CheckpointError
from vit_edge.variants import HALF, IMAGENET_MEAN, IMAGENET_STD

log = logging.getLogger(__name__)

NESTED = "processor_config.json"  # of a model with two processors, in transformers 5
# PIL.Image.Resampling, by number.
_RESAMPLE: dict[int, Interpolation] = {
    0: "nearest",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
    4: "box",
    5: "hamming",
}
# Steps of other processors that change pixels, and that no ViT classifier asks for.
_UNSUPPORTED = ("do_pad", "do_thumbnail", "do_align_long_axis", "do_flip_channel_order")
_Colour: TypeAlias = tuple[float, float, float]


class Processor(NamedTuple):
    """The class attributes of an image processor of transformers: they hold where a file is silent.

    A null is not silence: it turns a step off, and what a step needs must not be null. Every class
    that has no steps of its own beside resize, crop, rescale and normalize may stand here; tests
    compare each with transformers.
    """

    size: dict[str, int]
    crop_px: int | None = None  # of its own; it crops without being asked
    square: bool = True  # what one integer means: both sides, or the shortest
    resample: int = 3
    mean: _Colour = HALF
    std: _Colour = HALF


CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_EDGE_224, _SQUARE_224 = {"shortest_edge": 224}, {"height": 224, "width": 224}
_CLIP = Processor(_EDGE_224, 224, square=False, mean=CLIP_MEAN, std=CLIP_STD)
_PROCESSORS = {
    "ViT": Processor(_SQUARE_224, resample=2),
    "DeiT": Processor({"height": 256, "width": 256}, 224),
    "Beit": Processor(_SQUARE_224),
    "Bit": _CLIP,
    "Blip": Processor({"height": 384, "width": 384}, mean=CLIP_MEAN, std=CLIP_STD),
    "CLIP": _CLIP,
    "ChineseCLIP": _CLIP,
    "ConvNext": Processor({"shortest_edge": 384}, square=False),
    "EfficientNet": Processor({"height": 346, "width": 346}),
    "MobileNetV1": Processor({"shortest_edge": 256}, 224, square=False, resample=2),
    "Pvt": Processor(_SQUARE_224, mean=IMAGENET_MEAN, std=IMAGENET_STD),
    "Siglip": Processor(_SQUARE_224, square=False),
}
_WITHOUT_CROP = 384  # ConvNext: from this size on, images are squashed and nothing is cut off


def preprocessing_of(
    path: Path,
    image_hw: tuple[int, int],
    asked_hw: tuple[int, int] | None = None,
    kind: str = "ViT",
) -> Callable[[tuple[int, int]], Preprocessing]:
    """Read a preprocessor_config.json.

    Args:
        path: The file; if it does not exist, the defaults of the model's own processor hold, at
            the size of its images, and the log says so.
        image_hw: What the checkpoint's model takes; the file must end there ...
        asked_hw: ... unless the user decides where.
        kind: The model's own processor, where the file names none: ViT, CLIP.

    Returns:
        The preprocessing for any other image size: the ratio of crop to resize stays.

    Raises:
        CheckpointError: The file asks for something unknown, or ends at another size.
    """
    if path.is_file():
        own = read_preprocessing(path, kind)
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
        own = _default_preprocessing(_PROCESSORS[kind], image_hw)
        log.info(
            "%s: missing; taking %sImageProcessor's defaults (%s, %s, mean %s)",
            path, kind, own.resize, own.interpolation, own.mean,
        )  # fmt: skip

    def at(size_hw: tuple[int, int]) -> Preprocessing:
        height, width = (
            round(new * resized / cropped)
            for new, resized, cropped in zip(size_hw, own.resize_hw, own.crop_hw, strict=True)
        )
        return dataclasses.replace(own, resize_hw=(height, width), crop_hw=size_hw)

    return at


def _default_preprocessing(processor: Processor, image_hw: tuple[int, int]) -> Preprocessing:
    """Make what a processor does without a file, at the size that a model takes."""
    resize: Literal["squash", "cover"] = "squash" if processor.square else "cover"
    return Preprocessing(
        resize,
        image_hw,
        image_hw,
        _RESAMPLE[processor.resample],
        processor.mean,
        processor.std,
        crop_rounding="even" if processor.square else "down",
    )


def processor_file(folder: Path) -> Path:
    """The file that decides, as in transformers 5: processor_config.json if images are in it.

    Raises:
        CheckpointError: It is damaged.
    """
    nested = folder / NESTED
    holds = nested.is_file() and isinstance(read_json(nested).get("image_processor"), dict)
    return nested if holds else folder / "preprocessor_config.json"


def read_preprocessing(path: Path, default: str = "ViT") -> Preprocessing:
    """Read every field that decides a pixel; what we cannot do is refused by name.

    Args:
        path: preprocessor_config.json, or processor_config.json with it inside.
        default: The processor that is meant where the file names none.

    Raises:
        CheckpointError: The file is damaged, or asks for something unknown.
    """
    data = read_json(path)
    inside = data.get("image_processor")
    fields = Fields(inside if isinstance(inside, dict) else data, str(path))
    kind, processor = _processor(fields, default)
    for name in _UNSUPPORTED:
        if _truth(fields, name, default=False):
            fields.problem(f"{name}: true is not supported")
    if not _truth(fields, "do_resize", default=True):
        fields.problem("do_resize: false is not supported: photos come in all sizes")
    if kind == "CLIP" and fields.data.get("use_square_size"):
        fields.problem("use_square_size: true is not supported; write size as height and width")
    if fields.data.get("data_format") not in (None, "channels_first"):
        fields.problem(f"data_format: {fields.data['data_format']!r}; expected channels_first")
    resize, resize_hw = _resize(fields, processor)
    crops = _truth(fields, "do_center_crop", default=processor.crop_px is not None)
    crop_hw = _crop(fields, processor, crops=crops) or resize_hw
    if kind == "ConvNext":
        resize, resize_hw, crop_hw = _convnext(fields, resize, resize_hw, crops=crops)
    elif resize == "cover" and not crops:
        fields.problem("size: shortest_edge without do_center_crop leaves images of any shape")
    normalised, again = _truth(fields, "do_normalize", default=True), _include_top(fields, kind)
    rescaled = _truth(fields, "do_rescale", default=True)
    offset = kind == "EfficientNet" and _truth(fields, "rescale_offset", default=False)
    factor = fields.number("rescale_factor", 1 / 255) if rescaled else 1.0
    processed = Preprocessing(
        resize,
        resize_hw,
        crop_hw,
        _interpolation(fields, processor),
        _colour(fields, "image_mean", processor.mean) if normalised else (0.0, 0.0, 0.0),
        _colour(fields, "image_std", processor.std) if normalised or again else (1.0, 1.0, 1.0),
        factor,
        crop_rounding="even" if crop_hw == resize_hw and resize == "squash" else "down",
        offset=-1.0 if offset and rescaled else 0.0,
        divided_twice=normalised and again,
    )
    fields.problems += [] if fields.problems else processed.problems()
    fields.done()
    return processed


def _processor(fields: Fields, default: str) -> tuple[str, Processor]:
    """The image processor that a file names, as AutoImageProcessor takes it."""
    named = fields.data.get("image_processor_type") or fields.data.get("feature_extractor_type")
    name = f"{default}ImageProcessor" if named is None else str(named)
    kind = re.sub("(ImageProcessor(Fast|Pil)?|FeatureExtractor)$", "", name)
    if kind not in _PROCESSORS:
        known = ", ".join(_PROCESSORS)
        fields.problem(
            f"image_processor_type: {name} is not supported; expected that of one of {known}"
        )
    return kind, _PROCESSORS.get(kind, _PROCESSORS["ViT"])


def _resize(
    fields: Fields, processor: Processor
) -> tuple[Literal["squash", "cover"], tuple[int, int]]:
    """`size`: an integer, [height, width], {height, width} or {shortest_edge}."""
    size = fields.data.get("size", processor.size)
    square = _truth(fields, "default_to_square", default=processor.square)
    if "size" not in fields.data:
        log.info("%s: no size; taking the processor's default, %s", fields.where, size)
    sides = _sides(size, square=square)
    if sides is not None and sides.keys() == {"height", "width"}:
        return "squash", (sides["height"], sides["width"])
    if sides is not None and sides.keys() == {"shortest_edge"}:
        return "cover", (sides["shortest_edge"], sides["shortest_edge"])
    fields.problem(
        f"size: {size!r} is not supported; expected an integer, [height, width], height and width, "
        "or shortest_edge"
    )
    return "squash", (1, 1)


def _sides(size: object, *, square: bool) -> dict[str, int] | None:
    """A size by its sides, as get_size_dict of transformers; None if it is none."""
    if type(size) is int:
        size = {"height": size, "width": size} if square else {"shortest_edge": size}
    elif isinstance(size, list) and len(size) == 2:
        size = dict(zip(("height", "width"), size, strict=True))
    if isinstance(size, dict) and all(type(side) is int and side > 0 for side in size.values()):
        return size
    return None


def _convnext(
    fields: Fields, resize: str, resize_hw: tuple[int, int], *, crops: bool
) -> tuple[Literal["squash", "cover"], tuple[int, int], tuple[int, int]]:
    """ConvNextImageProcessor: cover the size over crop_pct and cut it out, or squash to it."""
    edge = resize_hw[0]
    if resize != "cover":
        fields.problem(f"size: {fields.data.get('size')!r}; ConvNext needs shortest_edge")
    if crops:
        fields.problem("do_center_crop: true is not supported beside ConvNext's own crop_pct")
    if edge >= _WITHOUT_CROP:
        return "squash", (edge, edge), (edge, edge)
    ratio = fields.number("crop_pct", 224 / 256)
    if not 0 < ratio <= 1:
        fields.problem(f"crop_pct: {ratio} is not supported; expected a number in (0, 1]")
        ratio = 1.0
    covered = int(edge / ratio)
    return "cover", (covered, covered), (edge, edge)


def _include_top(fields: Fields, kind: str) -> bool:
    """EfficientNetImageProcessor divides by the standard deviation once more, by default."""
    return kind == "EfficientNet" and _truth(fields, "include_top", default=True)


def _truth(fields: Fields, name: str, *, default: bool) -> bool:
    """A switch: off where it is null, its default where it is missing."""
    return False if fields.data.get(name, default) is None else fields.truth(name, default)


def _crop(fields: Fields, processor: Processor, *, crops: bool) -> tuple[int, int] | None:
    """`crop_size`: an integer, [height, width] or {height, width}; None if nothing is cropped."""
    size = fields.data.get("crop_size", processor.crop_px)
    if size is None and not crops:
        return None
    sides = _sides(size, square=True)
    if sides is not None and sides.keys() == {"height", "width"}:
        return (sides["height"], sides["width"]) if crops else None
    fields.problem(
        f"crop_size: {size!r} is not supported; expected an integer, [height, width], or height "
        "and width"
    )
    return 1, 1


def _colour(fields: Fields, name: str, default: _Colour) -> _Colour:
    """Three numbers, or one for all three channels."""
    value = fields.data.get(name, default)
    if value is None:
        fields.problem(f"{name}: null, but it is needed")
    if isinstance(value, int | float) and type(value) is not bool:
        return float(value), float(value), float(value)
    return fields.colour(name, default)


def _interpolation(fields: Fields, processor: Processor) -> Interpolation:
    """`resample`: a number of PIL."""
    number = fields.data.get("resample", processor.resample)
    if isinstance(number, str):
        log.warning(
            "%s: resample: %r is no number of PIL; transformers takes bilinear then, and so does "
            "this. Write the number that was meant: 3 for bicubic",
            fields.where,
            number,
        )
        return "bilinear"
    if type(number) is int and number in _RESAMPLE:
        return _RESAMPLE[number]
    names = ", ".join(f"{n} ({name})" for n, name in _RESAMPLE.items())
    fields.problem(f"resample: {number!r} is unknown; expected one of {names}")
    return "bilinear"
