"""The models timm builds beside the plain ViT, and config.json with its pretrained_cfg."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Literal, cast, get_args

from vit_edge.bundle.architecture import Activation
from vit_edge.bundle.manifest import (
    Interpolation,
    Preprocessing,
)
from vit_edge.checkpoints.fields import Fields
from vit_edge.checkpoints.labels import is_numbered, numbered_labels
from vit_edge.errors import CheckpointError
from vit_edge.variants import HALF, Variant

log = logging.getLogger(__name__)

TOKENS_TO_TOKEN = "tokens_to_token.project.weight"  # of T2T-ViT alone
# Tensors of models that share timm's names with the ViT but compute something else.
_OTHER_MODELS = (
    (r"attn_pool\.", "attention pooling (SigLIP)"),
    (r"blocks\.\d+\.mlp\.(w12|w3|fc1_[gx])\.", "a gated MLP (SwiGLU)"),
    (r"blocks\.\d+\.(attn|mlp)\.norm\.", "a LayerNorm inside attention or MLP (BEiT-3)"),
    (r"blocks\.\d+\.(attn\.)?lambda_", "differential attention"),
    (r"blocks\.\d+\.(in_proj|attns)\.", "attention beside the MLP (parallel blocks)"),
    (r"blocks\.\d+\.attn\.(relative_position|rel_pos)|rel_pos", "relative positions"),
    (r"rope(_embed)?\.", "rotary positions"),
    (r"patch_embed\.backbone\.", "a ResNet before the patches (hybrid)"),
    (r"tokens_to_token\.", "overlapping windows (T2T-ViT, which t2t:PATH reads)"),
)

# Arguments of VisionTransformer that leave the plain ViT alone, whatever they are ...
# fmt: off
_FREE = frozenset(
    {
        "img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads",
        "mlp_ratio", "qkv_bias", "drop_rate", "pos_drop_rate", "patch_drop_rate",
        "proj_drop_rate", "attn_drop_rate", "drop_path_rate", "weight_init", "fix_init",
        "dynamic_img_size", "strict_img_size", "no_embed_class", "representation_size",
        "has_logits", "class_token", "reg_tokens", "pre_norm", "fc_norm", "qk_norm", "init_values",
        "final_norm",
    }
)
# fmt: on
# ... and those of which only some values do.
_PLAIN: dict[str, tuple[object, ...]] = {
    "global_pool": ("token", "avg"),
    "pos_embed": ("learn",),
    "proj_bias": (True,),
    "act_layer": (None, "gelu", "gelu_tanh", "quick_gelu"),
    "pool_include_prefix": (False,),
    "norm_layer": (None, "layernorm"),
    "scale_attn_norm": (False,),
    "scale_mlp_norm": (False,),
    "dynamic_img_pad": (False,),
}
# The tensor that shows whether a part of the family is there.
_SEEN_IN = {
    "class_token": "cls_token",
    "reg_tokens": "reg_token",
    "pre_norm": "norm_pre.weight",
    "fc_norm": "fc_norm.weight",
    "qk_norm": "blocks.0.attn.q_norm.weight",
    "init_values": "blocks.0.ls1.gamma",
}
# Words of timm's names -> what its configuration does not say: the heads, by width ...
_HEADS = {
    "tiny": {192: 3}, "small": {384: 6}, "base": {768: 12}, "large": {1024: 16}, "huge": {1280: 16},
    "giant": {1408: 16, 1536: 24}, "giantopt": {1536: 16}, "gigantic": {1664: 16}, "wee": {256: 4},
    "xsmall": {256: 4}, "little": {320: 5}, "medium": {512: 8}, "mediumd": {512: 8},
    "betwixt": {640: 10}, "so150m": {896: 14}, "so150m2": {832: 13}, "so400m": {1152: 16},
    "intern300m": {1024: 16}, "base_patch16_plus": {896: 14}, "test": {64: 2},
}  # fmt: skip
# ... and act_layer="gelu_tanh".
_GELU_TANH = re.compile(
    r"vit_(base_patch32|giantopt_patch16|so400m_patch16)_siglip|vit_large_patch16_siglip(_gap)?_512"
)
# Models whose tensors are called as those of the ViT, and that compute something else.
_OTHER_NAMES = {"_rpn_": "a LayerNorm behind attention and MLP, not before (ResPostBlock)"}
_INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")


def is_timm_config(config: Mapping[str, Any]) -> bool:
    """True if a config.json is timm's, or TimmWrapper's of transformers, which repeats it."""
    return "architecture" in config and config.get("model_type") in (None, "timm_wrapper")


def refuse_other_models(names: Iterable[str], where: str) -> None:
    """Name the features that make this another model than the ViT.

    Raises:
        CheckpointError: There is at least one.
    """
    features = {
        reason: name
        for name in sorted(names, reverse=True)
        for pattern, reason in _OTHER_MODELS
        if re.match(pattern, name)
    }
    if features:
        listed = "\n  ".join(f"{reason}: {name}" for reason, name in sorted(features.items()))
        raise CheckpointError(
            f"{where}: not the plain Vision Transformer of arXiv:2010.11929. It has:\n  {listed}"
        )


def check_model_args(fields: Fields) -> dict[str, Any]:
    """Return config.json's model_args; a value that makes another model is a problem."""
    arguments = fields.data.get("model_args") or {}
    if not isinstance(arguments, dict):
        fields.problem("model_args: expected an object")
        return {}
    for name, value in arguments.items():
        if name in _PLAIN and value not in _PLAIN[name]:
            allowed = " or ".join(map(repr, _PLAIN[name]))
            fields.problem(f"model_args.{name}: {value!r} is not supported; expected {allowed}")
        if name not in _PLAIN and name not in _FREE:
            fields.problem(f"model_args.{name}: unknown, so it may change what is computed")
    return arguments


def check_against_tensors(
    fields: Fields, arguments: Mapping[str, Any], names: Collection[str]
) -> None:
    """A part that model_args has and the tensors have not, or the other way, is a problem."""
    for argument, tensor in _SEEN_IN.items():
        value = arguments.get(argument)
        if value is not None and bool(value) != (tensor in names):
            there = "there" if tensor in names else "missing"
            fields.problem(f"model_args.{argument}: {value!r}, but {tensor} is {there}")


def pools_patches(fields: Fields, arguments: dict[str, Any], names: Collection[str]) -> bool:
    """Whether features are the mean over the patches, not the class token.

    timm keeps that in config.json alone. Without one, what can only be averaged is.
    """
    pool = arguments.get("global_pool", fields.data.get("global_pool"))
    if pool not in (None, "token", "avg"):
        fields.problem(f"global_pool: {pool!r} is not supported; expected 'token' or 'avg'")
    if pool is None:
        return "fc_norm.weight" in names or "cls_token" not in names
    return bool(pool == "avg")


def activation_of(fields: Fields, arguments: Mapping[str, Any]) -> Activation:
    """The MLP's activation: model_args has it, or the model's name alone."""
    name, given = str(fields.data.get("architecture")), arguments.get("act_layer")
    if "act_layer" in arguments:  # null as well: timm then takes its own
        return cast(Activation, given if given in get_args(Activation) else "gelu")
    if "quickgelu" in name:
        return "quick_gelu"
    return "gelu_tanh" if _GELU_TANH.match(name) else "gelu"


def has_final_norm(fields: Fields, arguments: Mapping[str, Any]) -> bool:
    """Whether a LayerNorm follows the last block; InternViT and RADIO have none."""
    name = str(fields.data.get("architecture"))
    return bool(arguments.get("final_norm", not re.search(r"_intern300m_|_radio_v\d", name)))


def refuse_by_name(fields: Fields) -> None:
    """Refuse a model whose tensors do not show that it is another."""
    name = str(fields.data.get("architecture"))
    for part, feature in _OTHER_NAMES.items():
        if part in name:
            fields.problem(f"architecture: {name!r} has {feature}, so it is no plain ViT")


def epsilon_of(fields: Fields, arguments: Mapping[str, Any], names: Collection[str]) -> float:
    """LayerNorm's epsilon: 1e-5 in CLIP's own models, whose name alone says so, else 1e-6.

    Without a name, a norm in front of the blocks tells that it is CLIP's.
    """
    name = fields.data.get("architecture")
    clip = "norm_pre.weight" in names if name is None else "_clip_" in str(name)
    return 1e-5 if clip and "norm_layer" not in arguments else 1e-6


def pretrained_cfg(fields: Fields) -> Fields:
    """The fields of pretrained_cfg; in timm's first format they stand at the top."""
    nested = fields.data.get("pretrained_cfg", fields.data)
    if not isinstance(nested, dict):
        fields.problem("pretrained_cfg: expected an object")
        nested = {}
    return Fields(nested, fields.where, fields.problems)  # one list, one error


def preprocessing_from(cfg: Fields) -> Callable[[tuple[int, int]], Preprocessing]:
    """Follow timm's eval transform (timm.data.transforms_factory) at any image size.

    "center" covers floor(size / crop_pct) and cuts the centre out; "squash" resizes to it.
    """
    for name in ("mean", "std", "interpolation", "crop_pct"):
        if not cfg.has(name):
            cfg.problem(f"pretrained_cfg.{name}: missing")
    crop_ratio = cfg.number("crop_pct", 1.0)
    if not 0 < crop_ratio <= 1:
        cfg.problem(f"crop_pct: {crop_ratio} is not supported; expected a number in (0, 1]")
        crop_ratio = 1.0
    mode = cfg.choice("crop_mode", ("center", "squash"), "center")
    interpolation = cast(Interpolation, cfg.choice("interpolation", _INTERPOLATIONS, "bicubic"))
    mean, std = cfg.colour("mean", HALF), cfg.colour("std", HALF)

    def at(image_hw: tuple[int, int]) -> Preprocessing:
        resize_hw = math.floor(image_hw[0] / crop_ratio), math.floor(image_hw[1] / crop_ratio)
        resize: Literal["squash", "cover"] = "squash" if mode == "squash" else "cover"
        return Preprocessing(resize, resize_hw, image_hw, interpolation, mean, std)

    return at


def preprocessing_of_row(
    row: Variant | None, where: str
) -> Callable[[tuple[int, int]], Preprocessing]:
    """Read preprocessing off the table, for weights without a config.json.

    Raises:
        CheckpointError: No variant was named: normalisation and crop are never guessed.
    """
    if row is None:
        raise CheckpointError(
            f"{where}: without config.json, mean, std and crop of the images are unknown. Put "
            "timm's config.json beside the weights, or name the variant: --variant NAME"
        )
    log.info("%s: no config.json; preprocessing as for the variant %s", where, row.name)
    return row.timm_preprocessing_at if row.timm is not None else row.preprocessing_at


def input_hw(
    cfg: Fields, arguments: Mapping[str, Any], *, asked: bool = False
) -> tuple[int, int] | None:
    """Height and width of the images, if the file says so.

    As in timm, what the model was made with, model_args.img_size, decides over the input_size of
    the weights that it started from.

    Args:
        cfg: The fields of pretrained_cfg.
        arguments: model_args.
        asked: The user decides on a size.
    """
    sides: object = cfg.data.get("input_size")
    given = list(sides) if isinstance(sides, list) else []
    if sides is not None and not (len(given) == 3 and all(type(s) is int for s in given)):
        cfg.problem(f"input_size: {sides!r} is not [channels, height, width]")
        return None
    own = _size_hw(cfg, arguments.get("img_size"))
    if own is None:
        return None if sides is None else (given[1], given[2])
    if sides is not None and own != (given[1], given[2]):
        if arguments.get("dynamic_img_size") and not asked:
            cfg.problem(
                f"input_size: {sides} is another size than model_args.img_size {list(own)}, and "
                "dynamic_img_size would move the positions; decide with --image-size "
                f"{given[1]}x{given[2]} or {own[0]}x{own[1]}"
            )
        log.info("%s: model_args.img_size %s decides over input_size %s", cfg.where, own, sides)
    return own


def _size_hw(cfg: Fields, img_size: object) -> tuple[int, int] | None:
    """model_args.img_size: one integer, or [height, width]."""
    if img_size is None:
        return None
    sides = [img_size, img_size] if type(img_size) is int else img_size
    if isinstance(sides, list) and len(sides) == 2:
        height, width = sides
        if type(height) is int and type(width) is int and min(height, width) > 0:
            return height, width
    cfg.problem(f"model_args.img_size: {img_size!r} is neither a size nor [height, width]")
    return None


def heads_of(architecture: str, width: int) -> int | None:
    """Return the heads of timm's vit_tiny_..., deit_small_..., at any depth, by name and width."""
    named = re.match(r"(?:vit|deit3?|flexivit|eva)_(base_patch16_plus|[a-z0-9]+)", architecture)
    word = named[1] if named else architecture.partition("_")[0]
    return _HEADS.get(word, {}).get(width)


def labels_from(cfg: Fields, fields: Fields, num_classes: int) -> tuple[str, ...]:
    """label_names (once called labels), each replaced by its label_descriptions if there is one.

    Those that a config keeps of the weights that training started from are left out.
    """
    holders = [(h, n) for h in (fields, cfg) for n in ("label_names", "labels") if h.data.get(n)]
    if not holders or not num_classes:
        return ()
    holder, name = holders[0]
    labels = label_list(holder, name, num_classes)
    described = fields.data.get("label_descriptions") or cfg.data.get("label_descriptions") or {}
    if not isinstance(described, dict):
        holder.problem("label_descriptions: expected an object, label -> description")
        described = {}
    if is_numbered(labels):
        return ()
    if len(labels) != num_classes:
        inherited = holder is cfg and cfg.data is not fields.data
        if inherited and cfg.data.get("num_classes") not in (None, num_classes):
            log.warning(
                "%s: pretrained_cfg.%s has the %d labels of other weights; the head has %d classes",
                cfg.where, name, len(labels), num_classes,
            )  # fmt: skip
            return ()
        holder.problem(f"{name}: {len(labels)} labels, but the head has {num_classes} classes")
    return tuple(str(described.get(label, label)) for label in labels)


def label_list(holder: Fields, name: str, num_classes: int) -> tuple[str, ...]:
    """A list; an object, class number -> label, with gaps, as timm allows; or one the other way."""
    names = holder.data[name]
    if isinstance(names, list) and all(type(label) in (str, int) for label in names):
        return tuple(map(str, names))
    if not isinstance(names, dict):
        holder.problem(f"{name}: expected a list of labels, or an object, class number -> label")
        return ()
    if names and all(type(value) is int for value in names.values()):
        names = {str(number): label for label, number in names.items()}
    numbers = {str(index) for index in range(num_classes)}
    if names.keys() <= numbers and name != "id2label":
        return tuple(str(names.get(str(index), "")) for index in range(num_classes))
    return numbered_labels(Fields({name: names}, holder.where, holder.problems), name)
