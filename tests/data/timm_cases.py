"""What make_timm_reference.py builds with timm, and test_timm.py builds again without it.

The weights are drawn by name, so that none need to be stored; only logits are.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Case:
    """One VisionTransformer of timm."""

    width: int = 48
    depth: int = 3
    heads: int = 3
    mlp_ratio: float = 4
    patch: int = 16
    image_hw: tuple[int, int] = (64, 64)
    classes: int = 10
    qkv_bias: bool = True
    no_embed_class: bool = False
    resized_hw: tuple[int, int] | None = None  # positions resampled to this size
    # Arguments of the family beyond the plain ViT: class_token, reg_tokens, init_values, fc_norm,
    # global_pool, qk_norm, pre_norm, act_layer, final_norm
    family: tuple[tuple[str, Any], ...] = ()
    distilled: bool = False
    architecture: str = "vit_tiny_patch16_224"  # timm's name, from which its epsilon follows
    epsilon: float = 1e-6  # of LayerNorm

    def of_family(self, name: str, otherwise: Any) -> Any:
        """The value of one of the family's arguments."""
        return dict(self.family).get(name, otherwise)

    @property
    def prefix_tokens(self) -> int:
        """What stands in front of the patches."""
        registers = int(self.of_family("reg_tokens", 0))
        return registers + bool(self.of_family("class_token", True)) + self.distilled

    @property
    def arguments(self) -> dict[str, Any]:
        """Those of timm.models.vision_transformer.VisionTransformer."""
        return {
            "img_size": self.image_hw,
            "patch_size": self.patch,
            "embed_dim": self.width,
            "depth": self.depth,
            "num_heads": self.heads,
            "mlp_ratio": self.mlp_ratio,
            "qkv_bias": self.qkv_bias,
            "no_embed_class": self.no_embed_class,
            "num_classes": self.classes,
            **dict(self.family),
        }


def _family(
    *, no_embed_class: bool = False, resized_hw: tuple[int, int] | None = None, **family: Any
) -> Case:
    return Case(no_embed_class=no_embed_class, resized_hw=resized_hw, family=tuple(family.items()))


CASES = {
    "tiny-shape": Case(width=192, depth=12, image_hw=(224, 224), classes=1000),
    "small-depth-4": Case(width=384, depth=4, heads=6, image_hw=(384, 384), classes=1000),
    "base-depth-2": Case(width=768, depth=2, heads=12, image_hw=(224, 224), classes=1000),
    "large-depth-1": Case(width=1024, depth=1, heads=16, patch=32, image_hw=(384, 384)),
    "no-qkv-bias": Case(qkv_bias=False),
    "no-embed-class": Case(no_embed_class=True),
    "non-square": Case(image_hw=(32, 80), patch=8),
    "in21k-head": Case(classes=21843),
    "narrow-mlp": Case(mlp_ratio=1.5),
    "resized": Case(resized_hw=(96, 48)),
    "no-whole-patches": Case(image_hw=(70, 94)),
    "resized-down": Case(image_hw=(128, 128), resized_hw=(64, 80)),
    "layer-scale": _family(init_values=0.1),
    "deit3": _family(init_values=0.1, no_embed_class=True),
    "registers": _family(init_values=0.1, reg_tokens=4, no_embed_class=True),
    "registers-with-positions": _family(reg_tokens=4),
    "registers-resized": _family(reg_tokens=4, no_embed_class=True, resized_hw=(96, 48)),
    "averaged": _family(global_pool="avg"),
    "averaged-norm-first": _family(global_pool="avg", fc_norm=False),
    "averaged-no-class-token": _family(global_pool="avg", class_token=False),
    "averaged-registers": _family(
        global_pool="avg", class_token=False, reg_tokens=4, no_embed_class=True
    ),
    "token-fc-norm": _family(fc_norm=True),
    "qk-norm": _family(qk_norm=True),
    "pre-norm": _family(pre_norm=True),
    "clip": _family(pre_norm=True, act_layer="quick_gelu"),
    "clip-by-name": Case(
        family=(("pre_norm", True),), architecture="vit_base_patch16_clip_224", epsilon=1e-5
    ),
    "distilled": Case(distilled=True),
    "gelu-tanh": _family(act_layer="gelu_tanh"),
    "no-final-norm": _family(final_norm=False),
    "no-final-norm-averaged": _family(final_norm=False, global_pool="avg"),
}


def shapes(case: Case) -> dict[str, tuple[int, ...]]:
    """timm's state_dict: name -> shape."""
    d, mlp = case.width, int(case.width * case.mlp_ratio)
    patches = (case.image_hw[0] // case.patch) * (case.image_hw[1] // case.patch)
    pool, norm_pre = case.of_family("global_pool", "token"), case.of_family("pre_norm", False)
    norm = "fc_norm" if case.of_family("fc_norm", pool == "avg") else "norm"
    found: dict[str, tuple[int, ...]] = {
        "pos_embed": (1, patches + (not case.no_embed_class) * case.prefix_tokens, d),
        "patch_embed.proj.weight": (d, 3, case.patch, case.patch),
        "head.weight": (case.classes, d),
        "head.bias": (case.classes,),
    }
    if case.of_family("final_norm", True):
        found |= {f"{norm}.weight": (d,), f"{norm}.bias": (d,)}
    if case.of_family("class_token", True):
        found["cls_token"] = (1, 1, d)
    if case.of_family("reg_tokens", 0):
        found["reg_token"] = (1, case.of_family("reg_tokens", 0), d)
    if norm_pre:
        found |= {"norm_pre.weight": (d,), "norm_pre.bias": (d,)}
    else:
        found["patch_embed.proj.bias"] = (d,)
    if case.distilled:
        found |= {f"head_dist.{leaf}": found[f"head.{leaf}"] for leaf in ("weight", "bias")}
        found["dist_token"] = (1, 1, d)
    for index in range(case.depth):
        block = f"blocks.{index}"
        found |= {
            f"{block}.norm1.weight": (d,),
            f"{block}.norm1.bias": (d,),
            f"{block}.attn.qkv.weight": (3 * d, d),
            f"{block}.attn.proj.weight": (d, d),
            f"{block}.attn.proj.bias": (d,),
            f"{block}.norm2.weight": (d,),
            f"{block}.norm2.bias": (d,),
            f"{block}.mlp.fc1.weight": (mlp, d),
            f"{block}.mlp.fc1.bias": (mlp,),
            f"{block}.mlp.fc2.weight": (d, mlp),
            f"{block}.mlp.fc2.bias": (d,),
        }
        if case.qkv_bias:
            found[f"{block}.attn.qkv.bias"] = (3 * d,)
        if case.of_family("init_values", None):
            found |= {f"{block}.ls1.gamma": (d,), f"{block}.ls2.gamma": (d,)}
        if case.of_family("qk_norm", False):
            names = [f"{x}_norm.{leaf}" for x in "qk" for leaf in ("weight", "bias")]
            found |= {f"{block}.attn.{name}": (d // case.heads,) for name in names}
    return found


def drawn(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A tensor that depends on its name and shape alone, scaled to keep activations near 1."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    values = np.random.Generator(np.random.PCG64(seed)).standard_normal(shape)
    fan_in = math.prod(shape[1:]) if len(shape) in (2, 4) else 4
    offset = 1 if "norm" in name and name.endswith("weight") else 0
    return (offset + values / math.sqrt(fan_in)).astype(np.float32)


def weights(case: Case) -> dict[str, NDArray[np.float32]]:
    """Every tensor of a case."""
    return {name: drawn(name, shape) for name, shape in shapes(case).items()}


def pixels(case: Case) -> NDArray[np.float32]:
    """Two images of the size the case ends at: float32[2, 3, H, W]."""
    return drawn("pixels", (1, 2, 3, *(case.resized_hw or case.image_hw)))[0] * 2
