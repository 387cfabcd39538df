"""transformers' CLIP (arXiv:2103.00020): the vision half of CLIPModel, or CLIPVisionModel alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vit_edge.bundle.architecture import Activation, Architecture
from vit_edge.checkpoints import Checkpoint, Request
from vit_edge.checkpoints.assemble import Foreign, checkpoint_from
from vit_edge.checkpoints.clip import left_out, scale_of
from vit_edge.checkpoints.fields import MAX_DEPTH, Fields
from vit_edge.checkpoints.files import Place, Weights, open_weights, read_json
from vit_edge.checkpoints.hf_families import Dialect, block_rules
from vit_edge.checkpoints.hf_preprocessing import preprocessing_of, processor_file
from vit_edge.checkpoints.sniff import holds
from vit_edge.checkpoints.tensors import LazyTensor, Rule, norm_rules, transposed, zeros
from vit_edge.errors import CheckpointError

# Those whose vision half and configuration are CLIP's own: the whole model, the half alone.
_KINDS = ("clip", "metaclip_2", "chinese_clip")
MODEL_TYPES = (*_KINDS, *(f"{kind}_vision_model" for kind in _KINDS))

_BLOCK = Dialect(
    "encoder.layers.{}",
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"),
    ("mlp.fc1", "mlp.fc2"),
    ("layer_norm1", "layer_norm2"),
)
_POSITION, _PATCH = "embeddings.position_embedding.weight", "embeddings.patch_embedding"
_PROJECTION = "visual_projection.weight"
_TEXT = ("text_model.", "text_projection.")
# CLIPVisionConfig's own, of transformers 4 and 5: a file may hold what differs from them alone.
_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
}
_DEFAULT_PROJECTION = 512


def recognises(path: Path) -> bool:
    """True for the names of a CLIP of transformers'."""
    return holds(path, "embeddings.class_embedding", "pre_layrnorm.weight")


def load_files(
    place: Place,
    source: str,
    request: Request,
    config_file: Path,
    weights: Weights | None = None,
) -> Checkpoint:
    """Read the vision half of a checkpoint that lies on disk.

    Raises:
        CheckpointError: The files are missing, damaged, or hold another head than CLIP's own.
    """
    config = read_json(config_file)
    weights = weights or open_weights(place.path, request.key)
    where, stored = str(weights.path), weights.tensors
    if "classifier.weight" in stored:
        raise CheckpointError(
            f"{where}: classifier.weight: CLIPForImageClassification is not supported: its head "
            "sees the mean over the patches before the last LayerNorm. Write it with "
            "torch.onnx.export, and give the file with --onnx"
        )
    tensors = left_out(stored, _TEXT, where)
    prefix = "vision_model." if f"vision_model.{_POSITION}" in tensors else ""
    architecture = _read_config(config, tensors, str(config_file))
    tensors[f"{prefix}{_PATCH}.bias"] = zeros(architecture.width)
    processor = processor_file(config_file.parent)
    foreign = Foreign(
        source=source,
        where=where,
        name=place.name,
        architecture=architecture,
        rules=tuple(_rules(architecture, prefix)),
        tensors=tensors,
        labels=(),
        preprocessing=preprocessing_of(
            processor, architecture.image_hw, request.image_hw, kind="CLIP"
        ),
        position_method="bicubic",
        # position_ids: a buffer that transformers 4 once saved
        ignored={f"{prefix}embeddings.position_ids", "logit_scale"},
        files=(config_file, *filter(Path.is_file, (processor,)), *weights.files),
        revision=place.revision,
        logit_scale=scale_of(stored, where),
    )
    return checkpoint_from(foreign, request)


def _read_config(
    config: Mapping[str, Any], tensors: Mapping[str, LazyTensor], where: str
) -> Architecture:
    """The shape; what a file does not say is as CLIPVisionConfig has it."""
    problems: list[str] = []
    fields = Fields(_DEFAULTS | _vision_config(config, where, problems), where, problems)
    width, heads = fields.positive("hidden_size"), fields.positive("num_attention_heads")
    patch_px, image_hw = fields.positive("patch_size"), fields.size_hw("image_size")
    if width % heads:
        fields.problem(f"num_attention_heads: {heads} does not divide hidden_size {width}")
    if fields.positive("num_channels", 3) != 3:
        fields.problem(f"num_channels: {fields.data['num_channels']}; only 3 (RGB) is supported")
    quick = fields.choice("hidden_act", ("quick_gelu", "gelu"), "quick_gelu") == "quick_gelu"
    activation: Activation = "quick_gelu" if quick else "gelu"
    architecture = Architecture(
        width=width,
        depth=fields.positive("num_hidden_layers", most=MAX_DEPTH),
        heads=heads,
        mlp_dim=fields.positive("intermediate_size"),
        patch_px=patch_px,
        image_hw=image_hw,
        num_classes=0,
        layer_norm_eps=fields.number("layer_norm_eps", 1e-5),
        norm_pre=True,
        activation=activation,
        projection_dim=_projection_dim(Fields(config, where, problems), tensors),
    )
    fields.done()
    return architecture


def _vision_config(config: Mapping[str, Any], where: str, problems: list[str]) -> dict[str, Any]:
    """The part of config.json that is of the vision half; vision_config_dict wins, as there."""
    if config.get("model_type") not in _KINDS:
        return dict(config)
    older = config.get("vision_config_dict") is not None
    given = "vision_config_dict" if older else "vision_config"
    part = {} if config.get(given) is None else config[given]
    if not isinstance(part, dict):
        problems.append(f"{given}: expected an object, got {type(part).__name__}")
        return {}
    return part


def _projection_dim(fields: Fields, tensors: Mapping[str, LazyTensor]) -> int | None:
    """The width behind the projection; None for a CLIPVisionModel, which has none."""
    if _PROJECTION in tensors:
        shape = tensors[_PROJECTION].shape
        return shape[0] if shape else _DEFAULT_PROJECTION
    named = fields.words("architectures")
    if not any(name.endswith(("CLIPModel", "Clip2Model", "WithProjection")) for name in named):
        return None
    return fields.positive("projection_dim", _DEFAULT_PROJECTION)


def _rules(a: Architecture, prefix: str) -> list[Rule]:
    """Say where each of transformers' tensors goes."""
    kernel = (a.width, a.channels, a.patch_px, a.patch_px)
    rules = [
        Rule(f"{prefix}embeddings.class_embedding", (a.width,), "embedding.cls_token"),
        Rule(f"{prefix}{_POSITION}", (a.tokens, a.width), "embedding.position"),
        Rule(f"{prefix}{_PATCH}.weight", kernel, "embedding.patch.weight"),
        Rule(f"{prefix}{_PATCH}.bias", (a.width,), "embedding.patch.bias"),
        *norm_rules(f"{prefix}pre_layrnorm", "embedding.norm", a.width),  # sic
        *norm_rules(f"{prefix}post_layernorm", "readout.norm", a.width),
    ]
    for index in range(a.depth):
        rules += block_rules(a, _BLOCK, prefix + _BLOCK.block.format(index), f"blocks.{index}")
    if a.projection_dim is not None:
        shape = (a.projection_dim, a.width)
        rules.append(Rule(_PROJECTION, shape, "readout.projection.weight", transposed))
    return rules
