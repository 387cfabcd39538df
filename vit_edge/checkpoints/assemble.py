"""From a checkpoint that is understood to one that is read: what all sources have in common."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from vit_edge.bundle.architecture import Architecture, Tokenizer
from vit_edge.bundle.manifest import (
    CheckpointRecord,
    PositionInterpolation,
    PositionMethod,
    Preprocessing,
    Scores,
)
from vit_edge.checkpoints import Checkpoint, Request
from vit_edge.checkpoints.files import hashes_of
from vit_edge.checkpoints.label_file import labels_for
from vit_edge.checkpoints.labels import default_labels, one_line_labels, plain_labels
from vit_edge.checkpoints.positions import interpolate
from vit_edge.checkpoints.request import check_image_size
from vit_edge.checkpoints.tensors import LazyTensor, Rule, read_weights
from vit_edge.checkpoints.zero_shot import embeddings_of, with_text_head
from vit_edge.errors import CheckpointError, UsageError
from vit_edge.variants import VARIANTS, Variant

log = logging.getLogger(__name__)

HEAD = ("readout.head.weight", "readout.head.bias")
POSITION = "embedding.position"

# What makes another variant. Heads, labels and epsilons change in fine-tuning, or by source.
_SHAPE = (
    *("width", "depth", "heads", "mlp_dim", "patch_px", "channels", "qkv_bias", "prefix_tokens"),
    *("pooling", "norm_after_pooling", "norm_pre", "qk_norm", "activation", "final_norm"),
    *("projection_dim", "tokenizer", "token_dim"),
)


@dataclass(frozen=True)
class Foreign:
    """A checkpoint of some source, understood but not read."""

    source: str  # for the manifest: hf:ID, timm:NAME, ...
    where: str  # the path to name in errors
    name: str  # the folder's or file's; names the bundle if no variant fits
    architecture: Architecture
    rules: tuple[Rule, ...]
    tensors: Mapping[str, LazyTensor]
    labels: tuple[str, ...]  # empty: the source has none
    preprocessing: Callable[[tuple[int, int]], Preprocessing]  # for an image height and width
    position_method: PositionMethod
    ignored: Collection[str] = ()  # foreign names that classification does not need
    files: tuple[Path, ...] = ()
    revision: str | None = None
    scores: Scores | None = None  # of the logits; None: the source does not say
    logit_scale: float | None = None  # of cosines with text embeddings; None: it has none
    published_as: Callable[[Variant], bool] = field(default=lambda row: False)


def checkpoint_from(foreign: Foreign, request: Request) -> Checkpoint:
    """Check a foreign checkpoint against the request, read it, and bring it to the asked size.

    Raises:
        UsageError: The asked image size does not fit the patches; half of a zero-shot head.
        CheckpointError: It is not the asked variant; a tensor is missing, left over, misshaped or
            not finite.
    """
    rows = embeddings_of(request.text_embeddings, request.labels, request.logit_scale)
    problems = foreign.architecture.problems()
    if problems:
        raise CheckpointError(f"{foreign.where}:\n  " + "\n  ".join(problems))
    if request.variant is not None:
        _check_variant(foreign, request.variant, request.image_hw is not None)
    image_hw = request.image_hw or foreign.architecture.image_hw
    if image_hw != foreign.architecture.image_hw:
        check_image_size(image_hw, foreign.architecture.patch_px)
    _say_what_is_unseen(foreign, image_hw)
    preprocessing = foreign.preprocessing(image_hw)
    weights = read_weights(
        foreign.architecture, foreign.rules, foreign.tensors, foreign.where, foreign.ignored
    )
    architecture = _without_zeroed_head(foreign, weights)
    if rows is not None:
        scale = foreign.logit_scale if request.logit_scale is None else request.logit_scale
        architecture = with_text_head(architecture, weights, rows, scale, foreign.where)
        foreign = dataclasses.replace(foreign, labels=(), scores=None)  # of the head before
    files = (*foreign.files, *filter(None, (request.text_embeddings,)))
    record = CheckpointRecord(foreign.source, hashes_of(files), foreign.revision)
    if image_hw != architecture.image_hw:
        architecture, record = _resize(foreign, architecture, record, weights, request, image_hw)
    elif request.position_method is not None:
        log.warning("positions are not interpolated: the checkpoint has the asked size already")
    name = request.variant.name if request.variant is not None else _name(foreign)
    labels = _labels(foreign, architecture.num_classes, request)
    return Checkpoint(
        name,
        architecture,
        weights,
        labels,
        preprocessing,
        record,
        foreign.scores if architecture.num_classes else None,
        labels_invented=bool(labels) and not foreign.labels and request.labels is None,
    )


def heads_from_table(
    width: int, depth: int, row: Variant | None, where: str, tokenizer: Tokenizer = "patches"
) -> int:
    """The number of heads: as the variant has it, or as the table alone can have it.

    Raises:
        CheckpointError: Neither tells.
    """
    if row is not None:
        return row.architecture.heads
    shapes = {row.architecture for row in VARIANTS.values()}
    shape = width, depth, tokenizer
    fitting = {a.heads for a in shapes if (a.width, a.depth, a.tokenizer) == shape}
    if len(fitting) == 1:
        return fitting.pop()
    raise CheckpointError(
        f"{where}: the number of heads is not in the tensors, and no variant has "
        f'width {width} and depth {depth}. Write "model_args": {{"num_heads": N}} into a timm '
        "config.json beside the weights."
    )


def clean_name(text: str) -> str:
    """Clean a bundle's name: keep letters, digits, dots, dashes and underscores."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "checkpoint"


def _labels(foreign: Foreign, num_classes: int, request: Request) -> tuple[str, ...]:
    """One label a class: the user's, the checkpoint's, or stand-ins."""
    if request.labels is not None:
        if not num_classes:
            raise UsageError(f"--labels: {foreign.where} has no head, so there are no classes")
        if foreign.labels and foreign.labels != default_labels(num_classes):
            log.warning("%s: --labels decides, not its own labels", foreign.where)
        return labels_for(request.labels, num_classes, foreign.where)
    if not num_classes:
        return ()
    stand_ins = plain_labels(num_classes)
    return one_line_labels(foreign.labels, stand_ins, foreign.where) or tuple(stand_ins)


def _say_what_is_unseen(foreign: Foreign, image_hw: tuple[int, int]) -> None:
    """Say that pixels at the edges fill no patch, as transformers and timm leave them out, too."""
    rest = [side % foreign.architecture.patch_px for side in image_hw]
    if any(rest):
        log.warning(
            "%s: images of %dx%d px hold no whole number of patches of %d px: the model does not "
            "see the last %d rows and %d columns",
            foreign.where, *image_hw, foreign.architecture.patch_px, *rest,
        )  # fmt: skip


def _check_variant(foreign: Foreign, wanted: Variant, size_asked: bool) -> None:
    """Compare shapes field by field; another head is a fine-tuned checkpoint, and welcome."""
    expected, given = wanted.architecture, foreign.architecture
    fields = _SHAPE if size_asked else (*_SHAPE, "image_hw")
    different = [
        f"{name}: the checkpoint has {getattr(given, name)}, {wanted.name} has "
        f"{getattr(expected, name)}"
        for name in fields
        if getattr(given, name) != getattr(expected, name)
    ]
    if different:
        raise CheckpointError(
            f"{foreign.where} is no {wanted.name}:\n  " + "\n  ".join(different) + "\n"
            "Leave --variant out to take the checkpoint as it is, or give --image-size if only "
            "the size differs."
        )


def _without_zeroed_head(foreign: Foreign, weights: dict[str, Tensor]) -> Architecture:
    """Drop a head of zeros: the ImageNet-21k .npz files carry one where training took it off."""
    architecture = foreign.architecture
    if not architecture.num_classes or weights[HEAD[0]].any():
        return architecture
    for name in HEAD:
        del weights[name]
    log.warning(
        "%s: the head is all zeros, so there are no logits; features can be exported with "
        "--outputs features",
        foreign.where,
    )
    return dataclasses.replace(architecture, num_classes=0)


def _resize(
    foreign: Foreign,
    architecture: Architecture,
    record: CheckpointRecord,
    weights: dict[str, Tensor],
    request: Request,
    image_hw: tuple[int, int],
) -> tuple[Architecture, CheckpointRecord]:
    """Take the positions to another grid, in `weights`, and record it."""
    resized = dataclasses.replace(architecture, image_hw=image_hw)
    method = request.position_method or foreign.position_method
    if resized.grid_hw == architecture.grid_hw:
        return resized, record
    from_hw, to_hw = architecture.grid_hw, resized.grid_hw
    log.info("positions interpolated: %s, %s -> %s", method, from_hw, to_hw)
    weights[POSITION] = interpolate(
        weights[POSITION], from_hw, to_hw, method, architecture.prefix_tokens
    )
    change = PositionInterpolation(method, from_hw, to_hw)
    return resized, dataclasses.replace(record, position_interpolation=change)


def _name(foreign: Foreign) -> str:
    """The row that was published under this id or that alone has this shape, else the file's."""
    fields = (*_SHAPE, "image_hw", "num_classes")
    mean = foreign.preprocessing(foreign.architecture.image_hw).mean
    fitting = [
        row
        for row in VARIANTS.values()
        if all(getattr(row.architecture, f) == getattr(foreign.architecture, f) for f in fields)
    ]
    rows = [row for row in fitting if foreign.published_as(row)] or [
        row for row in fitting if mean in (row.preprocessing.mean, row.timm_preprocessing.mean)
    ]
    return rows[0].name if len(rows) == 1 else clean_name(foreign.name)
