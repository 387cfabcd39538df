"""The families of transformers that are plain Vision Transformers, and the names of their parts."""

from __future__ import annotations

from dataclasses import dataclass

from vit_edge.bundle.manifest import PositionMethod


@dataclass(frozen=True)
class Dialect:
    """The names of the parts of a block."""

    block: str
    query: str
    key: str
    value: str
    out: str
    fc1: str
    fc2: str
    norm1: str = "layernorm_before"
    norm2: str = "layernorm_after"
    scale1: str | None = None  # layer scale, behind attention and behind the MLP
    scale2: str | None = None


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
    *(f"attention.attention.{name}" for name in ("query", "key", "value")),
    "attention.output.dense",
)
_LIVE_ATTENTION = tuple(f"attention.{name}_proj" for name in "qkvo")
_SAVED = Dialect("encoder.layer.{}", *_SAVED_ATTENTION, "intermediate.dense", "output.dense")
_LIVE = Dialect("layers.{}", *_LIVE_ATTENTION, "mlp.fc1", "mlp.fc2")
_DINO = ("norm1", "norm2", "layer_scale1.lambda1", "layer_scale2.lambda1")
_SAVED_DINO = Dialect("encoder.layer.{}", *_SAVED_ATTENTION, "mlp.fc1", "mlp.fc2", *_DINO)
_LIVE_DINO = Dialect("encoder.layer.{}", *_LIVE_ATTENTION, "mlp.fc1", "mlp.fc2", *_DINO)

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
