"""Hugging Face checkpoints of the ViT and its relatives, from a directory or the hub."""

from __future__ import annotations

import dataclasses
import logging
import math
from pathlib import Path
from typing import Any

from vit_edge.bundle.architecture import Architecture, Pooling
from vit_edge.bundle.manifest import (
    Scores,
)
from vit_edge.checkpoints import Checkpoint, Request, hf_clip
from vit_edge.checkpoints.adapter import refuse_adapter
from vit_edge.checkpoints.assemble import Foreign, checkpoint_from
from vit_edge.checkpoints.fields import MAX_CLASSES, MAX_DEPTH, Fields
from vit_edge.checkpoints.files import Place, Weights, open_weights, read_json
from vit_edge.checkpoints.hf_families import FAMILIES, Family, block_rules
from vit_edge.checkpoints.hf_preprocessing import (
    NESTED,
    preprocessing_of,
    processor_file,
    read_preprocessing,
)
from vit_edge.checkpoints.labels import (
    is_numbered,
    labels_or_imagenet,
    numbered_labels,
    scores_of_config,
)
from vit_edge.checkpoints.locate import locate
from vit_edge.checkpoints.sniff import config_of, holds, is_open_clips
from vit_edge.checkpoints.sources import timm
from vit_edge.checkpoints.tensors import (
    LazyTensor,
    Rule,
    linear_rules,
    norm_rules,
    of_convolution,
    position_rule,
    prefix_rows,
    prefix_rules,
    with_one_head,
)
from vit_edge.checkpoints.timm_config import is_timm_config
from vit_edge.errors import CheckpointError
from vit_edge.variants import Variant

log = logging.getLogger(__name__)

DECODER = "decoder.0"  # the convolution of ViTForMaskedImageModeling; nothing else has weights
CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"


def recognises(path: Path) -> bool:
    """A directory whose config.json has a model_type, or transformers' tensor names."""
    if path.is_dir() and config_of(path) and not is_open_clips(path):
        return "model_type" in config_of(path) and not is_timm_config(config_of(path))
    return holds(path, "embeddings.patch_embeddings.projection.weight") or hf_clip.recognises(path)


def load(reference: str, request: Request) -> Checkpoint:
    """Read a directory, a weight file with its config.json beside it, or a model of the hub.

    Raises:
        UsageError: Nothing is named, or a revision of something local.
        CheckpointError: The files are missing, damaged, or describe no plain ViT.
        HubError: `reference` is no path, and the hub does not have it or does not answer.
    """
    place = locate("hf", reference, reference, request.revision, (CONFIG,), (PROCESSOR, NESTED))
    if is_timm_config(config_of(place.path)):  # which transformers reads as well
        return timm.load_files(place, f"hf:{reference}", request)
    return load_files(place, f"hf:{reference}", request)


def load_files(
    place: Place, source: str, request: Request, weights: Weights | None = None
) -> Checkpoint:
    """Read a checkpoint that lies on disk.

    Args:
        place: The directory, or a weight file beside its config.json.
        source: What the manifest calls it.
        request: What was asked.
        weights: Those of a module in memory; None: the file's.

    Raises:
        CheckpointError: The files are missing, damaged, or describe no plain ViT.
    """
    path = place.path
    folder = path if path.is_dir() else path.parent
    refuse_adapter(path)
    config_file, row = folder / CONFIG, request.variant
    if not config_file.is_file() and row is None:
        raise CheckpointError(
            f"{config_file}: missing. A Hugging Face checkpoint is a directory with {CONFIG}, "
            f"{PROCESSOR} and model.safetensors (or another weight file, which may be named "
            f"itself); looked in {folder.resolve()}. model.config.save_pretrained(DIR) writes it. "
            "Or name the variant that the weights are of: --variant NAME"
        )
    if config_file.is_file() or row is None:
        row, config = None, read_json(config_file)
    else:
        log.info("%s: missing; shape and preprocessing as of %s", config_file, row.name)
        config = _config_of_row(row)
    if config.get("model_type") in hf_clip.MODEL_TYPES:
        return hf_clip.load_files(place, source, request, config_file, weights)
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None:
        raise CheckpointError(_other_model(config, str(config_file)))
    weights = weights or open_weights(path, request.key)
    tensors = _below_prefix(weights.tensors, family)
    prefix = family.prefix if any(name.startswith(family.prefix) for name in tensors) else ""
    architecture, labels, scores = _read_config(config, family, tensors, prefix, str(config_file))
    if request.decoder:
        architecture = _with_decoder(architecture, Fields(config, str(config_file)), tensors)
    if row is not None:
        labels = labels_or_imagenet((), architecture.num_classes, str(weights.path))
    processor = processor_file(folder)
    if family.any_size and request.image_hw is None and processor.is_file():
        request = dataclasses.replace(request, image_hw=read_preprocessing(processor).crop_hw)
    # of masked-image pretraining only
    ignored = {f"{prefix}embeddings.mask_token", *(n for n in tensors if n.startswith("decoder."))}
    if architecture.num_classes:
        # ViTForImageClassification reads the class token itself and never calls the pooler.
        ignored |= {f"{prefix}pooler.dense.weight", f"{prefix}pooler.dense.bias"}
    foreign = Foreign(
        source=source,
        where=str(weights.path),
        name=place.name,
        architecture=architecture,
        rules=tuple(_rules(architecture, family, tensors, prefix)),
        tensors=with_one_head(tensors, "cls_classifier", "distillation_classifier", "classifier"),
        labels=labels,
        preprocessing=row.preprocessing_at
        if row is not None and not processor.is_file()
        else preprocessing_of(
            processor,
            (family.any_size and request.image_hw) or architecture.image_hw,
            request.image_hw,
        ),
        position_method=family.position_method,
        ignored=ignored,
        files=(*filter(Path.is_file, (config_file, processor)), *weights.files),
        revision=place.revision,
        scores=scores,
        published_as=lambda row: source == f"hf:{row.hf}",
    )
    return checkpoint_from(foreign, request)


def _other_model(config: dict[str, Any], where: str) -> str:
    """Say that no family is meant, and what to do with a model of another."""
    model_type = config.get("model_type")
    kind = "missing" if model_type is None else f"{model_type!r} is another model"
    return (
        f"{where}: model_type: {kind}; expected one of {', '.join(FAMILIES)}, "
        f"{', '.join(hf_clip.MODEL_TYPES)}. Whatever "
        "torch.onnx.export writes of another model can be given with --onnx"
    )


def _below_prefix(tensors: dict[str, LazyTensor], family: Family) -> dict[str, LazyTensor]:
    """Put the family's prefix where transformers 5 loses it: in the blocks of ViTMSN's file."""
    if not any(name.startswith(f"{family.prefix}embeddings.") for name in tensors):
        return tensors
    return {
        family.prefix + name if name.startswith("encoder.") else name: tensor
        for name, tensor in tensors.items()
    }


def _config_of_row(row: Variant) -> dict[str, Any]:
    """config.json of a variant, with transformers' own defaults for the rest, and any head."""
    a = row.architecture
    return {
        "model_type": "vit",
        "hidden_size": a.width,
        "num_hidden_layers": a.depth,
        "num_attention_heads": a.heads,
        "intermediate_size": a.mlp_dim,
        "patch_size": a.patch_px,
        "image_size": list(a.image_hw),
        "qkv_bias": a.qkv_bias,
    }


def _read_config(
    config: dict[str, Any],
    family: Family,
    tensors: dict[str, LazyTensor],
    prefix: str,
    where: str,
) -> tuple[Architecture, tuple[str, ...], Scores | None]:
    """Shape, labels and scores; every problem of the file is listed."""
    fields = Fields(config, where)
    width, heads = fields.positive("hidden_size"), fields.positive("num_attention_heads")
    patch_px, image_hw = fields.positive("patch_size"), fields.size_hw("image_size")
    fields.choice("hidden_act", ("gelu",), "gelu")
    if width % heads:
        fields.problem(f"num_attention_heads: {heads} does not divide hidden_size {width}")
    if min(image_hw) < patch_px:
        fields.problem(f"image_size: {config['image_size']} is less than patch_size {patch_px}")
    if fields.positive("num_channels", 3) != 3:
        fields.problem(f"num_channels: {config['num_channels']}; only 3 (RGB) is supported")
    if fields.truth("use_swiglu_ffn", False):
        fields.problem("use_swiglu_ffn: a gated MLP (SwiGLU) is not supported")
    pre_logits_dim = None
    classes, labels = _read_labels(fields, tensors)
    distilled = "distillation_classifier.weight" in tensors
    pooling: Pooling = "class+distilled" if distilled else "class"
    if family.head_sees_mean and classes:
        pooling = "class+mean"
    pooler = tensors.get(f"{prefix}pooler.dense.weight")
    if pooler is not None and not classes:
        fields.choice("pooler_act", ("tanh",), "tanh")
        pre_logits_dim = pooler.shape[0] if pooler.shape else None
    architecture = Architecture(
        width=width,
        depth=fields.positive("num_hidden_layers", most=MAX_DEPTH),
        heads=heads,
        mlp_dim=_mlp_dim(fields, width),
        patch_px=patch_px,
        image_hw=image_hw,
        num_classes=classes,
        qkv_bias=fields.truth("qkv_bias", True),
        layer_norm_eps=fields.number("layer_norm_eps", family.epsilon),
        pre_logits_dim=pre_logits_dim,
        # a class token that is missing is said to be that, with all that is
        prefix_tokens=1
        + sum(prefix_rows(f"{prefix}embeddings.{name}", tensors) for name in family.tokens[1:]),
        pooling=pooling,
    )
    scores = scores_of_config(fields, classes) if classes else None
    fields.done()
    return architecture, labels, scores


def _with_decoder(a: Architecture, fields: Fields, tensors: dict[str, LazyTensor]) -> Architecture:
    """Add the decoder of ViTForMaskedImageModeling, if it is there; its weight tells the stride."""
    weight = tensors.get(f"{DECODER}.weight")
    if weight is None or fields.data["model_type"] != "vit":
        return a
    of_weight = math.isqrt(math.prod(weight.shape[:1]) // a.channels)
    stride = fields.positive("encoder_stride", of_weight)
    fields.done()
    return dataclasses.replace(a, decoder_stride=stride)


def _mlp_dim(fields: Fields, width: int) -> int:
    """intermediate_size, or DINOv2's mlp_ratio."""
    if fields.has("mlp_ratio") and not fields.has("intermediate_size"):
        return int(width * fields.number("mlp_ratio", 4.0))
    return fields.positive("intermediate_size")


def _read_labels(fields: Fields, tensors: dict[str, LazyTensor]) -> tuple[int, tuple[str, ...]]:
    """Count the classes of the head, and name them if id2label really does."""
    head = tensors.get("classifier.weight", tensors.get("cls_classifier.weight"))
    named = any("ForImageClassification" in name for name in fields.words("architectures"))
    if head is None and not named:
        return 0, ()
    labels = numbered_labels(fields, "id2label") if fields.has("id2label") else ()
    claimed = len(labels)
    if not claimed and fields.has("num_labels"):
        claimed = fields.positive("num_labels", most=MAX_CLASSES)
    classes = head.shape[0] if head is not None and head.shape else claimed
    for name, count in (("id2label", len(labels)), ("num_labels", fields.data.get("num_labels"))):
        if fields.has(name) and count and count != classes:
            fields.problem(f"{name}: {count} classes, but the head has {classes}")
    return classes, () if is_numbered(labels) else labels


def _rules(
    a: Architecture, family: Family, tensors: dict[str, LazyTensor], prefix: str
) -> list[Rule]:
    """Say where each of transformers' tensors goes."""
    in_memory = any(".q_proj." in name for name in tensors)
    dialect = family.in_memory if in_memory else family.on_disk
    embeddings, patch = f"{prefix}embeddings", f"{prefix}embeddings.patch_embeddings.projection"
    kernel = (a.width, a.channels, a.patch_px, a.patch_px)
    rules = [
        *prefix_rules([f"{embeddings}.{token}" for token in family.tokens], tensors, a),
        position_rule(f"{embeddings}.position_embeddings", tensors, a),
        Rule(f"{patch}.weight", kernel, "embedding.patch.weight"),
        Rule(f"{patch}.bias", (a.width,), "embedding.patch.bias"),
    ]
    for index in range(a.depth):
        block = prefix + dialect.block.format(index)
        rules += block_rules(a, dialect, block, f"blocks.{index}")
    rules += norm_rules(f"{prefix}layernorm", "readout.norm", a.width)
    if a.pre_logits_dim:
        rules += linear_rules(
            f"{prefix}pooler.dense", "readout.pre_logits", a.width, a.pre_logits_dim
        )
    if a.num_classes:
        rules += linear_rules("classifier", "readout.head", a.features_dim, a.num_classes)
    if a.decoder_stride:
        made, ours = a.channels * a.decoder_stride**2, "readout.decoder.pixels"
        shape = (made, a.width, 1, 1)
        rules.append(Rule(f"{DECODER}.weight", shape, f"{ours}.weight", of_convolution))
        rules.append(Rule(f"{DECODER}.bias", (made,), f"{ours}.bias"))
    return rules
