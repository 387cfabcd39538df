"""What make_torchvision_reference.py builds with torchvision, and the tests again without it."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

# Of the variant `testing`, whose number of heads is known.
SHAPE = {
    "image_size": 64,
    "patch_size": 16,
    "num_layers": 2,
    "num_heads": 2,
    "hidden_dim": 64,
    "mlp_dim": 128,
    "num_classes": 5,
}
RESIZED_PX = 96
CASES = {"plain": None, "pre_logits": 24}  # representation_size


def state(case: str) -> dict[str, Tensor]:
    """torchvision's names and shapes, drawn by name."""
    d, mlp, classes, pre = 64, 128, SHAPE["num_classes"], CASES[case]
    shapes: dict[str, tuple[int, ...]] = {
        "class_token": (1, 1, d),
        "conv_proj.weight": (d, 3, 16, 16),
        "conv_proj.bias": (d,),
        "encoder.pos_embedding": (1, 17, d),
    }
    for index in range(2):
        block = f"encoder.layers.encoder_layer_{index}"
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"{block}.{norm}.weight": (d,), f"{block}.{norm}.bias": (d,)}
        shapes |= {
            f"{block}.self_attention.in_proj_weight": (3 * d, d),
            f"{block}.self_attention.in_proj_bias": (3 * d,),
            f"{block}.self_attention.out_proj.weight": (d, d),
            f"{block}.self_attention.out_proj.bias": (d,),
            f"{block}.mlp.0.weight": (mlp, d),
            f"{block}.mlp.0.bias": (mlp,),
            f"{block}.mlp.3.weight": (d, mlp),
            f"{block}.mlp.3.bias": (d,),
        }
    shapes |= {"encoder.ln.weight": (d,), "encoder.ln.bias": (d,)}
    if pre:
        shapes |= {"heads.pre_logits.weight": (pre, d), "heads.pre_logits.bias": (pre,)}
    shapes |= {"heads.head.weight": (classes, pre or d), "heads.head.bias": (classes,)}
    return {name: _drawn(name, shape) for name, shape in shapes.items()}


def pixels(side_px: int) -> Tensor:
    """float64[2, 3, side, side]."""
    return _drawn("pixels", (2, 3, side_px, side_px)).double()


def _drawn(name: str, shape: tuple[int, ...]) -> Tensor:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    values = np.random.default_rng(seed).standard_normal(shape, np.float32)
    fan_in = int(np.prod(shape[1:])) if len(shape) in (2, 4) else 1
    return torch.from_numpy(values / np.float32(fan_in**0.5))
