"""ViTs as other exporters write them: transformers' own, and one built like timm's."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 7


class Shape(NamedTuple):
    """Of a tiny ViT."""

    heads: int = 2
    head_dim: int = 16
    depth: int = 2
    mlp_dim: int = 48
    patch_px: int = 8
    image_px: int = 32
    qkv_bias: bool = True

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


class TimmAttention(nn.Module):
    """timm.layers.Attention 1.0: [3, heads, head_dim] fused, unbound, fused or plain product."""

    def __init__(self, shape: Shape, *, fused: bool, order: str) -> None:
        super().__init__()
        self.heads, self.fused, self.order = shape.heads, fused, order
        self.qkv = nn.Linear(shape.width, 3 * shape.width, bias=shape.qkv_bias)
        self.proj = nn.Linear(shape.width, shape.width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        if self.order == "3hd":
            qkv = self.qkv(x).reshape(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        else:  # "h3d": not timm's, but others'
            qkv = self.qkv(x).reshape(n, tokens, self.heads, 3, -1).permute(3, 0, 2, 1, 4)
        q, k, v = qkv.unbind(0)
        if self.fused:
            x = functional.scaled_dot_product_attention(q, k, v)
        else:
            x = (q * (width // self.heads) ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        return self.proj(x.transpose(1, 2).reshape(n, tokens, width))  # type: ignore[no-any-return]


class TimmBlock(nn.Module):
    """timm.models.vision_transformer.Block, with layer scale where it is asked for."""

    def __init__(self, shape: Shape, *, fused: bool, order: str, layer_scale: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(shape.width, eps=1e-6)
        self.attn = TimmAttention(shape, fused=fused, order=order)
        self.norm2 = nn.LayerNorm(shape.width, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(shape.width, shape.mlp_dim),
            nn.GELU(),
            nn.Linear(shape.mlp_dim, shape.width),
        )
        scales = torch.ones(2, shape.width)
        self.gamma = nn.Parameter(scales) if layer_scale else None

    def forward(self, x: Tensor) -> Tensor:
        one, two = (1.0, 1.0) if self.gamma is None else self.gamma.unbind(0)
        x = x + one * self.attn(self.norm1(x))
        y: Tensor = x + two * self.mlp(self.norm2(x))
        return y


class TimmViT(nn.Module):
    """timm's VisionTransformer, global_pool "token" or "avg", with its structure and names."""

    def __init__(
        self,
        shape: Shape,
        *,
        fused: bool = True,
        order: str = "3hd",
        layer_scale: bool = False,
        pool: str = "token",
    ) -> None:
        super().__init__()
        tokens = (shape.image_px // shape.patch_px) ** 2 + 1
        self.pool = pool
        self.patch_embed = nn.Conv2d(3, shape.width, shape.patch_px, shape.patch_px)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, shape.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, shape.width))
        self.blocks = nn.Sequential(
            *(
                TimmBlock(shape, fused=fused, order=order, layer_scale=layer_scale)
                for _ in range(shape.depth)
            )
        )
        self.norm = nn.LayerNorm(shape.width, eps=1e-6)
        self.head = nn.Linear(shape.width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        x = self.norm(self.blocks(x))
        return self.head(x[:, 0] if self.pool == "token" else x[:, 1:].mean(dim=1))  # type: ignore[no-any-return]


def hf_vit(shape: Shape, attention: str = "sdpa") -> nn.Module:
    """transformers' ViTForImageClassification."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=shape.width,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads,
        intermediate_size=shape.mlp_dim,
        image_size=shape.image_px,
        patch_size=shape.patch_px,
        qkv_bias=shape.qkv_bias,
        num_labels=CLASSES,  # type: ignore[call-arg]  # of its parent class
        attn_implementation=attention,
    )
    model: nn.Module = ViTForImageClassification(config)
    return model


def with_random_weights(
    model: nn.Module, seed: int = 0, *, spare_biases: bool = False
) -> nn.Module:
    """Weights that matter everywhere; equal biases stay equal if they are spared."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if spare_biases and name.endswith("bias"):
            continue
        noise = torch.randn(parameter.shape, generator=generator)
        scale = 0.3 if parameter.ndim < 2 else parameter.shape[-1] ** -0.5
        parameter.data.add_(noise * scale)
    return model.eval()


def export(model: nn.Module, path: Path, exporter: str, opset: int, **changes: Any) -> Path:
    """torch.onnx.export as people call it, of a model that takes one image tensor."""
    pixels = torch.zeros(changes.pop("batch", 2), 3, 32, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own deprecations, and the tracer's
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        if exporter == "torchscript":
            axes = {"pixels": {0: "batch"}, "scores": {0: "batch"}}
            torch.onnx.export(
                model, (pixels,), path, dynamo=False, opset_version=opset,
                input_names=["pixels"], output_names=["scores"], dynamic_axes=axes, **changes,
            )  # fmt: skip
        else:
            torch.onnx.export(
                model, (pixels,), path, dynamo=True, opset_version=opset, verbose=False,
                dynamic_shapes=({0: torch.export.Dim("batch")},), external_data=False, **changes,
            )  # fmt: skip
    return path
