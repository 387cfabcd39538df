"""open_clip's files, of CLIP towers that are plain ViTs: LAION's, DataComp's, MetaCLIP's, DFN's."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from vit_edge.bundle.architecture import Activation, Architecture
from vit_edge.bundle.manifest import Interpolation, Preprocessing
from vit_edge.checkpoints import Checkpoint, Request
from vit_edge.checkpoints.assemble import Foreign, checkpoint_from
from vit_edge.checkpoints.clip import left_out, scale_of
from vit_edge.checkpoints.fields import MAX_DEPTH, MAX_SIZE, Fields
from vit_edge.checkpoints.files import WEIGHT_FILES, Place, open_weights, read_json
from vit_edge.checkpoints.hf_preprocessing import CLIP_MEAN, CLIP_STD
from vit_edge.checkpoints.locate import locate
from vit_edge.checkpoints.sniff import config_of, holds
from vit_edge.checkpoints.tensors import (
    Rule,
    linear_rules,
    norm_rules,
    transposed,
    zeros,
)
from vit_edge.errors import CheckpointError

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")

_ANCHORS = ("class_embedding", "conv1.weight", "ln_post.weight")
# Of the text half beside `visual.`: CLIP's own, CustomTextCLIP's below one name, CoCa's decoder,
# and three numbers that OpenAI's state_dicts hold.
_TEXT = (
    *("token_embedding.", "positional_embedding", "transformer.", "ln_final.", "text_projection"),
    *("attn_mask", "text.", "text_decoder.", "input_resolution", "context_length", "vocab_size"),
)
# Arguments of vision_cfg that change no answer, whatever they are ...
_FREE = frozenset(
    {
        *("image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio"),
        *("ls_init_value", "no_ln_pre", "patch_dropout", "pos_embed_type", "output_tokens"),
        *("attn_pooler_queries", "attn_pooler_heads", "final_ln_after_pool"),
        *("timm_model_pretrained", "timm_pool", "timm_proj", "timm_proj_bias", "timm_drop"),
        *("timm_drop_path", "timm_model_name"),
    }
)
# ... and those of which only some values are a plain ViT, with what the others are.
_PLAIN: dict[str, tuple[tuple[object, ...], str]] = {
    "attentional_pool": ((False,), "attention pooling (CoCa)"),
    "pool_type": (("tok", "avg"), "no pooling"),
    "act_kwargs": (({},), "another activation"),
    "block_type": (("default", "custom"), "another block"),
    "qk_norm": ((False,), "normalised queries and keys"),
    "scaled_cosine_attn": ((False,), "attention by cosines"),
    "scale_heads": ((False,), "a factor for each head"),
    "scale_attn_inner": ((False,), "a norm inside attention"),
    "scale_attn": ((False,), "a norm behind attention"),
    "scale_fc": ((False,), "a norm inside the MLP"),
}
_WAY_ON = (
    "Write the tower with torch.onnx.export, and give the file with --onnx; see docs/checkpoints.md"
)


def recognises(path: Path) -> bool:
    """A directory with open_clip's config and no other's weights, or its tensor names."""
    if path.is_dir():
        others = config_of(path) and any((path / name).is_file() for name in WEIGHT_FILES)
        return (path / CONFIG).is_file() and not others
    return holds(path, *_ANCHORS)


def load(reference: str, request: Request) -> Checkpoint:
    """Read a directory, a weight file with open_clip_config.json beside it, or a model of the hub.

    Raises:
        UsageError: Nothing is named, or a revision of something local.
        CheckpointError: The files are missing or damaged, or the tower is no plain ViT; the
            feature that makes it another model is named.
        HubError: `reference` is no path, and the hub does not have it or does not answer.
    """
    place = locate(
        "open_clip", reference, reference, request.revision, (CONFIG,), weight_files=WEIGHTS
    )
    return load_files(place, f"open_clip:{reference}", request)


def load_files(place: Place, source: str, request: Request) -> Checkpoint:
    """Read a checkpoint that lies on disk.

    Args:
        place: The directory, or a weight file beside its open_clip_config.json.
        source: What the manifest calls it.
        request: What was asked.

    Raises:
        CheckpointError: The files are missing or damaged, or the tower is no plain ViT.
    """
    config_file = (place.path if place.path.is_dir() else place.path.parent) / CONFIG
    weights = open_weights(_weight_file(place.path), request.key)
    architecture, preprocessing = _read_config(config_file)
    where, stored = str(weights.path), weights.tensors
    if request.text_embeddings is not None and "logit_bias" in stored:
        raise CheckpointError(
            f"{where}: logit_bias: trained with a sigmoid for each pair (SigLIP); a zero-shot head "
            "of it is not supported. Leave --text-embeddings out for its features"
        )
    prefix = "visual." if any(name.startswith("visual.") for name in stored) else ""
    tensors = left_out(stored, _TEXT, where) if prefix else dict(stored)
    tensors[f"{prefix}conv1.bias"] = zeros(architecture.width)
    foreign = Foreign(
        source=source,
        where=where,
        name=place.name,
        architecture=architecture,
        rules=tuple(_rules(architecture, tensors, prefix)),
        tensors=tensors,
        labels=(),
        preprocessing=preprocessing,
        position_method="bicubic-antialias",
        ignored={"logit_scale", "logit_bias"},
        files=(config_file, *weights.files),
        revision=place.revision,
        logit_scale=scale_of(stored, where),
    )
    return checkpoint_from(foreign, request)


def _weight_file(path: Path) -> Path:
    """open_clip's own file in a directory; without one, what others would read there."""
    own = (path / name for name in WEIGHTS)
    return next(filter(Path.is_file, own), path)


def _read_config(
    file: Path,
) -> tuple[Architecture, Callable[[tuple[int, int]], Preprocessing]]:
    """Read the tower's shape and its images; every problem of the file is listed."""
    if not file.is_file():
        raise CheckpointError(
            f"{file}: missing. It holds the shape of the tower: the model's repository has it; for "
            'a model of your own write {"model_cfg": ..., "preprocess_cfg": {}}, with what '
            "open_clip.get_model_config(NAME) returns"
        )
    config = read_json(file)
    problems: list[str] = []
    model = Fields(_object(config, "model_cfg", problems), str(file), problems)
    vision = Fields(_object(model.data, "vision_cfg", problems), str(file), problems)
    if not vision.data and not problems:
        problems.append("model_cfg.vision_cfg: missing")
    vision.done()
    _refuse_other_towers(vision)
    architecture = _architecture(model, vision)
    images = Fields(_object(config, "preprocess_cfg", problems), str(file), problems)
    preprocessing = _preprocessing(images, architecture.image_hw)
    vision.done()
    return architecture, preprocessing


def _object(holder: Mapping[str, Any], name: str, problems: list[str]) -> dict[str, Any]:
    """An object of a JSON file; missing and null are empty."""
    value = holder.get(name)
    if value is None or isinstance(value, dict):
        return value or {}
    problems.append(f"{name}: expected an object, got {type(value).__name__}")
    return {}


def _refuse_other_towers(vision: Fields) -> None:
    """Name what makes this another model than a ViT.

    Raises:
        CheckpointError: There is something.
    """
    tower = vision.data.get("timm_model_name")
    if tower:
        vision.problem(
            f"timm_model_name: {tower!r}: a tower of timm's is not supported here. The trunk of a "
            "plain ViT, without the projection: --checkpoint timm:FILE --key visual.trunk"
        )
    if isinstance(vision.data.get("layers"), list):
        vision.problem("layers: a ResNet, not a Vision Transformer")
    for name, value in vision.data.items():
        plain, other = _PLAIN.get(name, ((), ""))
        if name in _PLAIN and value is not None and value not in plain:
            vision.problem(f"{name}: {value!r}: {other} is not supported")
        if name not in _PLAIN and name not in _FREE and name != "norm_kwargs":
            vision.problem(f"{name}: unknown, so it may change what is computed")
    if vision.problems:
        vision.problem(_WAY_ON)
        vision.done()


def _architecture(model: Fields, vision: Fields) -> Architecture:
    """The shape; what the file does not say is as CLIPVisionCfg has it."""
    width, head_width = vision.positive("width", 768), vision.positive("head_width", 64)
    if width % head_width:
        vision.problem(f"head_width: {head_width} does not divide width {width}")
    image_size = vision.data.get("image_size", 224)
    pooled = vision.choice("pool_type", ("tok", "avg"), "tok") == "avg"
    quick = model.truth("quick_gelu", False)
    activation: Activation = "quick_gelu" if quick else "gelu"
    norm = Fields(_object(vision.data, "norm_kwargs", vision.problems), vision.where)
    if norm.data.keys() - {"eps"}:
        vision.problem(f"norm_kwargs: {norm.data!r}; only eps is supported")
    ratio = vision.number("mlp_ratio", 4.0)
    mlp_dim = int(width * ratio)
    if not 1 <= mlp_dim <= MAX_SIZE:
        vision.problem(f"mlp_ratio: {ratio} makes an MLP of {mlp_dim} channels")
    return Architecture(
        width=width,
        depth=vision.positive("layers", 12, most=MAX_DEPTH),
        heads=max(1, width // head_width),
        mlp_dim=mlp_dim,
        patch_px=vision.positive("patch_size", 16),
        image_hw=Fields({"image_size": image_size}, "", vision.problems).size_hw("image_size"),
        num_classes=0,
        layer_norm_eps=norm.number("eps", 1e-5),
        pooling="mean" if pooled else "class",
        norm_after_pooling=pooled and vision.truth("final_ln_after_pool", False),
        norm_pre=not vision.truth("no_ln_pre", False),
        activation=activation,
        projection_dim=model.positive("embed_dim"),
    )


def _preprocessing(
    images: Fields, image_hw: tuple[int, int]
) -> Callable[[tuple[int, int]], Preprocessing]:
    """What open_clip's image_transform does for evaluation, at the model's own size."""
    mode = images.choice("resize_mode", ("shortest", "squash"), "shortest")
    if mode == "shortest" and image_hw[0] != image_hw[1]:
        images.problem(f"resize_mode: 'shortest' is not supported for images of {list(image_hw)}")
    # "random" is of training; open_clip takes bicubic then
    named = images.choice("interpolation", ("bicubic", "bilinear", "random"), "bicubic")
    interpolation: Interpolation = "bilinear" if named == "bilinear" else "bicubic"
    resize: Literal["squash", "cover"] = "cover" if mode == "shortest" else "squash"
    mean, std = (_colour(images, *pair) for pair in (("mean", CLIP_MEAN), ("std", CLIP_STD)))
    if min(std) <= 0:
        images.problem(f"std: {list(std)} must be positive")

    def at(size_hw: tuple[int, int]) -> Preprocessing:
        return Preprocessing(resize, size_hw, size_hw, interpolation, mean, std)

    return at


def _colour(
    images: Fields, name: str, default: tuple[float, float, float]
) -> tuple[float, float, float]:
    """Three numbers, or one for all three channels."""
    value = images.data.get(name)
    if isinstance(value, int | float) and type(value) is not bool:
        return float(value), float(value), float(value)
    return images.colour(name, default)


def _rules(a: Architecture, names: Collection[str], prefix: str) -> list[Rule]:
    """Say where each of open_clip's tensors goes."""
    assert a.projection_dim is not None
    kernel = (a.width, a.channels, a.patch_px, a.patch_px)
    projection = (a.width, a.projection_dim)
    rules = [
        Rule(f"{prefix}class_embedding", (a.width,), "embedding.cls_token"),
        Rule(f"{prefix}positional_embedding", (a.tokens, a.width), "embedding.position"),
        Rule(f"{prefix}conv1.weight", kernel, "embedding.patch.weight"),
        Rule(f"{prefix}conv1.bias", (a.width,), "embedding.patch.bias"),
        *norm_rules(f"{prefix}ln_post", "readout.norm", a.width),
        Rule(f"{prefix}proj", projection, "readout.projection.weight"),
    ]
    if a.norm_pre:
        rules += norm_rules(f"{prefix}ln_pre", "embedding.norm", a.width)
    for index in range(a.depth):
        block = f"{prefix}transformer.resblocks.{index}"
        rules += _block_rules(a, names, block, f"blocks.{index}")
    return rules


def _block_rules(a: Architecture, names: Collection[str], theirs: str, ours: str) -> list[Rule]:
    """One encoder block; layer scale, if there is one, goes into the Linears before it."""
    scales = (f"{theirs}.ls_1.gamma", f"{theirs}.ls_2.gamma")
    after_attention, after_mlp = scales if scales[0] in names else (None, None)
    qkv, width = f"{ours}.attention.qkv", 3 * a.width
    return [
        *norm_rules(f"{theirs}.ln_1", f"{ours}.norm1", a.width),
        Rule(f"{theirs}.attn.in_proj_weight", (width, a.width), f"{qkv}.weight", transposed),
        Rule(f"{theirs}.attn.in_proj_bias", (width,), f"{qkv}.bias"),
        *linear_rules(
            f"{theirs}.attn.out_proj", f"{ours}.attention.out", a.width, a.width, after_attention
        ),
        *norm_rules(f"{theirs}.ln_2", f"{ours}.norm2", a.width),
        *linear_rules(f"{theirs}.mlp.c_fc", f"{ours}.mlp.fc1", a.width, a.mlp_dim),
        *linear_rules(f"{theirs}.mlp.c_proj", f"{ours}.mlp.fc2", a.mlp_dim, a.width, after_mlp),
    ]
