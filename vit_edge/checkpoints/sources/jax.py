"""The original .npz files of google-research/vision_transformer (gs://vit_models)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from vit_edge.bundle.architecture import Architecture
from vit_edge.bundle.manifest import (
    Preprocessing,
)
from vit_edge.checkpoints import Checkpoint, Request
from vit_edge.checkpoints.assemble import Foreign, checkpoint_from
from vit_edge.checkpoints.fields import refuse_giants
from vit_edge.checkpoints.files import stem
from vit_edge.checkpoints.labels import labels_or_imagenet
from vit_edge.checkpoints.npz import open_npz
from vit_edge.checkpoints.request import local_path, refuse_key
from vit_edge.checkpoints.tensors import LazyTensor, Rule, shape_of, square_side
from vit_edge.errors import CheckpointError
from vit_edge.variants import HALF

LAYER_NORM_EPS = 1e-6  # flax.linen.LayerNorm

_ATTENTION = "MultiHeadDotProductAttention_1"
# A ResNet of models.py, and what optimizers and train states of flax and big_vision are named.
_RESNET = re.compile(r"(conv_root|gn_root|block\d+/unit\d+)/")
_TRAINING = re.compile(r"(opt|optimizer|opt_state|target|params|state)/")
_POSITION = "Transformer/posembed_input/pos_embedding"


def recognises(path: Path) -> bool:
    """A .npz with Transformer/encoderblock_0."""
    if path.suffix != ".npz":
        return False
    try:
        return any("Transformer/encoderblock_0/" in name for name in open_npz(path))
    except CheckpointError:
        return False


def load(reference: str, request: Request) -> Checkpoint:
    """Read a .npz file.

    Raises:
        UsageError: Nothing is named, or a revision was given.
        CheckpointError: It is missing, damaged, or not such a checkpoint.
    """
    path = local_path("jax", reference, request.revision)
    refuse_key(request.key, f"jax:{reference}")
    if path is None:
        raise CheckpointError(f"{reference}: no such file")
    tensors = open_npz(path)
    _refuse_others(tensors, str(path))
    architecture = _architecture(tensors, str(path))

    def squashed(image_hw: tuple[int, int]) -> Preprocessing:
        # vit_jax/input_pipeline.py resizes to the square and scales to -1..1.
        return Preprocessing("squash", image_hw, image_hw, "bilinear", HALF, HALF)

    foreign = Foreign(
        source=f"jax:{reference}",
        where=str(path),
        name=stem(path),
        architecture=architecture,
        rules=tuple(_rules(architecture)),
        tensors=tensors,
        labels=labels_or_imagenet((), architecture.num_classes, str(path)),
        preprocessing=squashed,
        position_method="zoom-bilinear",
        files=(path,),
    )
    return checkpoint_from(foreign, request)


def _refuse_others(names: Iterable[str], where: str) -> None:
    """Name what a .npz is that holds something else than the parameters of a plain ViT.

    Raises:
        CheckpointError: It is a hybrid with a ResNet, or the state of a training.
    """
    state = sorted(name for name in names if _TRAINING.match(name))
    if state:
        raise CheckpointError(
            f"{where}: the state of a training ({state[0]}, ...), not the parameters alone. Save "
            "those: numpy.savez of the flattened params, with names such as cls and "
            "Transformer/encoderblock_0/LayerNorm_0/scale"
        )
    resnet = sorted(name for name in names if _RESNET.match(name))
    if resnet:
        raise CheckpointError(
            f"{where}: not the plain Vision Transformer of arXiv:2010.11929. It has a ResNet "
            f"before the patches (hybrid, such as R50+ViT-B_16): {resnet[0]}"
        )


def _architecture(tensors: Mapping[str, LazyTensor], where: str) -> Architecture:
    """Read the shape off the tensors."""
    otherwise = "this is no checkpoint of google-research/vision_transformer"

    def shape(name: str, axes: int) -> tuple[int, ...]:
        return shape_of(name, axes, tensors, where, otherwise)

    query = f"Transformer/encoderblock_0/{_ATTENTION}/query"
    width, heads, _ = shape(f"{query}/kernel", 3)
    patch_px, _, channels, _ = shape("embedding/kernel", 4)
    _, mlp_dim = shape("Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel", 2)
    _, positions, _ = shape(_POSITION, 3)
    blocks = {m[1] for name in tensors if (m := re.match(r"Transformer/encoderblock_(\d+)/", name))}
    side = square_side(positions - 1)
    if side is None:
        raise CheckpointError(
            f"{where}: {_POSITION} has {positions} rows, expected a square grid and the class token"
        )
    head, pre_logits = "head/kernel", "pre_logits/kernel"
    architecture = Architecture(
        width=width,
        depth=1 + max(map(int, blocks)),
        heads=heads,
        mlp_dim=mlp_dim,
        patch_px=patch_px,
        image_hw=(side * patch_px, side * patch_px),
        num_classes=shape(head, 2)[1] if head in tensors else 0,
        channels=channels,
        qkv_bias=f"{query}/bias" in tensors,
        layer_norm_eps=LAYER_NORM_EPS,
        pre_logits_dim=shape(pre_logits, 2)[1] if pre_logits in tensors else None,
    )
    return refuse_giants(architecture, where)


def _rules(a: Architecture) -> list[Rule]:
    """Say where each array goes. Flax kernels are [in, out] already."""
    kernel = (a.patch_px, a.patch_px, a.channels, a.width)
    rules = [
        Rule("cls", (1, 1, a.width), "embedding.cls_token"),
        Rule(_POSITION, (1, a.tokens, a.width), "embedding.position"),
        Rule("embedding/kernel", kernel, "embedding.patch.weight", _as_convolution),
        Rule("embedding/bias", (a.width,), "embedding.patch.bias"),
    ]
    for index in range(a.depth):
        rules += _block_rules(a, f"Transformer/encoderblock_{index}", f"blocks.{index}")
    rules += _norm("Transformer/encoder_norm", "readout.norm", a.width)
    if a.pre_logits_dim:
        rules += _dense("pre_logits", "readout.pre_logits", a.width, a.pre_logits_dim)
    if a.num_classes:
        rules += _dense("head", "readout.head", a.pre_logits_dim or a.width, a.num_classes)
    return rules


def _block_rules(a: Architecture, theirs: str, ours: str) -> list[Rule]:
    """One encoder block; the axis of heads is flattened away."""
    d, h = a.width, a.head_dim
    attention, qkv = f"{theirs}/{_ATTENTION}", f"{ours}.attention.qkv"
    rules = _norm(f"{theirs}/LayerNorm_0", f"{ours}.norm1", d)
    for part, name in enumerate(("query", "key", "value")):
        kernel = f"{attention}/{name}/kernel"
        rules.append(Rule(kernel, (d, a.heads, h), f"{qkv}.weight", _flat_columns, part, 3))
        if a.qkv_bias:
            bias = f"{attention}/{name}/bias"
            rules.append(Rule(bias, (a.heads, h), f"{qkv}.bias", _flat, part, 3))
    out = f"{ours}.attention.out"
    rules.append(Rule(f"{attention}/out/kernel", (a.heads, h, d), f"{out}.weight", _flat_rows))
    rules.append(Rule(f"{attention}/out/bias", (d,), f"{out}.bias"))
    rules += _norm(f"{theirs}/LayerNorm_2", f"{ours}.norm2", d)
    rules += _dense(f"{theirs}/MlpBlock_3/Dense_0", f"{ours}.mlp.fc1", d, a.mlp_dim)
    rules += _dense(f"{theirs}/MlpBlock_3/Dense_1", f"{ours}.mlp.fc2", a.mlp_dim, d)
    return rules


def _dense(theirs: str, ours: str, inputs: int, outputs: int) -> list[Rule]:
    return [
        Rule(f"{theirs}/kernel", (inputs, outputs), f"{ours}.weight"),
        Rule(f"{theirs}/bias", (outputs,), f"{ours}.bias"),
    ]


def _norm(theirs: str, ours: str, width: int) -> list[Rule]:
    return [
        Rule(f"{theirs}/scale", (width,), f"{ours}.weight"),
        Rule(f"{theirs}/bias", (width,), f"{ours}.bias"),
    ]


def _as_convolution(kernel: Tensor) -> Tensor:
    """[P, P, channels, D] -> [D, channels, P, P]."""
    return kernel.permute(3, 2, 0, 1)


def _flat_columns(kernel: Tensor) -> Tensor:
    """[D, heads, head_dim] -> [D, D]."""
    return kernel.flatten(1)


def _flat_rows(kernel: Tensor) -> Tensor:
    """[heads, head_dim, D] -> [D, D]."""
    return kernel.flatten(0, 1)


def _flat(bias: Tensor) -> Tensor:
    """[heads, head_dim] -> [D]."""
    return bias.flatten()
