"""What Python calls a processor: an object, a table, a name or a file, as a file that is read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from vit_edge.bundle.manifest import Preprocessing
from vit_edge.checkpoints.files import read_json
from vit_edge.checkpoints.live import LiveModule
from vit_edge.errors import UsageError
from vit_edge.export.foreign.conventions import CONVENTIONS, is_of_transformers, preprocessing_for


def live_module(module: nn.Module, processor: Any, folder: Path) -> LiveModule:
    """Take a module with what the user gave as its processor.

    Args:
        module: The module.
        processor: None; a name or a file of `conventions.preprocessing_for`; an image processor of
            transformers, a data config of timm, or the transforms of torchvision's weights.
        folder: For a file; it must be there until the checkpoint was read.

    Raises:
        UsageError: It is none of these.
    """
    if processor is None:
        return LiveModule(module)
    named = processor_file(processor, folder)
    if named in CONVENTIONS:
        return LiveModule(module, preprocessing=partial(preprocessing_for, named))
    path = Path(named)
    if path.is_file() and is_of_transformers(read_json(path)):
        return LiveModule(module, processor=path)
    return LiveModule(module, preprocessing=partial(_at_any_size, named))


def processor_file(processor: Any, folder: Path) -> str:
    """Return a processor's name or file; what is neither is written into `folder`.

    Raises:
        UsageError: It is nothing that is known.
    """
    if isinstance(processor, (str, Path)):
        return str(processor)
    file = folder / "processor.json"
    file.write_text(json.dumps(_table(processor), default=str), encoding="utf-8")
    return str(file)


def _table(processor: Any) -> Mapping[str, Any]:
    """Describe a processor by the fields of a file."""
    if isinstance(processor, Mapping):  # timm's; the model's own size decides, as there
        return {name: value for name, value in processor.items() if name != "input_size"}
    inside = getattr(processor, "image_processor", processor)  # of a CLIPProcessor
    if hasattr(inside, "to_dict"):
        table: Mapping[str, Any] = inside.to_dict()
        return table
    if all(hasattr(inside, name) for name in ("crop_size", "resize_size", "mean", "std")):
        crop, resize = ([*size, size[-1]][:2] for size in (inside.crop_size, inside.resize_size))
        return {
            "resize": "cover",
            "resize_hw": resize,
            "crop_hw": crop,
            "interpolation": inside.interpolation.value,
            "mean": list(inside.mean),
            "std": list(inside.std),
        }
    raise UsageError(
        f"processor: {type(processor).__name__} is not known. Give an image processor of "
        "transformers, timm.data.resolve_model_data_config(model), weights.transforms() of "
        "torchvision, a JSON file of one of them, or a name: " + ", ".join(CONVENTIONS)
    )


def _at_any_size(named: str, image_hw: tuple[int, int]) -> Preprocessing:
    """Read a file that is for one size, at another one: the ratio of crop to resize stays."""
    steps = preprocessing_for(named, image_hw, at_any_size=True)
    height, width = (
        round(new * resized / cropped)
        for new, resized, cropped in zip(image_hw, steps.resize_hw, steps.crop_hw, strict=True)
    )
    return dataclasses.replace(steps, resize_hw=(height, width), crop_hw=image_hw)
