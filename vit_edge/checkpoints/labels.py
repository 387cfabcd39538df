"""The names of the classes, where a checkpoint does not carry them itself."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib import resources

from vit_edge.bundle.manifest import Scores
from vit_edge.checkpoints.fields import Fields
from vit_edge.checkpoints.text import one_line

log = logging.getLogger(__name__)

IMAGENET_CLASSES = 1000

# problem_type of a config.json -> what transformers' image-classification pipeline does.
_SCORES: dict[str, Scores] = {
    "single_label_classification": "softmax",
    "multi_label_classification": "sigmoid",
    "regression": "none",
}


def scores_of_config(fields: Fields, num_classes: int) -> Scores | None:
    """Read what makes scores of a head's logits, as transformers' own pipeline does.

    Args:
        fields: Of a config.json.
        num_classes: Of the head; a single logit gets a sigmoid unless the file says regression.

    Returns:
        None where the file does not say, and several classes leave it open.
    """
    if not fields.has("problem_type"):
        return "sigmoid" if num_classes == 1 else None
    kind = fields.choice("problem_type", tuple(_SCORES), "single_label_classification")
    if kind == "single_label_classification" and num_classes == 1:
        fields.problem(
            f"problem_type: {kind} needs two classes or more, but the head has one; it is "
            "regression, or multi_label_classification for a yes or no"
        )
    return _SCORES[kind]


def imagenet_labels() -> tuple[str, ...]:
    """The 1,000 classes of ILSVRC 2012 in the order every ImageNet classifier uses."""
    text = resources.files("vit_edge") / "data" / "imagenet1k-labels.txt"
    return tuple(text.read_text(encoding="utf-8").splitlines())


def default_labels(num_classes: int) -> tuple[str, ...]:
    """ImageNet's for 1,000 classes, otherwise none."""
    return imagenet_labels() if num_classes == IMAGENET_CLASSES else ()


def labels_or_imagenet(labels: tuple[str, ...], num_classes: int, where: str) -> tuple[str, ...]:
    """The checkpoint's own labels; without any, 1,000 classes are ImageNet's, as in timm."""
    if labels or num_classes != IMAGENET_CLASSES:
        return labels
    log.info("%s: carries no labels; its 1,000 classes are taken for those of ImageNet-1k", where)
    return imagenet_labels()


def plain_labels(count: int) -> list[str]:
    """Stand-ins for labels nobody knows: class_0, class_1 ..., padded to equal length."""
    digits = len(str(max(count - 1, 0)))
    return [f"class_{index:0{digits}}" for index in range(count)]


def one_line_labels(labels: Sequence[str], stand_ins: Sequence[str], where: str) -> tuple[str, ...]:
    """Make every label one line of printable text, as labels.txt needs it; changes are logged."""
    clean = tuple(
        one_line(label) or stand_in for label, stand_in in zip(labels, stand_ins, strict=False)
    )
    changed = sum(old != new for old, new in zip(labels, clean, strict=False))
    if changed:
        log.warning(
            "%s: %d labels are empty or have line breaks, control characters or runs of spaces; "
            "each run became one space, an empty label class_N",
            where,
            changed,
        )
    return clean


def is_numbered(labels: Sequence[str]) -> bool:
    """True for LABEL_0, LABEL_1 ...: what transformers and old timm invent without labels."""
    return bool(labels) and all(label == f"LABEL_{i}" for i, label in enumerate(labels))


def numbered_labels(fields: Fields, name: str) -> tuple[str, ...]:
    """Read an object, class number -> label, whose numbers must be 0, 1, 2 ... without gaps."""
    labels = fields.data[name]
    if not isinstance(labels, dict) or not all(isinstance(v, str) for v in labels.values()):
        fields.problem(f"{name}: expected an object, class number -> label")
        return ()
    wanted = [str(index) for index in range(len(labels))]
    missing = [index for index in wanted if index not in labels]
    if missing:
        strange = sorted(labels.keys() - set(wanted))
        fields.problem(
            f"{name}: {len(labels)} labels, but none for class {', '.join(missing[:10])}; "
            f"found {', '.join(strange[:10])} instead"
        )
        return ()
    return tuple(labels[index] for index in wanted)
