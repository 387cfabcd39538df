"""timm checkpoints of plain Vision Transformers: a file, a directory, or a name on the hub.

Among them those that transformers trained: its TimmWrapper saves timm's names below `timm_model.`,
and timm's fields in config.json. DINO and DINOv2 of facebookresearch have timm's names as well.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from vit_edge.bundle.architecture import Architecture, Pooling
from vit_edge.checkpoints import Checkpoint, Request, facebook
from vit_edge.checkpoints.assemble import Foreign, checkpoint_from, heads_from_table
from vit_edge.checkpoints.fields import Fields, refuse_giants
from vit_edge.checkpoints.files import Place, Weights, read_json
from vit_edge.checkpoints.labels import labels_or_imagenet, scores_of_config
from vit_edge.checkpoints.locate import locate
from vit_edge.checkpoints.sniff import config_of, holds, is_open_clips
from vit_edge.checkpoints.tensors import (
    LazyTensor,
    Rule,
    linear_rules,
    norm_rules,
    position_rule,
    prefix_rows,
    prefix_rules,
    shape_of,
    square_side,
    with_one_head,
    zeros,
)
from vit_edge.checkpoints.timm_config import (
    TOKENS_TO_TOKEN,
    activation_of,
    check_against_tensors,
    check_model_args,
    epsilon_of,
    has_final_norm,
    heads_of,
    input_hw,
    is_timm_config,
    labels_from,
    pools_patches,
    preprocessing_from,
    preprocessing_of_row,
    pretrained_cfg,
    refuse_by_name,
    refuse_other_models,
)
from vit_edge.errors import CheckpointError
from vit_edge.variants import Variant

log = logging.getLogger(__name__)

CONFIG = "config.json"
_PATCH = "patch_embed.proj.weight"
_PREFIX = ("cls_token", "dist_token", "reg_token", "register_tokens")  # in this order


def recognises(path: Path) -> bool:
    """A directory whose config.json is timm's, timm's tensor names, or a head of DINOv2's."""
    if path.is_dir() and config_of(path) and not is_open_clips(path):
        return is_timm_config(config_of(path)) and not holds(path, TOKENS_TO_TOKEN)
    query = "attn.qkv.weight"  # in block 0, or in block 0 of chunk 0
    in_blocks = any(holds(path, _PATCH, f"blocks.{n}.{query}") for n in ("0", "0.0"))
    return in_blocks or facebook.is_head(path)


def load(reference: str, request: Request) -> Checkpoint:
    """Read a directory, a weight file, or a model of the hub.

    Raises:
        UsageError: Nothing is named, or a revision of something local.
        CheckpointError: The files are missing or damaged, or the model is no plain ViT; the
            feature that makes it another model is named.
        HubError: `reference` is no path, and the hub does not have it or does not answer.
    """
    repository = reference if "/" in reference else f"timm/{reference}"
    place = locate("timm", reference, repository, request.revision, (CONFIG,))
    return load_files(place, f"timm:{reference}", request)


def load_files(place: Place, source: str, request: Request) -> Checkpoint:
    """Read a checkpoint that lies on disk, with or without config.json.

    Args:
        place: The directory, or a weight file.
        source: What the manifest calls it.
        request: What was asked.

    Raises:
        CheckpointError: The files are missing or damaged, or the model is no plain ViT.
    """
    path = place.path
    config_file = (path if path.is_dir() else path.parent) / CONFIG
    weights = facebook.open_with_head(path, request.key)
    if config_file.is_file():
        fields = Fields(read_json(config_file), str(config_file))
        weights = dataclasses.replace(weights, files=(config_file, *weights.files))
    else:
        fields = Fields({}, str(config_file))
        request = facebook.at_evaluated_size(request, weights.tensors)
    return checkpoint_from(understand(fields, weights, place, source, request), request)


def understand(
    fields: Fields, weights: Weights, place: Place, source: str, request: Request
) -> Foreign:
    """Understand what config.json and the names and shapes of the tensors say; nothing is read.

    Args:
        fields: Those of config.json; empty without one.
        weights: The tensors, by timm's names.
        place: Where they lie.
        source: What the manifest calls it.
        request: What was asked.

    Raises:
        CheckpointError: The model is no plain ViT, or its configuration contradicts it.
    """
    config, where = fields.data, str(weights.path)
    tensors = facebook.plain_names(weights.tensors, where)
    refuse_other_models(tensors.keys(), where)
    refuse_by_name(fields)
    own_method = None if config else facebook.position_method(tensors, request.variant)
    arguments, cfg = check_model_args(fields), pretrained_cfg(fields)
    image_hw = input_hw(cfg, arguments, asked=request.image_hw is not None)
    if config:
        preprocessing = preprocessing_from(cfg)
    elif own_method:
        preprocessing = facebook.PREPROCESSING_AT
    else:
        preprocessing = preprocessing_of_row(request.variant, where)
    fields.done()
    check_against_tensors(fields, arguments, tensors)
    said = _Said(arguments.get("num_heads"), str(config.get("architecture")), image_hw)
    if f"{facebook.LINEAR_HEAD}.weight" in weights.tensors:
        pooling: Pooling = "class+mean"
    else:
        pooling = _pooling(tensors, pools_patches(fields, arguments, tensors))
    architecture = dataclasses.replace(
        _architecture(tensors, said, request.variant, where),
        pooling=pooling,
        norm_after_pooling=pooling == "mean" and "fc_norm.weight" in tensors,
        activation=activation_of(fields, arguments),
        final_norm=has_final_norm(fields, arguments),
        layer_norm_eps=epsilon_of(fields, arguments, tensors),
    )
    fields.done()
    tensors = _in_one_form(tensors, architecture)
    claimed = fields.data.get("num_classes")
    if claimed not in (None, architecture.num_classes):
        log.warning(
            "%s: num_classes is %s, but the head has %d, which count",
            fields.where, claimed, architecture.num_classes,
        )  # fmt: skip
    labels = labels_from(cfg, fields, architecture.num_classes)
    wrapped = config.get("model_type") == "timm_wrapper"  # transformers trained it
    scores = scores_of_config(fields, architecture.num_classes) if wrapped else None
    fields.done()
    return Foreign(
        source=source,
        where=where,
        name=place.name,
        architecture=architecture,
        rules=tuple(_rules(architecture, tensors)),
        tensors=tensors,
        labels=labels_or_imagenet(labels, architecture.num_classes, where),
        preprocessing=preprocessing,
        position_method=own_method or "bicubic-antialias",
        ignored={"mask_token"},  # of DINOv2's and MAE's training
        files=weights.files,
        revision=place.revision,
        scores=scores,
        published_as=lambda row: (
            row.timm is not None
            and source.removeprefix("hf:timm/").removeprefix("timm:") == row.timm
        ),
    )


class _Said(NamedTuple):
    """What config.json says of the shape."""

    heads: object
    architecture: str
    image_hw: tuple[int, int] | None


def _architecture(
    tensors: Mapping[str, LazyTensor], said: _Said, row: Variant | None, where: str
) -> Architecture:
    """Read the shape off the tensors; only heads and a non-square grid are not in them."""

    def shape(name: str, axes: int) -> tuple[int, ...]:
        return shape_of(name, axes, tensors, where, "these are not timm's ViT tensors")

    width, channels, patch_px, _ = shape(_PATCH, 4)
    mlp_dim, _ = shape("blocks.0.mlp.fc1.weight", 2)
    if shape("blocks.0.mlp.fc2.weight", 2)[1] * 2 == mlp_dim:
        raise CheckpointError(
            f"{where}: not the plain Vision Transformer of arXiv:2010.11929. It has a gated MLP "
            "(SwiGLU): blocks.0.mlp.fc1.weight has twice the rows that fc2 reads"
        )
    _, positions, _ = shape("pos_embed", 3)
    prefix = sum(prefix_rows(name, tensors) for name in _PREFIX)
    depth = 1 + max(int(name.split(".")[1]) for name in tensors if re.match(r"blocks\.\d+\.", name))
    head, pre_logits = "head.weight", "pre_logits.fc.weight"
    architecture = Architecture(
        width=width,
        depth=depth,
        heads=_heads(said, width, depth, row, where),
        mlp_dim=mlp_dim,
        patch_px=patch_px,
        image_hw=said.image_hw or _square_hw(positions, prefix, patch_px, where),
        num_classes=shape(head, 2)[0] if head in tensors else 0,
        channels=channels,
        qkv_bias="blocks.0.attn.qkv.bias" in tensors,
        pre_logits_dim=shape(pre_logits, 2)[0] if pre_logits in tensors else None,
        prefix_tokens=prefix,
        norm_pre="norm_pre.weight" in tensors,
        qk_norm="blocks.0.attn.q_norm.weight" in tensors,
    )
    return refuse_giants(architecture, where)


def _pooling(tensors: Mapping[str, LazyTensor], of_patches: bool) -> Pooling:
    """What the tensors and config.json say that features are made of."""
    if "head_dist.weight" in tensors:
        return "class+distilled"
    return "mean" if of_patches else "class"


def _in_one_form(
    tensors: Mapping[str, LazyTensor], architecture: Architecture
) -> dict[str, LazyTensor]:
    """One head for two, and zeros for biases that models with norm_pre leave out."""
    merged = dict(tensors)
    if architecture.norm_pre:
        merged.setdefault("patch_embed.proj.bias", zeros(architecture.width))
    if "head.weight" in merged:
        merged.setdefault("head.bias", zeros(architecture.num_classes))
    return with_one_head(merged, "head", "head_dist", "head")


def _square_hw(positions: int, prefix: int, patch_px: int, where: str) -> tuple[int, int]:
    """The image size of a square grid, with positions for all of the prefix, its first, or none."""
    side = next(filter(None, (square_side(positions - rows) for rows in (prefix, 1, 0))), None)
    if side is None:
        raise CheckpointError(
            f"{where}: pos_embed has {positions} positions, which is no square grid. Write "
            '"input_size": [3, HEIGHT, WIDTH] into pretrained_cfg of a config.json beside the '
            "weights."
        )
    return side * patch_px, side * patch_px


def _heads(said: _Said, width: int, depth: int, row: Variant | None, where: str) -> int:
    """The number of heads: as given, as the variant has it, or as the table alone can have it."""
    given = said.heads
    if given is not None:
        if type(given) is not int or given < 1:
            raise CheckpointError(f"{where}: model_args.num_heads: {given!r} is no number of heads")
        return given
    named = heads_of(said.architecture, width) if row is None else None
    return named or heads_from_table(width, depth, row, where)


def _rules(a: Architecture, tensors: Mapping[str, LazyTensor]) -> list[Rule]:
    """Say where each of timm's tensors goes."""
    rules = [
        position_rule("pos_embed", tensors, a),
        Rule(_PATCH, (a.width, a.channels, a.patch_px, a.patch_px), "embedding.patch.weight"),
        Rule("patch_embed.proj.bias", (a.width,), "embedding.patch.bias"),
    ]
    for index in range(a.depth):
        rules += block_rules(a, tensors, f"blocks.{index}")
    if a.final_norm:
        name = "fc_norm" if "fc_norm.weight" in tensors else "norm"
        rules += norm_rules(name, "readout.norm", a.width)
    if a.norm_pre:
        rules += norm_rules("norm_pre", "embedding.norm", a.width)
    if a.pre_logits_dim:
        rules += linear_rules("pre_logits.fc", "readout.pre_logits", a.width, a.pre_logits_dim)
    if a.num_classes:
        inputs = a.pre_logits_dim or a.features_dim
        rules += linear_rules("head", "readout.head", inputs, a.num_classes)
    return rules + prefix_rules(_PREFIX, tensors, a)


def block_rules(a: Architecture, tensors: Mapping[str, LazyTensor], block: str) -> list[Rule]:
    """One encoder block; layer scale, if there is one, goes into the Linears before it."""
    first, second = ("ls1.gamma", "ls2.gamma"), ("gamma_1", "gamma_2")
    names = next((n for n in (first, second) if f"{block}.{n[0]}" in tensors), None)
    after_attention, after_mlp = (f"{block}.{n}" for n in names) if names else (None, None)
    qkv = linear_rules(f"{block}.attn.qkv", f"{block}.attention.qkv", a.width, 3 * a.width)
    rules = qkv if a.qkv_bias else qkv[:1]
    rules += linear_rules(
        f"{block}.attn.proj", f"{block}.attention.out", a.width, a.width, after_attention
    )
    rules += linear_rules(f"{block}.mlp.fc1", f"{block}.mlp.fc1", a.width, a.mlp_dim)
    rules += linear_rules(f"{block}.mlp.fc2", f"{block}.mlp.fc2", a.mlp_dim, a.width, after_mlp)
    for norm in ("norm1", "norm2"):
        rules += norm_rules(f"{block}.{norm}", f"{block}.{norm}", a.width)
    if a.qk_norm:
        for norm in ("q_norm", "k_norm"):
            rules += norm_rules(f"{block}.attn.{norm}", f"{block}.attention.{norm}", a.head_dim)
    return rules
