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
        }


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
}


def shapes(case: Case) -> dict[str, tuple[int, ...]]:
    """timm's state_dict: name -> shape."""
    d, mlp = case.width, int(case.width * case.mlp_ratio)
    patches = (case.image_hw[0] // case.patch) * (case.image_hw[1] // case.patch)
    found: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, d),
        "pos_embed": (1, patches + (not case.no_embed_class), d),
        "patch_embed.proj.weight": (d, 3, case.patch, case.patch),
        "patch_embed.proj.bias": (d,),
        "norm.weight": (d,),
        "norm.bias": (d,),
        "head.weight": (case.classes, d),
        "head.bias": (case.classes,),
    }
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
