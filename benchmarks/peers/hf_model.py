"""The folder's weights as a Hugging Face checkpoint, which transformers 4 and 5 read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import process
from process import Model

NAME = "hf"  # the checkpoint's folder inside the competitors' one


def checkpoint(folder: Path) -> Path:
    """Write it unless it is there: config.json, preprocessor_config.json, model.safetensors."""
    out = folder / NAME
    if (out / "model.safetensors").exists():
        return out
    from safetensors.numpy import load_file, save_file

    model = Model.read(folder)
    out.mkdir(exist_ok=True)
    config = {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "intermediate_size": model.mlp_dim,
        "patch_size": model.patch_px,
        "image_size": model.image_px,
        "layer_norm_eps": model.layer_norm_eps,
        "id2label": {str(index): f"class {index}" for index in range(model.num_classes)},
        "label2id": {f"class {index}": index for index in range(model.num_classes)},
        "torch_dtype": "float32",
    }
    size = {"height": model.image_px, "width": model.image_px}
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True, "do_rescale": True, "do_normalize": True,
        "size": size, "resample": 2, "rescale_factor": 1 / 255,
        "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    }  # fmt: skip
    (out / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (out / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    tensors: dict[str, Any] = {}
    for name, tensor in load_file(folder / process.WEIGHTS).items():
        tensors |= _theirs(name, tensor)
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    return out


def load(folder: Path) -> Any:
    """transformers' model in eval mode; it gives logits alone."""
    import torch
    from transformers import ViTForImageClassification

    whole: Any = ViTForImageClassification.from_pretrained(checkpoint(folder))

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.whole = whole

        def forward(self, pixels: torch.Tensor) -> Any:
            return self.whole(pixels).logits

    wrapper: Any = Logits()
    return wrapper.eval()


def _theirs(name: str, tensor: Any) -> dict[str, Any]:
    """One of our tensors as transformers has it: Linears transposed, qkv in three."""
    import numpy as np

    part, kind = name.rpartition(".")[::2]
    if part.endswith("attention.qkv"):
        block = _block(part)
        thirds = zip(("query", "key", "value"), np.split(tensor, 3, axis=-1), strict=True)
        return {
            f"{block}.attention.attention.{word}.{kind}": np.ascontiguousarray(third.T)
            for word, third in thirds
        }
    fixed = {
        "embedding.cls_token": "vit.embeddings.cls_token",
        "embedding.position": "vit.embeddings.position_embeddings",
        "embedding.patch.weight": "vit.embeddings.patch_embeddings.projection.weight",
        "embedding.patch.bias": "vit.embeddings.patch_embeddings.projection.bias",
    }
    if name in fixed:
        return {fixed[name]: tensor}
    ends = {
        "norm1": "layernorm_before", "norm2": "layernorm_after",
        "attention.out": "attention.output.dense",
        "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
    }  # fmt: skip
    whole = {"readout.norm": "vit.layernorm", "readout.head": "classifier"}
    theirs = whole.get(part) or f"{_block(part)}.{ends[part.split('.', 2)[2]]}"
    matrix = tensor.ndim == 2
    return {f"{theirs}.{kind}": np.ascontiguousarray(tensor.T) if matrix else tensor}


def _block(part: str) -> str:
    return f"vit.encoder.layer.{part.split('.')[1]}"
