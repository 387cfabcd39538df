"""T2T-ViT (arXiv:2101.11986) as github.com/yitu-opensource/T2T-ViT publishes and trains it.

timm's names for the encoder, `tokens_to_token` for what stands before it, and no configuration:
what is not in the tensors is as that repository has it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from vit_edge.bundle.architecture import T2T_PATCH_PX, Architecture, Tokenizer
from vit_edge.checkpoints import Checkpoint, Request
from vit_edge.checkpoints.assemble import Foreign, checkpoint_from, heads_from_table
from vit_edge.checkpoints.fields import Fields, refuse_giants
from vit_edge.checkpoints.files import entries_of, open_weights, stem
from vit_edge.checkpoints.labels import labels_or_imagenet
from vit_edge.checkpoints.request import local_path
from vit_edge.checkpoints.sniff import config_of, holds
from vit_edge.checkpoints.sources.timm import block_rules
from vit_edge.checkpoints.tensors import (
    LazyTensor,
    Rule,
    linear_rules,
    norm_rules,
    shape_of,
    square_side,
)
from vit_edge.checkpoints.timm_config import TOKENS_TO_TOKEN
from vit_edge.errors import CheckpointError
from vit_edge.models.t2t import FIRST, LATER
from vit_edge.variants import VARIANTS, Variant

LAYER_NORM_EPS = 1e-5  # torch.nn.LayerNorm's own, in every layer
_AVERAGED = "state_dict_ema"  # what main.py evaluates, where a file has it
_HEADS = {"t2t_vit_14_resnext": 32, "t2t_vit_14_wide": 12}  # by "arch" of a training checkpoint
_OTHER_MODELS = (
    (r"tokens_to_token\.soft_split0\.", "convolutions for tokens (tokens_type convolution)"),
    (r"blocks\.\d+\.attn\.se_layer\.", "squeeze-and-excitation (t2t_vit_14_se)"),
    (r"blocks\.\d+\.(attn|mlp)\.cheap_operation", "ghost layers (t2t_vit_16_ghost)"),
    (r"blocks\.\d+\.dense_linear\.", "dense connections (t2t_vit_dense)"),
)


def recognises(path: Path) -> bool:
    """The tensor names of T2T_ViT."""
    return holds(path, TOKENS_TO_TOKEN)


def load(reference: str, request: Request) -> Checkpoint:
    """Read a weight file, or a directory with one.

    Raises:
        UsageError: Nothing is named, or a revision was given.
        CheckpointError: It is missing or damaged, or not such a checkpoint.
    """
    path = local_path("t2t", reference, request.revision)
    if path is None:
        raise CheckpointError(f"{reference}: no such file")
    entries = entries_of(path)
    averaged = _AVERAGED if _AVERAGED in entries else None
    weights = open_weights(path, request.key or averaged)
    tensors, where = weights.tensors, str(weights.path)
    _refuse_others(tensors, where)
    heads = _heads(path, entries)
    architecture = _architecture(tensors, heads, request.variant, where)
    foreign = Foreign(
        source=f"t2t:{reference}",
        where=where,
        name=stem(path),
        architecture=architecture,
        rules=tuple(_rules(architecture, tensors)),
        tensors=tensors,
        labels=labels_or_imagenet((), architecture.num_classes, where),
        preprocessing=VARIANTS["t2t-vit-7"].preprocessing_at,  # default_cfgs has one for all
        position_method="bicubic",  # utils.py, resize_pos_embed
        files=weights.files,
    )
    return checkpoint_from(foreign, request)


def _refuse_others(names: Mapping[str, LazyTensor], where: str) -> None:
    """Name what makes this another model of the same repository.

    Raises:
        CheckpointError: There is something.
    """
    for pattern, feature in _OTHER_MODELS:
        name = next((name for name in sorted(names) if re.match(pattern, name)), None)
        if name is not None:
            raise CheckpointError(
                f"{where}: not the T2T-ViT of arXiv:2101.11986, section 3. It has {feature}: "
                f"{name}. Whatever torch.onnx.export writes of it can be given with --onnx"
            )


def _heads(path: Path, entries: Mapping[object, object]) -> int | None:
    """The number of heads: a config.json beside the weights says it, or a training's "arch"."""
    arguments = config_of(path).get("model_args")
    if isinstance(arguments, dict) and "num_heads" in arguments:
        fields = Fields(arguments, f"{path}: model_args of config.json")
        heads = fields.positive("num_heads")
        fields.done()
        return heads
    return _HEADS.get(str(entries.get("arch")))


def _architecture(
    tensors: Mapping[str, LazyTensor], heads: int | None, row: Variant | None, where: str
) -> Architecture:
    """Read the shape off the tensors; only the heads are not in them."""

    def shape(name: str, axes: int) -> tuple[int, ...]:
        return shape_of(name, axes, tensors, where, "these are not T2T-ViT's tensors")

    first = "tokens_to_token.attention1"
    performer = f"{first}.kqv.weight" in tensors
    tokenizer: Tokenizer = "t2t-performer" if performer else "t2t"
    pixels = shape(f"{first}.norm1.weight", 1)[0]
    width = shape(TOKENS_TO_TOKEN, 2)[0]
    _, positions, _ = shape("pos_embed", 3)
    side = square_side(positions - 1)
    if side is None:
        raise CheckpointError(
            f"{where}: pos_embed has {positions} rows, expected a square grid and the class token"
        )
    numbers = [int(m[1]) for name in tensors if (m := re.match(r"blocks\.(\d+)\.", name))]
    depth = 1 + max(numbers, default=0)
    architecture = Architecture(
        width=width,
        depth=depth,
        heads=heads or heads_from_table(width, depth, row, where, tokenizer),
        mlp_dim=shape("blocks.0.mlp.fc1.weight", 2)[0],
        patch_px=T2T_PATCH_PX,
        image_hw=(side * T2T_PATCH_PX, side * T2T_PATCH_PX),
        num_classes=shape("head.weight", 2)[0] if "head.weight" in tensors else 0,
        channels=max(pixels // FIRST[0] ** 2, 1),
        qkv_bias="blocks.0.attn.qkv.bias" in tensors,
        layer_norm_eps=LAYER_NORM_EPS,
        tokenizer=tokenizer,
        token_dim=shape(f"{first}.norm2.weight", 1)[0],
    )
    return refuse_giants(architecture, where)


def _rules(a: Architecture, tensors: Mapping[str, LazyTensor]) -> list[Rule]:
    """Say where each of their tensors goes."""
    windows, ours = a.token_dim * LATER[0] ** 2, "embedding.patch"
    project, bias = linear_rules("tokens_to_token.project", f"{ours}.project", windows, a.width)
    rules = [
        *_layer_rules(a, "tokens_to_token.attention1", f"{ours}.first", a.channels * FIRST[0] ** 2),
        *_layer_rules(a, "tokens_to_token.attention2", f"{ours}.second", windows),
        _token_by_token(project),
        bias,
        Rule("cls_token", (1, 1, a.width), "embedding.cls_token"),
        Rule("pos_embed", (1, a.tokens, a.width), "embedding.position"),
        *norm_rules("norm", "readout.norm", a.width),
    ]
    for index in range(a.depth):
        rules += block_rules(a, tensors, f"blocks.{index}")
    if a.num_classes:
        rules += linear_rules("head", "readout.head", a.width, a.num_classes)
    return rules


def _layer_rules(a: Architecture, theirs: str, ours: str, inputs: int) -> list[Rule]:
    """Token_transformer, or Token_performer, which has k before q and a bias of both."""
    dim, performer = a.token_dim, a.tokenizer == "t2t-performer"
    part, mlp = ("", ("mlp.0", "mlp.2")) if performer else ("attn.", ("mlp.fc1", "mlp.fc2"))
    norm1 = norm_rules(f"{theirs}.norm1", f"{ours}.norm1", inputs)
    made = "kqv" if performer else "attn.qkv"
    qkv, bias = linear_rules(f"{theirs}.{made}", f"{ours}.qkv", inputs, 3 * dim)
    if ours.endswith(".second"):
        norm1, qkv = [_token_by_token(rule) for rule in norm1], _token_by_token(qkv)
    rules = [*norm1, qkv]
    if performer:
        random = Rule(f"{theirs}.w", (dim // 2, dim), f"{ours}.kernel", _as_kernel)
        rules = [*norm1, _query_first(qkv), _query_first(bias), random]
    rules += linear_rules(f"{theirs}.{part}proj", f"{ours}.out", dim, dim)
    rules += norm_rules(f"{theirs}.norm2", f"{ours}.norm2", dim)
    for theirs_fc, fc in zip(mlp, ("fc1", "fc2"), strict=True):
        rules += linear_rules(f"{theirs}.{theirs_fc}", f"{ours}.mlp.{fc}", dim, dim)
    return rules


def _token_by_token(rule: Rule) -> Rule:
    """Order the inputs as our windows have them: Unfold has all places of a channel together."""

    def layout(tensor: Tensor) -> Tensor:
        by_channel = tensor.reshape(*tensor.shape[:-1], -1, LATER[0] ** 2)
        return rule.layout(by_channel.transpose(-1, -2).flatten(-2))

    return dataclasses.replace(rule, layout=layout)


def _query_first(rule: Rule) -> Rule:
    """Take k, q, v to q, k, v."""

    def layout(tensor: Tensor) -> Tensor:
        k, q, v = tensor.chunk(3)
        return rule.layout(torch.cat([q, k, v]))

    return dataclasses.replace(rule, layout=layout)


def _as_kernel(tensor: Tensor) -> Tensor:
    """[m, dim] -> [1, dim, m]."""
    return tensor.t()[None]
