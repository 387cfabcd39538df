"""T2T-ViT as its authors' code computes it, small, and its files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH, DEPTH, HEADS, MLP, DIM, CLASSES = 64, 1, 2, 128, 16, 10

Kind = Literal["transformer", "performer"]


def linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=bias)


class Tokens(nn.Module):
    """Token_transformer (models/token_transformer.py) or Token_performer (token_performer.py)."""

    def __init__(self, kind: Kind, inputs: int, dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(inputs), nn.LayerNorm(dim)
        self.scale, self.kind = inputs**-0.5, kind
        if kind == "transformer":
            made = {"qkv": linear(inputs, 3 * dim, bias=False), "proj": linear(dim, dim)}
            self.attn = nn.ModuleDict(made)
            self.mlp: nn.Module = nn.ModuleDict({"fc1": linear(dim, dim), "fc2": linear(dim, dim)})
        else:
            self.kqv, self.proj = linear(inputs, 3 * dim), linear(dim, dim)
            self.w = nn.Parameter(torch.empty(dim // 2, dim))
            self.mlp = nn.Sequential(linear(dim, dim), nn.GELU(), linear(dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "transformer":
            q, k, v = self.attn["qkv"](self.norm1(x)).chunk(3, dim=-1)
            weights = ((q * self.scale) @ k.transpose(1, 2)).softmax(dim=-1)
            x = v + self.attn["proj"](weights @ v)
            hidden = functional.gelu(self.mlp["fc1"](self.norm2(x)))  # type: ignore[index]
            return x + self.mlp["fc2"](hidden)  # type: ignore[index]
        k, q, v = self.kqv(self.norm1(x)).chunk(3, dim=-1)
        kp, qp = self.features(k), self.features(q)
        quotient = torch.einsum("bti,bi->bt", qp, kp.sum(dim=1))[..., None]
        mixed = torch.einsum("bti,bni->btn", qp, torch.einsum("bin,bim->bnm", v, kp))
        x = v + self.proj(mixed / (quotient + 1e-8))
        return x + self.mlp(self.norm2(x))

    def features(self, x: Tensor) -> Tensor:
        half = (x * x).sum(dim=-1, keepdim=True) / 2
        return torch.exp(torch.einsum("bti,mi->btm", x, self.w) - half) / math.sqrt(len(self.w))


class Split(nn.Module):
    """T2T_module of models/t2t_vit.py."""

    def __init__(self, kind: Kind, width: int, dim: int) -> None:
        super().__init__()
        self.attention1 = Tokens(kind, 3 * 7 * 7, dim)
        self.attention2 = Tokens(kind, 9 * dim, dim)
        self.project = linear(9 * dim, width)

    def forward(self, pixels: Tensor) -> Tensor:
        hw = (pixels.shape[2] // 4, pixels.shape[3] // 4)
        x = self.attention1(nn.Unfold(7, stride=4, padding=2)(pixels).transpose(1, 2))
        x = x.transpose(1, 2).unflatten(2, hw)
        x = self.attention2(nn.Unfold(3, stride=2, padding=1)(x).transpose(1, 2))
        x = x.transpose(1, 2).unflatten(2, (hw[0] // 2, hw[1] // 2))
        return self.project(nn.Unfold(3, stride=2, padding=1)(x).transpose(1, 2))  # type: ignore[no-any-return]


class Theirs(nn.Module):
    """T2T_ViT, with a sinusoid for positions as get_sinusoid_encoding makes it."""

    def __init__(
        self, kind: Kind, image_px: int = 64, width: int = WIDTH, depth: int = DEPTH,
        heads: int = HEADS, mlp: int = MLP, dim: int = DIM, classes: int = CLASSES,
    ) -> None:  # fmt: skip
        super().__init__()
        self.heads = heads
        self.tokens_to_token = Split(kind, width, dim)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + (image_px // 16) ** 2, width))
        self.blocks = nn.ModuleList(self.block(width, mlp) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), linear(width, classes)
        generator = torch.Generator().manual_seed(0)
        for name, parameter in self.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                values = 0.3 * values + name.endswith("weight")
            elif parameter.ndim == 2:
                gain = 0.3 if ".kqv." in name else 1.0
                values *= 1.0 if name.endswith(".w") else gain / parameter.shape[1] ** 0.5
            else:
                values *= 0.3
            parameter.data.copy_(values)
        self.pos_embed.data.copy_(sinusoids(*self.pos_embed.shape[1:]))

    @staticmethod
    def block(width: int, mlp: int) -> nn.ModuleDict:
        attn = nn.ModuleDict({"qkv": linear(width, 3 * width, False), "proj": linear(width, width)})
        fc = nn.ModuleDict({"fc1": linear(width, mlp), "fc2": linear(mlp, width)})
        norms = {name: nn.LayerNorm(width) for name in ("norm1", "norm2")}
        return nn.ModuleDict({**norms, "attn": attn, "mlp": fc})

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.tokens_to_token(pixels)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            attn, mlp = block["attn"], block["mlp"]  # type: ignore[index]
            heads = attn["qkv"](block["norm1"](x)).unflatten(-1, (3, self.heads, -1))  # type: ignore[index]
            mixed = functional.scaled_dot_product_attention(*heads.permute(2, 0, 3, 1, 4))
            x = x + attn["proj"](mixed.transpose(1, 2).flatten(2))
            x = x + mlp["fc2"](functional.gelu(mlp["fc1"](block["norm2"](x))))  # type: ignore[index]
        return self.head(self.norm(x)[:, 0])  # type: ignore[no-any-return]


def sinusoids(positions: int, width: int) -> Tensor:
    """[1, positions, width], the sine of each frequency beside its cosine."""
    frequency = 10000.0 ** (-2 * (torch.arange(width, dtype=torch.float64) // 2) / width)
    angle = torch.arange(positions, dtype=torch.float64)[:, None] * frequency
    angle[:, 1::2] += math.pi / 2
    return angle.sin().float()[None]


def saved(model: nn.Module, path: Path, heads: int | None = HEADS, prefix: str = "") -> Path:
    """Save a state_dict, and beside it the one number that it does not tell."""
    torch.save({prefix + name: tensor for name, tensor in model.state_dict().items()}, path)
    if heads is not None:
        config = {"model_args": {"num_heads": heads}}
        path.with_name("config.json").write_text(json.dumps(config), encoding="utf-8")
    return path
