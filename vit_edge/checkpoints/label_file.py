"""`--labels FILE`: the names of the classes, where what is exported brings none."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

from vit_edge.bundle.manifest import Scores
from vit_edge.checkpoints.fields import Fields
from vit_edge.checkpoints.labels import (
    labels_or_imagenet,
    one_line_labels,
    plain_labels,
    scores_of_config,
)
from vit_edge.checkpoints.text import refuse_pointer
from vit_edge.checkpoints.timm_config import label_list, labels_from, pretrained_cfg
from vit_edge.errors import CheckpointError

_LARGEST_FILE_BYTES = 16 * 2**20  # of labels or a configuration; theirs are a few KB
_NAMES = ("label_names", "labels", "pretrained_cfg")  # where timm has them


def labels_for(path: Path | None, num_classes: int, where: str) -> tuple[str, ...]:
    """Read `--labels`.

    Args:
        path: One label a line; or JSON: config.json of transformers (id2label) or timm
            (label_names), a list of labels, or an object of label and class number.
            None: ImageNet's for 1,000 classes, class_0, class_1, ... for any other number.
        num_classes: How many there must be.
        where: The model's file, to name in the log.

    Raises:
        CheckpointError: The file cannot be read, or holds another number of labels.
    """
    stand_ins = plain_labels(num_classes)
    if path is None:
        return labels_or_imagenet((), num_classes, where) or tuple(stand_ins)
    is_json = path.suffix.lower() == ".json"
    labels = _labels_of_json(path, num_classes) if is_json else _lines(path)
    if len(labels) != num_classes:
        raise CheckpointError(
            f"{path}: {len(labels)} labels, but the logits have {num_classes} classes"
        )
    return one_line_labels(labels, stand_ins, str(path))


def scores_in(path: Path, num_classes: int) -> Scores | None:
    """Read what a config.json of transformers, given as `--labels`, says of the logits.

    Returns:
        None where it says nothing, or where the file is of another kind.

    Raises:
        CheckpointError: The file is damaged, or says something unknown.
    """
    data = _json(path) if path.suffix.lower() == ".json" else None
    if not isinstance(data, dict) or "id2label" not in data:
        return None
    fields = Fields(data, str(path))
    scores = scores_of_config(fields, num_classes)
    fields.done()
    return scores


def refuse_giant(path: Path) -> None:
    """Refuse a file that is far too large for labels or a configuration.

    Raises:
        CheckpointError: It is.
    """
    if path.is_file() and path.stat().st_size > _LARGEST_FILE_BYTES:
        raise CheckpointError(f"{path}: {path.stat().st_size} bytes; no such file is that large")


def _labels_of_json(path: Path, num_classes: int) -> tuple[str, ...]:
    data = _json(path)
    known = isinstance(data, dict) and any(name in data for name in ("id2label", *_NAMES))
    fields = Fields(data if known else {"labels": data}, str(path))
    if fields.has("id2label"):
        labels = label_list(fields, "id2label", num_classes)
    elif known:
        labels = labels_from(pretrained_cfg(fields), fields, num_classes)
    elif _are_labels(data):
        labels = label_list(fields, "labels", num_classes)
    else:
        labels = ()
    if not labels and not fields.problems:
        fields.problem("id2label, label_names: neither is there")
    fields.done()
    return labels


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON: {error}") from None


def _are_labels(data: object) -> bool:
    """True for a list, and for an object of class number and label, either way round."""
    if not isinstance(data, dict):
        return isinstance(data, list)
    if all(type(value) is int for value in data.values()):
        return bool(data) and sorted(data.values()) == list(range(len(data)))
    return all(key.isdecimal() and isinstance(value, str) for key, value in data.items())


def _lines(path: Path) -> tuple[str, ...]:
    text = _text(path)
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    return tuple(lines) if text else ()


def _text(path: Path) -> str:
    """Decode a file: UTF-8, or UTF-16 if it begins with that mark, as PowerShell writes it."""
    refuse_pointer(path)
    try:
        refuse_giant(path)
        data = path.read_bytes()
        utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and b"\n" in data
        return data.decode("utf-16" if utf16 else "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read as text: {error}") from None
