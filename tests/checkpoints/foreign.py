"""Small checkpoints in every foreign form, written from one set of our own weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from vit_edge.bundle.architecture import Architecture
from vit_edge.checkpoints import Checkpoint
from vit_edge.models.vit import parameter_shapes, vit_from_weights

SMALL = Architecture(
    width=32,
    depth=2,
    heads=2,
    mlp_dim=64,
    patch_px=8,
    image_hw=(32, 32),
    num_classes=5,
    layer_norm_eps=1e-6,
)
HEADLESS = replace(SMALL, num_classes=0, pre_logits_dim=32)


def weights_of(architecture: Architecture, seed: int = 0) -> dict[str, Tensor]:
    """Random weights in our names; any value will do."""
    generator = torch.Generator().manual_seed(seed)
    shapes = parameter_shapes(architecture)
    return {
        name: torch.randn(shape, generator=generator) / max(shape) ** 0.5
        for name, shape in shapes.items()
    }


def logits_of(checkpoint: Checkpoint, pixels: Tensor) -> Tensor:
    """Run a loaded checkpoint in the dtype of the pixels."""
    model = vit_from_weights(checkpoint.architecture, dict(checkpoint.weights)).to(pixels.dtype)
    logits = model(pixels).logits
    assert logits is not None
    return logits


def assert_close(found: Tensor, expected: Tensor, relative: float) -> None:
    """Every difference is at most `relative` of the largest expected value."""
    difference = (found - expected).abs().max().item()
    limit = relative * expected.abs().max().item()
    assert difference <= limit, f"max |difference| is {difference:.3g}, allowed {limit:.3g}"


def assert_same_weights(checkpoint: Checkpoint, weights: dict[str, Tensor]) -> None:
    assert checkpoint.weights.keys() == weights.keys()
    for name, tensor in weights.items():
        assert torch.equal(checkpoint.weights[name], tensor), name


def hf_tensors(weights: dict[str, Tensor], prefix: str = "vit.") -> dict[str, Tensor]:
    """Transformers' names on disk."""
    blocks = {
        "attention.qkv": "",
        "attention.out": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
    }
    outer = {
        "embedding.cls_token": f"{prefix}embeddings.cls_token",
        "embedding.position": f"{prefix}embeddings.position_embeddings",
        "embedding.patch": f"{prefix}embeddings.patch_embeddings.projection",
        "readout.norm": f"{prefix}layernorm",
        "readout.pre_logits": f"{prefix}pooler.dense",
        "readout.head": "classifier",
    }
    found = {}
    for name, tensor in weights.items():
        value = as_torch(name, tensor)
        if name in outer:
            found[outer[name]] = value
            continue
        module, leaf = name.rsplit(".", 1)
        if module in outer:
            found[f"{outer[module]}.{leaf}"] = value
            continue
        _, index, inner = module.split(".", 2)
        block = f"{prefix}encoder.layer.{index}"
        if inner == "attention.qkv":
            for part, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
                found[f"{block}.attention.attention.{part}.{leaf}"] = third
        else:
            found[f"{block}.{blocks[inner]}.{leaf}"] = value
    return {name: tensor.contiguous().clone() for name, tensor in found.items()}


def timm_tensors(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's names."""
    renamed = (
        ("embedding.cls_token", "cls_token"),
        ("embedding.position", "pos_embed"),
        ("embedding.patch", "patch_embed.proj"),
        ("attention.qkv", "attn.qkv"),
        ("attention.out", "attn.proj"),
        ("readout.norm", "norm"),
        ("readout.pre_logits", "pre_logits.fc"),
        ("readout.head", "head"),
    )
    found = {}
    for name, tensor in weights.items():
        theirs = name
        for ours, foreign in renamed:
            theirs = theirs.replace(ours, foreign)
        found[theirs] = as_torch(name, tensor).contiguous().clone()
    return found


def jax_arrays(weights: dict[str, Tensor], heads: int) -> dict[str, np.ndarray[Any, Any]]:
    """The names and layouts of google-research/vision_transformer."""
    outer = {
        "embedding.cls_token": "cls",
        "embedding.position": "Transformer/posembed_input/pos_embedding",
        "embedding.patch.weight": "embedding/kernel",
        "embedding.patch.bias": "embedding/bias",
        "readout.norm": "Transformer/encoder_norm",
        "readout.pre_logits": "pre_logits",
        "readout.head": "head",
        "norm1": "LayerNorm_0",
        "norm2": "LayerNorm_2",
        "mlp.fc1": "MlpBlock_3/Dense_0",
        "mlp.fc2": "MlpBlock_3/Dense_1",
    }
    attention = "MultiHeadDotProductAttention_1"
    found = {}
    for name, tensor in weights.items():
        value = tensor.numpy()
        if name in outer:
            is_kernel = name == "embedding.patch.weight"
            found[outer[name]] = value.transpose(2, 3, 1, 0) if is_kernel else value
            continue
        module, leaf = name.rsplit(".", 1)
        leaf = {"weight": "scale" if "norm" in module else "kernel"}.get(leaf, leaf)
        if module in outer:
            found[f"{outer[module]}/{leaf}"] = value
            continue
        _, index, inner = module.split(".", 2)
        block = f"Transformer/encoderblock_{index}"
        if inner == "attention.qkv":
            for part, third in zip(
                ("query", "key", "value"), np.split(value, 3, axis=-1), strict=True
            ):
                split = third.reshape(*third.shape[:-1], heads, -1)
                found[f"{block}/{attention}/{part}/{leaf}"] = split
        elif inner == "attention.out":
            split = value.reshape(heads, -1, value.shape[-1]) if leaf == "kernel" else value
            found[f"{block}/{attention}/out/{leaf}"] = split
        else:
            found[f"{block}/{outer[inner]}/{leaf}"] = value
    return found


def as_torch(name: str, tensor: Tensor) -> Tensor:
    """Our [in, out] to torch's [out, in]."""
    return tensor.t() if tensor.ndim == 2 and name.endswith("weight") else tensor


def hf_config(a: Architecture, **changes: Any) -> dict[str, Any]:
    """config.json of transformers; a change of None removes the field."""
    config = {
        "architectures": ["ViTForImageClassification" if a.num_classes else "ViTModel"],
        "model_type": "vit",
        "hidden_act": "gelu",
        "hidden_size": a.width,
        "num_hidden_layers": a.depth,
        "num_attention_heads": a.heads,
        "intermediate_size": a.mlp_dim,
        "patch_size": a.patch_px,
        "image_size": list(a.image_hw),
        "num_channels": 3,
        "layer_norm_eps": a.layer_norm_eps,
        "qkv_bias": a.qkv_bias,
        "id2label": {str(i): f"kind {i}" for i in range(a.num_classes)} or None,
        **changes,
    }
    return {name: value for name, value in config.items() if value is not None}


def hf_processor(a: Architecture, **changes: Any) -> dict[str, Any]:
    """preprocessor_config.json of transformers."""
    height, width = a.image_hw
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        **changes,
    }
    return {name: value for name, value in processor.items() if value is not None}


def timm_config(a: Architecture, **changes: Any) -> dict[str, Any]:
    """config.json of timm; changes go to pretrained_cfg."""
    return {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": a.num_classes,
        "global_pool": "token",
        "model_args": {"num_heads": a.heads, "img_size": list(a.image_hw)},
        "pretrained_cfg": {
            "input_size": [3, *a.image_hw],
            "interpolation": "bicubic",
            "crop_pct": 0.9,
            "crop_mode": "center",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "num_classes": a.num_classes,
            **changes,
        },
    }


def write_hf(folder: Path, a: Architecture, weights: dict[str, Tensor]) -> Path:
    """A Hugging Face directory."""
    folder.mkdir(parents=True, exist_ok=True)
    prefix = "vit." if a.num_classes else ""
    save_file(hf_tensors(weights, prefix), folder / "model.safetensors")
    write_json(folder / "config.json", hf_config(a))
    write_json(folder / "preprocessor_config.json", hf_processor(a))
    return folder


def write_timm(folder: Path, a: Architecture, weights: dict[str, Tensor]) -> Path:
    """A timm directory."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(timm_tensors(weights), folder / "model.safetensors")
    write_json(folder / "config.json", timm_config(a))
    return folder


def write_jax(path: Path, a: Architecture, weights: dict[str, Tensor]) -> Path:
    """A .npz file."""
    np.savez(path, **jax_arrays(weights, a.heads))
    return path


def write_json(path: Path, data: object) -> None:
    path.write_text(json.dumps(data), encoding="utf-8")
