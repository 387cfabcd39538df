"""Hugging Face checkpoints: ViTForImageClassification and ViTModel, from a directory or the hub."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from vit_edge.bundle.manifest import Architecture, Scores
from vit_edge.checkpoints import Checkpoint, Request
from vit_edge.checkpoints.assemble import Foreign, checkpoint_from
from vit_edge.checkpoints.fields import MAX_CLASSES, MAX_DEPTH, Fields
from vit_edge.checkpoints.files import Place, open_weights, read_json
from vit_edge.checkpoints.hf_preprocessing import preprocessing_of
from vit_edge.checkpoints.labels import numbered_labels, scores_of_config
from vit_edge.checkpoints.locate import locate
from vit_edge.checkpoints.sniff import config_of, tensor_names
from vit_edge.checkpoints.tensors import LazyTensor, Rule, linear_rules, norm_rules, without_wrapper
from vit_edge.errors import CheckpointError

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"


class _Dialect(NamedTuple):
    """The names that transformers gives the parts of a block."""

    block: str
    query: str
    key: str
    value: str
    out: str
    fc1: str
    fc2: str


# What save_pretrained writes, in transformers 4 and 5 alike.
_ON_DISK = _Dialect(
    "encoder.layer.{}",
    "attention.attention.query",
    "attention.attention.key",
    "attention.attention.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)
# What torch.save(model.state_dict()) writes with transformers 5.
_IN_MEMORY = _Dialect(
    "layers.{}",
    "attention.q_proj",
    "attention.k_proj",
    "attention.v_proj",
    "attention.o_proj",
    "mlp.fc1",
    "mlp.fc2",
)


def recognises(path: Path) -> bool:
    """A directory whose config.json has a model_type, or transformers' tensor names."""
    if path.is_dir() and config_of(path):
        return "model_type" in config_of(path)
    names = {name.removeprefix("vit.") for name in tensor_names(path)}
    return "embeddings.patch_embeddings.projection.weight" in names


def load(reference: str, request: Request) -> Checkpoint:
    """Read a directory, a weight file with its config.json beside it, or a model of the hub.

    Raises:
        UsageError: Nothing is named, or a revision of something local.
        CheckpointError: The files are missing, damaged, or describe no plain ViT.
        HubError: `reference` is no path, and the hub does not have it or does not answer.
    """
    place = locate("hf", reference, reference, request.revision, (CONFIG,), (PROCESSOR,))
    return load_files(place, f"hf:{reference}", request)


def load_files(place: Place, source: str, request: Request) -> Checkpoint:
    """Read a checkpoint that lies on disk.

    Args:
        place: The directory, or a weight file beside its config.json.
        source: What the manifest calls it.
        request: What was asked.

    Raises:
        CheckpointError: The files are missing, damaged, or describe no plain ViT.
    """
    path = place.path
    folder = path if path.is_dir() else path.parent
    if not (folder / CONFIG).is_file():
        raise CheckpointError(
            f"{folder / CONFIG}: missing. A Hugging Face checkpoint is a directory with {CONFIG}, "
            f"{PROCESSOR} and model.safetensors (or another weight file, which may be named "
            f"itself); looked in {folder.resolve()}. model.config.save_pretrained(DIR) writes it."
        )
    config = read_json(folder / CONFIG)
    weights = open_weights(path)
    tensors = without_wrapper(weights.tensors)
    prefix = "vit." if any(name.startswith("vit.") for name in tensors) else ""
    architecture, labels, scores = _read_config(config, tensors, prefix, str(folder / CONFIG))
    processor = folder / PROCESSOR
    ignored = {f"{prefix}embeddings.mask_token"}  # of masked-image pretraining only
    if architecture.num_classes:
        # ViTForImageClassification reads the class token itself and never calls the pooler.
        ignored |= {f"{prefix}pooler.dense.weight", f"{prefix}pooler.dense.bias"}
    foreign = Foreign(
        source=source,
        where=str(weights.path),
        name=place.name,
        architecture=architecture,
        rules=tuple(_rules(architecture, tensors, prefix)),
        tensors=tensors,
        labels=labels,
        preprocessing=preprocessing_of(processor, architecture.image_hw, request.image_hw),
        position_method="bicubic",
        ignored=ignored,
        files=(folder / CONFIG, *([processor] if processor.is_file() else []), *weights.files),
        revision=place.revision,
        scores=scores,
        published_as=lambda row: source == f"hf:{row.hf}",
    )
    return checkpoint_from(foreign, request)


def _read_config(
    config: dict[str, Any], tensors: dict[str, LazyTensor], prefix: str, where: str
) -> tuple[Architecture, tuple[str, ...], Scores | None]:
    """Shape, labels and scores; every problem of the file is listed."""
    fields = Fields(config, where)
    model_type = config.get("model_type")
    if model_type != "vit":
        kind = "missing" if model_type is None else f"{model_type!r} is another model"
        fields.problem(f"model_type: {kind}; expected 'vit'")
    width, heads = fields.positive("hidden_size"), fields.positive("num_attention_heads")
    patch_px, image_hw = fields.positive("patch_size"), fields.size_hw("image_size")
    fields.choice("hidden_act", ("gelu",), "gelu")
    if width % heads:
        fields.problem(f"num_attention_heads: {heads} does not divide hidden_size {width}")
    if any(side % patch_px for side in image_hw):
        fields.problem(
            f"image_size: {config['image_size']} is no multiple of patch_size {patch_px}"
        )
    if fields.positive("num_channels", 3) != 3:
        fields.problem(f"num_channels: {config['num_channels']}; only 3 (RGB) is supported")
    pre_logits_dim = None
    classes, labels = _read_labels(fields, tensors)
    pooler = tensors.get(f"{prefix}pooler.dense.weight")
    if pooler is not None and not classes:
        fields.choice("pooler_act", ("tanh",), "tanh")
        pre_logits_dim = pooler.shape[0] if pooler.shape else None
    architecture = Architecture(
        width=width,
        depth=fields.positive("num_hidden_layers", most=MAX_DEPTH),
        heads=heads,
        mlp_dim=fields.positive("intermediate_size"),
        patch_px=patch_px,
        image_hw=image_hw,
        num_classes=classes,
        qkv_bias=fields.truth("qkv_bias", True),
        layer_norm_eps=fields.number("layer_norm_eps", 1e-12),
        pre_logits_dim=pre_logits_dim,
    )
    scores = scores_of_config(fields, classes) if classes else None
    fields.done()
    return architecture, labels, scores


def _read_labels(fields: Fields, tensors: dict[str, LazyTensor]) -> tuple[int, tuple[str, ...]]:
    """Count the classes of the head, and name them if id2label really does."""
    head = tensors.get("classifier.weight")
    if head is None and "ViTForImageClassification" not in fields.words("architectures"):
        return 0, ()
    labels = numbered_labels(fields, "id2label") if fields.has("id2label") else ()
    claimed = len(labels)
    if not claimed and fields.has("num_labels"):
        claimed = fields.positive("num_labels", most=MAX_CLASSES)
    classes = head.shape[0] if head is not None and head.shape else claimed
    for name, count in (("id2label", len(labels)), ("num_labels", fields.data.get("num_labels"))):
        if fields.has(name) and count and count != classes:
            fields.problem(f"{name}: {count} classes, but the head has {classes}")
    unnamed = labels == tuple(f"LABEL_{index}" for index in range(len(labels)))
    return classes, () if unnamed else labels


def _rules(a: Architecture, tensors: dict[str, LazyTensor], prefix: str) -> list[Rule]:
    """Say where each of transformers' tensors goes."""
    in_memory = any(name.startswith(f"{prefix}layers.") for name in tensors)
    dialect = _IN_MEMORY if in_memory else _ON_DISK
    embeddings, patch = f"{prefix}embeddings", f"{prefix}embeddings.patch_embeddings.projection"
    kernel = (a.width, a.channels, a.patch_px, a.patch_px)
    rules = [
        Rule(f"{embeddings}.cls_token", (1, 1, a.width), "embedding.cls_token"),
        Rule(f"{embeddings}.position_embeddings", (1, a.tokens, a.width), "embedding.position"),
        Rule(f"{patch}.weight", kernel, "embedding.patch.weight"),
        Rule(f"{patch}.bias", (a.width,), "embedding.patch.bias"),
    ]
    for index in range(a.depth):
        block = prefix + dialect.block.format(index)
        rules += _block_rules(a, dialect, block, f"blocks.{index}")
    rules += norm_rules(f"{prefix}layernorm", "readout.norm", a.width)
    if a.pre_logits_dim:
        rules += linear_rules(
            f"{prefix}pooler.dense", "readout.pre_logits", a.width, a.pre_logits_dim
        )
    if a.num_classes:
        rules += linear_rules("classifier", "readout.head", a.width, a.num_classes)
    return rules


def _block_rules(a: Architecture, dialect: _Dialect, theirs: str, ours: str) -> list[Rule]:
    """One encoder block; query, key and value become thirds of one matrix."""
    rules = norm_rules(f"{theirs}.layernorm_before", f"{ours}.norm1", a.width)
    rules += norm_rules(f"{theirs}.layernorm_after", f"{ours}.norm2", a.width)
    for part, name in enumerate((dialect.query, dialect.key, dialect.value)):
        third = linear_rules(f"{theirs}.{name}", f"{ours}.attention.qkv", a.width, a.width)
        kept = third if a.qkv_bias else third[:1]
        rules += [dataclasses.replace(rule, part=part, parts=3) for rule in kept]
    rules += linear_rules(f"{theirs}.{dialect.out}", f"{ours}.attention.out", a.width, a.width)
    rules += linear_rules(f"{theirs}.{dialect.fc1}", f"{ours}.mlp.fc1", a.width, a.mlp_dim)
    rules += linear_rules(f"{theirs}.{dialect.fc2}", f"{ours}.mlp.fc2", a.mlp_dim, a.width)
    return rules
