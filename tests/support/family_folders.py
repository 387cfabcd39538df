"""timm's folders with every part of the family; their answers depend on the image."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from vit_edge.bundle.architecture import Architecture
from vit_edge.checkpoints.draw import drawn_tensors
from vit_edge.variants import variant

TESTING = variant("testing").architecture

# Parts beside the plain ViT, and what timm calls them in model_args.
PARTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "registers": ({"prefix_tokens": 5}, {"reg_tokens": 4}),
    "mean": ({"pooling": "mean", "prefix_tokens": 0}, {"class_token": False}),
    "mean, normalised": ({"pooling": "mean", "norm_after_pooling": True}, {"fc_norm": True}),
    "distilled": ({"pooling": "class+distilled", "prefix_tokens": 2}, {}),
    "clip": ({"norm_pre": True, "activation": "quick_gelu"}, {"act_layer": "quick_gelu"}),
    "qk_norm": ({"qk_norm": True}, {"qk_norm": True}),
    "siglip": ({"activation": "gelu_tanh", "final_norm": False}, {"act_layer": "gelu_tanh"}),
    "dinov2": ({"pooling": "class+mean", "prefix_tokens": 5}, {"reg_tokens": 4}),
    "layer scale": ({}, {"init_values": 0.1}),
    "zeros": ({}, {}),  # no part: biases of zeros, of which torch.onnx keeps one
}
_NAMES = (
    ("embedding.patch", "patch_embed.proj"), ("embedding.position", "pos_embed"),
    ("embedding.norm", "norm_pre"), ("attention.qkv", "attn.qkv"), ("attention.out", "attn.proj"),
    ("attention.q_norm", "attn.q_norm"), ("attention.k_norm", "attn.k_norm"),
    ("readout.head", "head"), ("readout.norm", "norm"),
)  # fmt: skip


def architecture_of(parts: str) -> Architecture:
    """The testing variant with these parts."""
    return dataclasses.replace(TESTING, **PARTS[parts][0])


def write_family(folder: Path, parts: str) -> str:
    """Write a folder of timm's; "dinov2" is a file as torch.hub's classifier saves itself.

    Returns:
        SOURCE of the export.
    """
    a = architecture_of(parts)
    state = _timm_state(a, parts)
    folder.mkdir(parents=True, exist_ok=True)
    if parts == "dinov2":
        torch.save(state, folder / "x.pth")
        return f"timm:{folder / 'x.pth'}"
    save_file(state, folder / "model.safetensors")
    arguments = {"num_heads": a.heads, "img_size": list(a.image_hw), **PARTS[parts][1]}
    if not a.final_norm:
        arguments["final_norm"] = False
    if a.norm_pre:
        arguments["pre_norm"] = True
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": a.num_classes,
        "global_pool": "avg" if a.pooling == "mean" else "token",
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [3, *a.image_hw], "interpolation": "bicubic", "crop_pct": 0.9,
            "mean": [0.5] * 3, "std": [0.5] * 3, "num_classes": a.num_classes,
        },
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return f"timm:{folder}"


def _timm_state(a: Architecture, parts: str) -> dict[str, Tensor]:
    """The drawn weights under timm's names; layer scale is taken out of the Linear before it."""
    state: dict[str, Tensor] = {}
    for name, lazy in drawn_tensors(a, 0).items():
        tensor, theirs = lazy.read(), name
        for ours, foreign in _NAMES:
            theirs = theirs.replace(ours, foreign)
        linear = tensor.ndim == 2 and name.endswith("weight")
        state[theirs] = (tensor.t() if linear else tensor).contiguous().clone()
    prefix = state.pop("embedding.cls_token", None)
    if a.norm_after_pooling:
        state |= {f"fc_norm.{leaf}": state.pop(f"norm.{leaf}") for leaf in ("weight", "bias")}
    if a.norm_pre:
        state["patch_embed.proj.bias"].zero_()
    if prefix is not None:
        state["cls_token"] = prefix[:, :1].clone()
        names = {"distilled": "dist_token", "dinov2": "register_tokens"}
        if a.prefix_tokens > 1:
            state[names.get(parts, "reg_token")] = prefix[:, 1:].clone()
    if parts == "distilled":  # whose mean is the one head that was drawn
        width, both = a.width, state.pop("head.weight")
        state |= {"head.weight": 2 * both[:, :width], "head_dist.weight": 2 * both[:, width:]}
        state["head_dist.bias"] = state["head.bias"].clone()
    if parts in ("layer scale", "dinov2"):
        for block in range(a.depth):
            for scale, linear in (("ls1", "attn.proj"), ("ls2", "mlp.fc2")):
                gamma = torch.linspace(0.5, 2, a.width)
                state[f"blocks.{block}.{scale}.gamma"] = gamma
                state[f"blocks.{block}.{linear}.weight"] /= gamma[:, None]
                state[f"blocks.{block}.{linear}.bias"] /= gamma
    if parts == "dinov2":
        state["pos_embed"] = torch.cat([state["pos_embed"][:, :1], state["pos_embed"][:, 5:]], 1)
        head = {f"linear_head.{leaf}": state.pop(f"head.{leaf}") for leaf in ("weight", "bias")}
        state = {f"backbone.{name}": tensor for name, tensor in state.items()} | head
    if parts == "zeros":
        state |= {n: torch.zeros_like(t) for n, t in state.items() if n.endswith(".bias")}
    return {name: tensor.contiguous() for name, tensor in state.items()}
