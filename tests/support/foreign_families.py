"""ViTs built of torch's own parts, as torchvision, open_clip and courses write them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.support.foreign_graphs import CLASSES, Shape, TimmViT


class _Tokens(nn.Module):
    """Patches of an image with a class token in front, and their positions."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, shape.width, shape.patch_px, shape.patch_px)
        self.class_token = nn.Parameter(torch.zeros(1, 1, shape.width))
        count = (shape.image_px // shape.patch_px) ** 2 + 1
        self.positions = nn.Parameter(torch.zeros(1, count, shape.width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).flatten(2).permute(0, 2, 1)
        return torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions


class TorchvisionBlock(nn.Module):
    """torchvision.models.vision_transformer.EncoderBlock."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(shape.width, eps=1e-6)
        self.self_attention = nn.MultiheadAttention(shape.width, shape.heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(shape.width, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(shape.width, shape.mlp_dim),
            nn.GELU(),
            nn.Dropout(0.0),
            nn.Linear(shape.mlp_dim, shape.width),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.ln_1(tokens)
        x, _ = self.self_attention(x, x, x, need_weights=False)
        x = x + tokens
        y: Tensor = x + self.mlp(self.ln_2(x))
        return y


class TorchvisionViT(nn.Module):
    """torchvision.models.VisionTransformer, with its structure and names."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embedding = _Tokens(shape)
        blocks = [(f"encoder_layer_{i}", TorchvisionBlock(shape)) for i in range(shape.depth)]
        self.encoder = nn.Module()
        self.encoder.layers = nn.Sequential(OrderedDict(blocks))
        self.encoder.ln = nn.LayerNorm(shape.width, eps=1e-6)
        self.heads = nn.Sequential(OrderedDict(head=nn.Linear(shape.width, CLASSES)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder.ln(self.encoder.layers(self.embedding(x)))
        return self.heads(x[:, 0])  # type: ignore[no-any-return]


class EncoderLayerViT(nn.Module):
    """A ViT of torch.nn.TransformerEncoderLayer, as courses write it."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embedding = _Tokens(shape)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                shape.width, shape.heads, shape.mlp_dim, activation="gelu", batch_first=True,
                norm_first=True,
            )
            for _ in range(shape.depth)
        )  # fmt: skip
        self.norm = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])  # type: ignore[no-any-return]


class _FunctionalBlocks(nn.Module):
    """Blocks whose weights are one module's parameters: all their Linears have one scope."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        square, up = (shape.width, shape.width), (shape.mlp_dim, shape.width)
        sizes = {"q": square, "k": square, "v": square, "out": square, "up": up, "down": up[::-1]}
        self.weights = nn.ParameterDict()
        for block in range(shape.depth):
            for name, size in sizes.items():
                self.weights[f"{name}{block}"] = torch.zeros(size)
                self.weights[f"{name}{block}_bias"] = torch.zeros(size[0])
            for norm in ("norm1", "norm2"):
                self.weights[f"{norm}{block}"] = torch.ones(shape.width)
                self.weights[f"{norm}{block}_bias"] = torch.zeros(shape.width)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return functional.linear(x, self.weights[name], self.weights[f"{name}_bias"])

    def normed(self, name: str, x: Tensor) -> Tensor:
        width = [self.shape.width]
        return functional.layer_norm(x, width, self.weights[name], self.weights[f"{name}_bias"])

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        for block in range(self.shape.depth):
            y = self.normed(f"norm1{block}", x)
            q, k, v = (
                self.linear(f"{name}{block}", y)
                .reshape(n, tokens, self.shape.heads, self.shape.head_dim)
                .transpose(1, 2)
                for name in "qkv"
            )
            y = functional.scaled_dot_product_attention(q, k, v)
            y = y.transpose(1, 2).reshape(n, tokens, width)
            x = x + self.linear(f"out{block}", y)
            y = functional.gelu(self.linear(f"up{block}", self.normed(f"norm2{block}", x)))
            x = x + self.linear(f"down{block}", y)
        return x


class FunctionalViT(nn.Module):
    """A ViT of functional.linear and functional.layer_norm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embedding = _Tokens(shape)
        self.trunk = _FunctionalBlocks(shape)
        self.norm = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.trunk(self.embedding(x)))[:, 0])  # type: ignore[no-any-return]


class OpenClipBlock(nn.Module):
    """open_clip.transformer.ResidualAttentionBlock."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(shape.width)
        self.attn = nn.MultiheadAttention(shape.width, shape.heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(shape.width)
        mlp = OrderedDict(
            c_fc=nn.Linear(shape.width, shape.mlp_dim),
            gelu=nn.GELU(),
            c_proj=nn.Linear(shape.mlp_dim, shape.width),
        )
        self.mlp = nn.Sequential(mlp)

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))  # type: ignore[no-any-return]


class OpenClipVisual(nn.Module):
    """open_clip's visual tower, pool_type "tok", and a linear probe behind its projection."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        tokens = (shape.image_px // shape.patch_px) ** 2 + 1
        self.conv1 = nn.Conv2d(3, shape.width, shape.patch_px, shape.patch_px, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(shape.width))
        self.positional_embedding = nn.Parameter(torch.zeros(tokens, shape.width))
        self.ln_pre = nn.LayerNorm(shape.width)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList(OpenClipBlock(shape) for _ in range(shape.depth))
        self.ln_post = nn.LayerNorm(shape.width)
        self.proj = nn.Parameter(torch.zeros(shape.width, 24))
        self.probe = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = x.reshape(x.shape[0], x.shape[1], -1).permute(0, 2, 1)
        first = self.class_embedding.view(1, 1, -1).expand(x.shape[0], -1, -1)
        x = self.ln_pre(torch.cat([first, x], dim=1) + self.positional_embedding)
        for block in self.transformer.resblocks:
            x = block(x)
        return self.probe(self.ln_post(x)[:, 0] @ self.proj)  # type: ignore[no-any-return]


class SharedViT(nn.Module):
    """One block, applied as often as the shape is deep: its weights and scopes are shared."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.depth = shape.depth
        self.embedding = _Tokens(shape)
        self.block = TorchvisionBlock(shape)
        self.norm = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x)
        for _ in range(self.depth):
            x = self.block(x)
        return self.head(self.norm(x)[:, 0])  # type: ignore[no-any-return]


FAMILIES: dict[str, Callable[[Shape], nn.Module]] = {
    "timm": TimmViT,
    "torchvision": TorchvisionViT,
    "encoderlayer": EncoderLayerViT,
    "functional": FunctionalViT,
    "openclip": OpenClipVisual,
    "shared": SharedViT,
}


@contextmanager
def without_fast_path() -> Iterator[None]:
    """Let torch.nn.TransformerEncoderLayer run operators that exporters know."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
