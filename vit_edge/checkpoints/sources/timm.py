"""timm checkpoints of plain Vision Transformers: a file, a directory, or a name on the hub.

Among them those that transformers trained: its TimmWrapper saves timm's names below `timm_model.`,
and timm's fields in config.json.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional

from vit_edge.bundle.manifest import Architecture
from vit_edge.checkpoints import Checkpoint, Request
from vit_edge.checkpoints.assemble import Foreign, checkpoint_from, heads_from_table
from vit_edge.checkpoints.fields import Fields, refuse_giants
from vit_edge.checkpoints.files import Place, open_weights, read_json
from vit_edge.checkpoints.labels import labels_or_imagenet
from vit_edge.checkpoints.locate import locate
from vit_edge.checkpoints.sniff import config_of, holds
from vit_edge.checkpoints.tensors import (
    LazyTensor,
    Rule,
    as_stored,
    linear_rules,
    norm_rules,
    shape_of,
    square_side,
)
from vit_edge.checkpoints.timm_config import (
    check_model_args,
    heads_of,
    input_hw,
    is_timm_config,
    labels_from,
    preprocessing_from,
    preprocessing_of_row,
    pretrained_cfg,
    refuse_other_models,
)
from vit_edge.errors import CheckpointError
from vit_edge.variants import Variant

log = logging.getLogger(__name__)

CONFIG = "config.json"
LAYER_NORM_EPS = 1e-6  # timm.models.vision_transformer: partial(nn.LayerNorm, eps=1e-6)
_PATCH = "patch_embed.proj.weight"


def recognises(path: Path) -> bool:
    """A directory whose config.json is timm's, or timm's tensor names."""
    if path.is_dir() and config_of(path):
        return is_timm_config(config_of(path))
    return holds(path, _PATCH, "blocks.0.attn.qkv.weight")


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
    config = read_json(config_file) if config_file.is_file() else {}
    weights = open_weights(path, request.key)
    tensors = weights.tensors
    where = str(weights.path)
    refuse_other_models(tensors.keys(), where)
    fields = Fields(config, str(config_file))
    arguments, cfg = check_model_args(fields), pretrained_cfg(fields)
    image_hw = input_hw(cfg, arguments, asked=request.image_hw is not None)
    if config:
        preprocessing = preprocessing_from(cfg)
    else:
        preprocessing = preprocessing_of_row(request.variant, where)
    fields.done()
    said = _Said(arguments.get("num_heads"), str(config.get("architecture")), image_hw)
    architecture = _architecture(tensors, said, request.variant, where)
    claimed = fields.data.get("num_classes")
    if claimed not in (None, architecture.num_classes):
        log.warning(
            "%s: num_classes is %s, but the head has %d, which count",
            fields.where, claimed, architecture.num_classes,
        )  # fmt: skip
    labels = labels_from(cfg, fields, architecture.num_classes)
    fields.done()
    foreign = Foreign(
        source=source,
        where=where,
        name=place.name,
        architecture=architecture,
        rules=tuple(_rules(architecture, tensors)),
        tensors=tensors,
        labels=labels_or_imagenet(labels, architecture.num_classes, where),
        preprocessing=preprocessing,
        position_method="bicubic-antialias",
        files=(*([config_file] if config else []), *weights.files),
        revision=place.revision,
        published_as=lambda row: (
            row.timm is not None
            and source.removeprefix("hf:timm/").removeprefix("timm:") == row.timm
        ),
    )
    return checkpoint_from(foreign, request)


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
    _, positions, _ = shape("pos_embed", 3)
    depth = 1 + max(int(name.split(".")[1]) for name in tensors if re.match(r"blocks\.\d+\.", name))
    head, pre_logits = "head.weight", "pre_logits.fc.weight"
    architecture = Architecture(
        width=width,
        depth=depth,
        heads=_heads(said, width, depth, row, where),
        mlp_dim=mlp_dim,
        patch_px=patch_px,
        image_hw=said.image_hw or _square_hw(positions, patch_px, where),
        num_classes=shape(head, 2)[0] if head in tensors else 0,
        channels=channels,
        qkv_bias="blocks.0.attn.qkv.bias" in tensors,
        layer_norm_eps=LAYER_NORM_EPS,
        pre_logits_dim=shape(pre_logits, 2)[0] if pre_logits in tensors else None,
    )
    return refuse_giants(architecture, where)


def _square_hw(positions: int, patch_px: int, where: str) -> tuple[int, int]:
    """The image size of a square grid, with or without a position for the class token."""
    side = square_side(positions - 1) or square_side(positions)
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
    patches = a.tokens - 1
    # no_embed_class: the class token has no position of its own, which is a position of zero.
    bare = "pos_embed" in tensors and tensors["pos_embed"].shape[1] == patches
    rules = [
        Rule("cls_token", (1, 1, a.width), "embedding.cls_token"),
        Rule(
            "pos_embed",
            (1, patches if bare else a.tokens, a.width),
            "embedding.position",
            _zero_row_before if bare else as_stored,
        ),
        Rule(_PATCH, (a.width, a.channels, a.patch_px, a.patch_px), "embedding.patch.weight"),
        Rule("patch_embed.proj.bias", (a.width,), "embedding.patch.bias"),
    ]
    for index in range(a.depth):
        block = f"blocks.{index}"
        qkv = linear_rules(f"{block}.attn.qkv", f"{block}.attention.qkv", a.width, 3 * a.width)
        rules += qkv if a.qkv_bias else qkv[:1]
        rules += linear_rules(f"{block}.attn.proj", f"{block}.attention.out", a.width, a.width)
        rules += linear_rules(f"{block}.mlp.fc1", f"{block}.mlp.fc1", a.width, a.mlp_dim)
        rules += linear_rules(f"{block}.mlp.fc2", f"{block}.mlp.fc2", a.mlp_dim, a.width)
        for norm in ("norm1", "norm2"):
            rules += norm_rules(f"{block}.{norm}", f"{block}.{norm}", a.width)
    rules += norm_rules("norm", "readout.norm", a.width)
    if a.pre_logits_dim:
        rules += linear_rules("pre_logits.fc", "readout.pre_logits", a.width, a.pre_logits_dim)
    if a.num_classes:
        rules += linear_rules("head", "readout.head", a.pre_logits_dim or a.width, a.num_classes)
    return rules


def _zero_row_before(position: Tensor) -> Tensor:
    """[1, patches, D] -> [1, 1 + patches, D]."""
    return functional.pad(position, (0, 0, 1, 0))
