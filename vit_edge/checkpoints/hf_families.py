"""The families of transformers that are plain Vision Transformers, and the names of their parts."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from vit_edge.bundle.architecture import Architecture
from vit_edge.bundle.manifest import PositionMethod
from vit_edge.checkpoints.tensors import Rule, linear_rules, norm_rules


@dataclass(frozen=True)
class Dialect:
    """The names of the parts of a block."""

    block: str
    attention: tuple[str, str, str, str]  # query, key, value and output
    mlp: tuple[str, str]
    norms: tuple[str, str] = ("layernorm_before", "layernorm_after")
    # layer scale, behind attention and behind the MLP
    scales: tuple[str, str] | tuple[None, None] = (None, None)


@dataclass(frozen=True)
class Family:
    """A model_type of config.json."""

    prefix: str  # of all names but the head's, where there is a head
    on_disk: Dialect  # what save_pretrained writes, in transformers 4 and 5 alike
    in_memory: Dialect  # what torch.save(model.state_dict()) writes with transformers 5
    tokens: tuple[str, ...] = ("cls_token",)  # in front of the patches, in this order
    head_sees_mean: bool = False  # beside the class token, the mean over the patches
    epsilon: float = 1e-12  # of LayerNorm, where config.json has none
    position_method: PositionMethod = "bicubic"
    # Whether the model resizes positions by itself, so that the processor decides on the size.
    any_size: bool = False


_SAVED_ATTENTION = (
    "attention.attention.query",
    "attention.attention.key",
    "attention.attention.value",
    "attention.output.dense",
)
_LIVE_ATTENTION = (
    "attention.q_proj",
    "attention.k_proj",
    "attention.v_proj",
    "attention.o_proj",
)
_MLP, _NORMS = ("mlp.fc1", "mlp.fc2"), ("norm1", "norm2")
_SCALES = ("layer_scale1.lambda1", "layer_scale2.lambda1")
_SAVED = Dialect("encoder.layer.{}", _SAVED_ATTENTION, ("intermediate.dense", "output.dense"))
_LIVE = Dialect("layers.{}", _LIVE_ATTENTION, _MLP)
_SAVED_DINO = Dialect("encoder.layer.{}", _SAVED_ATTENTION, _MLP, _NORMS, _SCALES)
_LIVE_DINO = Dialect("encoder.layer.{}", _LIVE_ATTENTION, _MLP, _NORMS, _SCALES)

FAMILIES = {
    "vit": Family("vit.", _SAVED, _LIVE),
    "deit": Family("deit.", _SAVED, _LIVE, ("cls_token", "distillation_token")),
    "vit_msn": Family("vit.", _SAVED, _LIVE, epsilon=1e-6),
    "vit_mae": Family("vit.", _SAVED, _LIVE),
    "dinov2": Family(
        "dinov2.", _SAVED_DINO, _LIVE_DINO, head_sees_mean=True, epsilon=1e-6, any_size=True
    ),
    "dinov2_with_registers": Family(
        "dinov2_with_registers.",
        _SAVED_DINO,
        _LIVE_DINO,
        ("cls_token", "register_tokens"),
        head_sees_mean=True,
        epsilon=1e-6,
        position_method="bicubic-antialias",
        any_size=True,
    ),
}


def block_rules(a: Architecture, dialect: Dialect, theirs: str, ours: str) -> list[Rule]:
    """One encoder block; query, key and value become thirds of one matrix."""
    rules = []
    for number, norm in enumerate(dialect.norms, start=1):
        rules += norm_rules(f"{theirs}.{norm}", f"{ours}.norm{number}", a.width)
    after_attention, after_mlp = (name and f"{theirs}.{name}" for name in dialect.scales)
    *thirds, out = (f"{theirs}.{name}" for name in dialect.attention)
    for part, name in enumerate(thirds):
        third = linear_rules(name, f"{ours}.attention.qkv", a.width, a.width)
        kept = third if a.qkv_bias else third[:1]
        rules += [dataclasses.replace(rule, part=part, parts=3) for rule in kept]
    rules += linear_rules(out, f"{ours}.attention.out", a.width, a.width, after_attention)
    fc1, fc2 = (f"{theirs}.{name}" for name in dialect.mlp)
    rules += linear_rules(fc1, f"{ours}.mlp.fc1", a.width, a.mlp_dim)
    rules += linear_rules(fc2, f"{ours}.mlp.fc2", a.mlp_dim, a.width, after_mlp)
    return rules
