"""The names of a model inside its wrappers: DDP, torch.compile, a LightningModule, two models.

A wrapper leaves its mark in every name, in front (`module.`, `net.`) or inside (`vit._orig_mod.`).
Here alone the marks are taken off. What stands beside the model is never dropped in silence.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Mapping
from typing import TypeVar

from vit_edge.checkpoints.text import one_line
from vit_edge.errors import CheckpointError

log = logging.getLogger(__name__)

_Value = TypeVar("_Value")
_SHOWN = 10

# One tensor that each kind of ViT has once: what stands in front of it is the prefix.
ANCHORS = (
    *(  # transformers, with a head
        f"{family}.embeddings.patch_embeddings.projection.weight"
        for family in ("vit", "deit", "dinov2", "dinov2_with_registers")
    ),
    "embeddings.patch_embeddings.projection.weight",  # transformers, without
    "vision_model.embeddings.class_embedding",  # transformers' CLIP
    "embeddings.class_embedding",  # its vision half alone, in transformers 5
    "visual.class_embedding",  # open_clip
    "class_embedding",  # its tower alone
    "patch_embed.proj.weight",  # timm
    "tokens_to_token.project.weight",  # T2T-ViT
    "encoder.pos_embedding",  # torchvision
)
# Parts of a name that only wrappers use, wherever they stand: torch.compile, DDP and AveragedModel,
# FSDP, activation checkpointing, Lightning's strategies.
_MARKS = frozenset(
    {
        "_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module",
        "_forward_module",
    }
)  # fmt: skip
_AVERAGED = re.compile(r"(^|[._])(ema|swa|averaged)($|[._])")
# Beside a model, and no part of its answer: losses, metrics, what averaging counts, and the
# projection head that DINO trains with.
_NO_PART = re.compile(
    r"loss|criterion|metric|(^|[._])(acc|accuracy|auroc|f1)[._]"
    r"|(^|\.)(n_averaged|decay|num_updates|initted|step)$"
    r"|(^|\.)((dino|ibot)_)?head\.(mlp|last_layer)\.",
    re.IGNORECASE,
)


def unwrap(stored: Mapping[str, _Value], where: str, key: str | None = None) -> dict[str, _Value]:
    """Take the marks of wrappers off all names.

    Args:
        stored: What the file has, by name.
        where: The path to name in errors.
        key: Which of several models is meant, if the user said so.

    Raises:
        CheckpointError: Several models, or tensors beside the model that may be part of it; or two
            names that differ only in a wrapper's mark.
    """
    tensors = _without_marks(stored, where)
    prefixes = {prefix for name in tensors if (prefix := prefix_of(name)) is not None}
    if not prefixes:
        if key is not None:
            raise CheckpointError(f"{where}: no Vision Transformer stands below --key {key}")
        return tensors
    prefix = choose(prefixes, key, where)
    if key is not None and below(key, prefix) != "":
        raise CheckpointError(f"{where}: nothing stands below --key {key}, but below {prefix!r}")
    others = tuple(prefixes - {prefix})
    if others:
        log.info("%s: reading %r, not %s", where, prefix, _keys(sorted(others)))
    inner = tuple(other for other in others if other.startswith(prefix))
    inside = {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix) and not name.startswith(inner)
    }
    beside = [name for name in tensors if not name.startswith((prefix, *others))]
    if prefix == "backbone." and key is None:  # the classifiers that torch.hub makes of DINOv2
        heads = [name for name in beside if name.startswith("linear_head.")]
        inside |= {name: tensors[name] for name in heads}
        beside = [name for name in beside if name not in heads]
    _refuse_unknown(beside, prefix, key, where)
    beside += [name for name in inside if _NO_PART.search(name)]
    if beside:
        log.warning("%s: not part of the model, left out: %s", where, _listed(sorted(beside)))
    if prefix:
        log.info("%s: every name begins with %r, which is left out", where, prefix)
    return {name: tensor for name, tensor in inside.items() if not _NO_PART.search(name)}


def prefix_of(name: str) -> str | None:
    """Return what stands in front of a model's anchor; None for all other tensors."""
    for anchor in ANCHORS:
        if name == anchor or name.endswith(f".{anchor}"):
            return name[: -len(anchor)]
    return None


def without_marks(name: str) -> str:
    """Take the parts that only wrappers use out of one name."""
    return ".".join(part for part in name.split(".") if part not in _MARKS)


def choose(places: Collection[str], key: str | None, where: str) -> str:
    """Choose one of the places where models stand: entries of a file, or prefixes of names.

    Without a key, averaged weights give way to the others, and DINO's student to its teacher, as
    in DINO's own evaluation.

    Raises:
        CheckpointError: No place fits, or more than one; all are named.
    """
    left = sorted(places)
    if key is not None:
        left = [place for place in left if _below(key, place)]
    if len(left) > 1:
        left = [place for place in left if not is_averaged(place)] or left
    if len(left) > 1 and any(_has(place, "teacher") for place in left):
        left = [place for place in left if not _has(place, "student")]
    if len(left) == 1:
        return left[0]
    asked = "" if key is None else f" below --key {key}"
    what = f"holds several models{asked}" if left else f"holds no model{asked}, but"
    keys = [f"--key {place.strip('.')}" for place in left or sorted(places) if place]
    raise CheckpointError(
        f"{where}: {what}: {_keys(left or sorted(places))}. "
        f"Say which is meant: {' or '.join(keys) or 'leave --key out'}"
    )


def is_averaged(place: str) -> bool:
    """True if averaged weights stand there, by the place's name."""
    return bool(_AVERAGED.search(place))


def below(key: str, place: str) -> str | None:
    """Return what is left of a key behind a place that it leads into or names; None if neither."""
    if not _below(key, place):
        return None
    parts, path = key.strip(".").split("."), place.strip(".").split(".")
    return ".".join(parts[len(path) :]) if parts[: len(path)] == path else ""


def _below(key: str, place: str) -> bool:
    """True if the parts of one begin the other, or those of the key stand within the place."""
    parts, path = key.strip(".").split("."), place.strip(".").split(".")
    if parts[: len(path)] == path:
        return True
    starts = range(len(path) - len(parts) + 1)
    return any(path[start : start + len(parts)] == parts for start in starts)


def _without_marks(stored: Mapping[str, _Value], where: str) -> dict[str, _Value]:
    tensors: dict[str, _Value] = {}
    doubled = []
    for name, tensor in stored.items():
        plain = without_marks(name)
        if plain in tensors:
            doubled.append(plain)
        tensors[plain] = tensor
    if doubled:
        raise CheckpointError(
            f"{where}: these names occur twice, with and without a wrapper's mark "
            f"({', '.join(sorted(_MARKS))}): {_listed(doubled)}. Save the state_dict of one model "
            "alone."
        )
    marks = sorted(_MARKS.intersection(part for name in stored for part in name.split(".")))
    if marks:
        log.info("%s: left out of all names: %s, of a wrapper", where, ", ".join(marks))
    return tensors


def _refuse_unknown(beside: Iterable[str], prefix: str, key: str | None, where: str) -> None:
    """Refuse tensors beside the model that may be part of its answer.

    A key that names the model's own prefix says that it is wanted without them.
    """
    if key is not None and f".{prefix}".endswith(f".{key.strip('.')}."):
        return
    region = "" if key is None else f"{prefix.partition(key)[0]}{key.strip('.')}."
    unknown = [
        name
        for name in beside
        if name.startswith(region) and not (_NO_PART.search(name) or is_averaged(name))
    ]
    if unknown:
        raise CheckpointError(
            f"{where}: the model's names begin with {prefix!r}, and these do not: "
            f"{_listed(unknown)}. They may be part of the answer. To leave them out: "
            f"--key {prefix.strip('.')}"
        )


def _has(place: str, word: str) -> bool:
    return word in re.split(r"[._]", place)


def _keys(places: Iterable[str]) -> str:
    return ", ".join(repr(one_line(place)) for place in places)


def _listed(names: Collection[str]) -> str:
    shown = [one_line(name) for name in list(names)[:_SHOWN]]
    rest = len(names) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")
