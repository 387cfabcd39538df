"""The state_dicts of torchvision.models.vit_b_16 and its kin, published or fine-tuned.

torchvision keeps no configuration beside weights. Those that it published are known by the hash in
their names; all others are taken to be evaluated as its reference scripts do.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

from vit_edge.bundle.architecture import Architecture
from vit_edge.bundle.bundle import sha256_of
from vit_edge.bundle.manifest import (
    Interpolation,
    Preprocessing,
)
from vit_edge.checkpoints import Checkpoint, Request
from vit_edge.checkpoints.assemble import Foreign, checkpoint_from, heads_from_table
from vit_edge.checkpoints.fields import refuse_giants
from vit_edge.checkpoints.files import Weights, open_weights, stem
from vit_edge.checkpoints.labels import labels_or_imagenet
from vit_edge.checkpoints.request import local_path
from vit_edge.checkpoints.sniff import holds
from vit_edge.checkpoints.tensors import (
    LazyTensor,
    Rule,
    linear_rules,
    norm_rules,
    shape_of,
    square_side,
    transposed,
)
from vit_edge.errors import CheckpointError
from vit_edge.variants import IMAGENET_MEAN, IMAGENET_STD

log = logging.getLogger(__name__)

LAYER_NORM_EPS = 1e-6  # torchvision.models.vision_transformer: partial(nn.LayerNorm, eps=1e-6)
_POSITION, _PATCH = "encoder.pos_embedding", "conv_proj.weight"
_BLOCK = "encoder.layers.encoder_layer_{}"

# Of published weights: what their sha256 begins with, as in the file's name -> resize for a crop of
# the model's size. Those trained on SWAG resize bicubically (vision_transformer.py, *_Weights).
_SWAG = ("9ac1b537", "4e70ced5", "4f3808c9", "4d563306", "80465313", "c1eb923e")
_RESIZED_PX = {"c867db91": 256, "d86f8d99": 256, "852ce7e3": 242, "c7638314": 256}


def recognises(path: Path) -> bool:
    """The tensor names of torchvision's VisionTransformer."""
    return holds(path, _POSITION, f"{_BLOCK.format(0)}.self_attention.in_proj_weight")


def load(reference: str, request: Request) -> Checkpoint:
    """Read a weight file.

    Raises:
        UsageError: Nothing is named, or a revision was given.
        CheckpointError: It is missing or damaged, or not such a checkpoint.
    """
    path = local_path("torchvision", reference, request.revision)
    if path is None:
        raise CheckpointError(f"{reference}: no such file")
    weights = open_weights(path, request.key)
    source, name = f"torchvision:{reference}", stem(path)
    preprocessing = _preprocessing(weights.path)
    return checkpoint_from(understand(weights, source, name, request, preprocessing), request)


def understand(
    weights: Weights,
    source: str,
    name: str,
    request: Request,
    preprocessing: Callable[[tuple[int, int]], Preprocessing],
    heads: int | None = None,
) -> Foreign:
    """Understand what the names and shapes of the tensors say; nothing is read.

    Args:
        weights: The tensors.
        source: What the manifest calls it.
        name: Of the file or the model; names the bundle if no variant fits.
        request: What was asked.
        preprocessing: For an image height and width.
        heads: Of the attention; None: as a variant has it.

    Raises:
        CheckpointError: It is no such checkpoint.
    """
    tensors, where = weights.tensors, str(weights.path)
    head = _head(tensors, where)
    architecture = _architecture(tensors, head, heads, request, where)
    return Foreign(
        source=source,
        where=where,
        name=name,
        architecture=architecture,
        rules=tuple(_rules(architecture, tensors, head)),
        tensors=tensors,
        labels=labels_or_imagenet((), architecture.num_classes, where),
        preprocessing=preprocessing,
        position_method="bicubic-corners",
        files=weights.files,
    )


def preprocessing_of_scripts(where: str) -> Callable[[tuple[int, int]], Preprocessing]:
    """Return what torchvision's reference scripts evaluate with, and say so."""
    log.warning(
        "%s: torchvision keeps no preprocessing beside weights; taken: that of its reference "
        "scripts (shortest side to 256 for a crop of 224, bilinear, ImageNet's mean and std)",
        where,
    )
    return partial(_evaluation, 224 / 256, "bilinear")


def _preprocessing(path: Path) -> Callable[[tuple[int, int]], Preprocessing]:
    """Return what published weights are evaluated with, or torchvision's default."""
    published = sha256_of(path)[:8]
    if published in _SWAG:
        return partial(_evaluation, 1.0, "bicubic")
    if published in _RESIZED_PX:
        return partial(_evaluation, 224 / _RESIZED_PX[published], "bilinear")
    return preprocessing_of_scripts(str(path))


def _evaluation(
    crop_ratio: float, interpolation: Interpolation, image_hw: tuple[int, int]
) -> Preprocessing:
    """torchvision.transforms._presets.ImageClassification, at any size."""
    resize_hw = round(image_hw[0] / crop_ratio), round(image_hw[1] / crop_ratio)
    return Preprocessing("cover", resize_hw, image_hw, interpolation, IMAGENET_MEAN, IMAGENET_STD)


def _head(tensors: Iterable[str], where: str) -> str | None:
    """Name the one Linear of the head: torchvision's own, or what people put in its place.

    Raises:
        CheckpointError: There are more.
    """
    layers = sorted(
        {name.rpartition(".")[0] for name in tensors if re.match(r"heads?\.", name)}
        - {"heads.pre_logits"}
    )
    if len(layers) > 1:
        raise CheckpointError(
            f"{where}: a head of several layers ({', '.join(layers)}); expected one Linear, "
            "heads.head. What stands between them is not in the file."
        )
    if layers and re.search(r"\.[1-9]\d*$", layers[0]):
        log.warning("%s: what stands before %s is taken for dropout", where, layers[0])
    return layers[0] if layers else None


def _architecture(
    tensors: Mapping[str, LazyTensor],
    head: str | None,
    heads: int | None,
    request: Request,
    where: str,
) -> Architecture:
    """Read the shape off the tensors; only the heads are not in them."""

    def shape(name: str, axes: int) -> tuple[int, ...]:
        return shape_of(name, axes, tensors, where, "these are not torchvision's ViT tensors")

    stem_names = sorted(name for name in tensors if name.startswith("conv_proj.conv_"))
    if stem_names:
        raise CheckpointError(
            f"{where}: not the plain Vision Transformer of arXiv:2010.11929. It has several "
            f"convolutions before the blocks: {stem_names[0]}"
        )
    width, channels, patch_px, _ = shape(_PATCH, 4)
    _, positions, _ = shape(_POSITION, 3)
    side = square_side(positions - 1)
    if side is None:
        raise CheckpointError(
            f"{where}: {_POSITION} has {positions} rows, expected a square grid and the class token"
        )
    blocks = {m[1] for name in tensors if (m := re.match(_BLOCK.format(r"(\d+)\."), name))}
    depth = 1 + max(map(int, blocks), default=0)
    pre_logits = "heads.pre_logits.weight"
    architecture = Architecture(
        width=width,
        depth=depth,
        heads=heads or heads_from_table(width, depth, request.variant, where),
        mlp_dim=shape(f"{_BLOCK.format(0)}.{_mlp(tensors)[0]}.weight", 2)[0],
        patch_px=patch_px,
        image_hw=(side * patch_px, side * patch_px),
        num_classes=0 if head is None else shape(f"{head}.weight", 2)[0],
        channels=channels,
        layer_norm_eps=LAYER_NORM_EPS,
        pre_logits_dim=shape(pre_logits, 2)[0] if pre_logits in tensors else None,
    )
    return refuse_giants(architecture, where)


def _mlp(tensors: Iterable[str]) -> tuple[str, str]:
    """The two Linears of a block: since torchvision 0.13, or before it."""
    old = any(".mlp.linear_1." in name for name in tensors)
    return ("mlp.linear_1", "mlp.linear_2") if old else ("mlp.0", "mlp.3")


def _rules(a: Architecture, tensors: Iterable[str], head: str | None) -> list[Rule]:
    """Say where each of torchvision's tensors goes."""
    fc1, fc2 = _mlp(tensors)
    kernel = (a.width, a.channels, a.patch_px, a.patch_px)
    rules = [
        Rule("class_token", (1, 1, a.width), "embedding.cls_token"),
        Rule(_POSITION, (1, a.tokens, a.width), "embedding.position"),
        Rule(_PATCH, kernel, "embedding.patch.weight"),
        Rule("conv_proj.bias", (a.width,), "embedding.patch.bias"),
    ]
    for index in range(a.depth):
        theirs, ours = _BLOCK.format(index), f"blocks.{index}"
        attention, qkv = f"{theirs}.self_attention", f"{ours}.attention.qkv"
        rules += [
            Rule(
                f"{attention}.in_proj_weight", (3 * a.width, a.width), f"{qkv}.weight", transposed
            ),
            Rule(f"{attention}.in_proj_bias", (3 * a.width,), f"{qkv}.bias"),
        ]
        rules += linear_rules(f"{attention}.out_proj", f"{ours}.attention.out", a.width, a.width)
        rules += linear_rules(f"{theirs}.{fc1}", f"{ours}.mlp.fc1", a.width, a.mlp_dim)
        rules += linear_rules(f"{theirs}.{fc2}", f"{ours}.mlp.fc2", a.mlp_dim, a.width)
        rules += norm_rules(f"{theirs}.ln_1", f"{ours}.norm1", a.width)
        rules += norm_rules(f"{theirs}.ln_2", f"{ours}.norm2", a.width)
    rules += norm_rules("encoder.ln", "readout.norm", a.width)
    if a.pre_logits_dim:
        rules += linear_rules("heads.pre_logits", "readout.pre_logits", a.width, a.pre_logits_dim)
    if head is not None:
        rules += linear_rules(head, "readout.head", a.pre_logits_dim or a.width, a.num_classes)
    return rules
