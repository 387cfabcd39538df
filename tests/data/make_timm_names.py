"""Write timm_names.json: what timm's architectures are beyond what their tensors show.

Run where timm is installed:  python -m tests.data.make_timm_names
"""

from __future__ import annotations

import json
from pathlib import Path

import timm
import torch
from timm.models import _registry
from timm.models.vision_transformer import Attention, Block
from torch import nn

ACTIVATIONS = {"QuickGELU": "quick_gelu", "GELUTanh": "gelu_tanh", "GELU": "gelu"}


def described(architecture: str) -> list[object] | None:
    """Width, heads, epsilon, activation and last LayerNorm; None if it is no plain ViT."""
    with torch.device("meta"):
        model = timm.create_model(architecture, pretrained=False)
    block = model.blocks[0]
    if type(block) is not Block or type(block.attn) is not Attention:
        return None
    if not isinstance(block.norm1, nn.LayerNorm) or isinstance(block.attn.norm, nn.LayerNorm):
        return None
    if type(getattr(block.mlp, "act", None)).__name__ not in ACTIVATIONS:
        return None
    final = any(isinstance(norm, nn.LayerNorm) for norm in (model.norm, model.fc_norm))
    activation = ACTIVATIONS[type(block.mlp.act).__name__]
    return [model.embed_dim, block.attn.num_heads, block.norm1.eps, activation, final]


def main() -> None:
    tags = timm.list_pretrained()
    names = sorted({timm.models.get_arch_name(tag) for tag in tags})
    modules = _registry._model_to_module
    names = [name for name in names if modules[name] in ("vision_transformer", "deit")]
    found = {name: facts for name in names if (facts := described(name))}
    lines = ",\n".join(
        f"  {json.dumps(name)}: {json.dumps(facts)}" for name, facts in found.items()
    )
    text = f'{{\n"timm": {json.dumps(timm.__version__)},\n"architectures": {{\n{lines}\n}}\n}}\n'
    Path(__file__).with_name("timm_names.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
