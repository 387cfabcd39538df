"""The Vision Transformer of arXiv:2010.11929, as the paper writes it.

    z_0  = [x_class; x_p^1 E; ...; x_p^N E] + E_pos            Eq. 1
    z'_l = MSA(LN(z_{l-1})) + z_{l-1}                          Eq. 2
    z_l  = MLP(LN(z'_l)) + z'_l                                Eq. 3
    y    = LN(z_L^0)                                           Eq. 4

This is the reference that every backend is compared with, so it favours being obviously right:
one path, no dropout, exact (erf) GELU, attention written out. Weight matrices are stored
[in, out], as in y = x W + b; the loaders of vit_edge.checkpoints bring foreign layouts into it.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from vit_edge.bundle.architecture import Architecture
from vit_edge.models.layers import MLP, Linear
from vit_edge.models.merging import Tokens, merge
from vit_edge.models.t2t import TokensToToken


class Outputs(NamedTuple):
    """Everything the model computes, named as in the exported graph."""

    tokens: Tensor  # [N, prefix + patches, D], after the last LayerNorm
    features: Tensor  # [N, D], the class token of `tokens`, or what Architecture.pooling says;
    # [N, projection_dim] where a projection follows it (CLIP)
    pre_logits: Tensor  # [N, pre_logits_dim], tanh layer; without one the same as features
    logits: Tensor | None  # [N, classes]; None without a head
    reconstruction: Tensor | None  # [N, channels, H, W], the image again; None without a decoder


class SelfAttention(nn.Module):
    """Multi-head self-attention (Appendix A), with q, k and v from one fused matrix."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        width = architecture.width
        self.heads, self.head_dim = architecture.heads, architecture.head_dim
        self.qkv = Linear(width, 3 * width, bias=architecture.qkv_bias)
        self.out = Linear(width, width)
        self.q_norm = self.k_norm = None
        if architecture.qk_norm:
            eps = architecture.layer_norm_eps
            self.q_norm = nn.LayerNorm(architecture.head_dim, eps=eps)
            self.k_norm = nn.LayerNorm(architecture.head_dim, eps=eps)

    def forward(self, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """[N, tokens, D] -> the answer, and the keys, [N, heads, tokens, head_dim]."""
        q, k, v = (split_heads(t, self.heads) for t in self.qkv(x).chunk(3, dim=-1))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        scores = q @ k.transpose(-2, -1) / k.shape[-1] ** 0.5
        if sizes is not None:
            scores = scores + sizes.log().transpose(1, 2)[:, None]
        return self.out(merge_heads(scores.softmax(dim=-1) @ v)), k


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[N, tokens, D] -> [N, heads, tokens, D / heads]."""
    return x.reshape(*x.shape[:2], heads, x.shape[-1] // heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """[N, heads, tokens, D / heads] -> [N, tokens, D]."""
    return x.transpose(1, 2).flatten(2)


class Block(nn.Module):
    """One encoder block: Eq. 2 and 3, and between them the merging of tokens, if there is any."""

    def __init__(self, architecture: Architecture, merged: int = 0) -> None:
        super().__init__()
        eps = architecture.layer_norm_eps
        self.merged, self.prefix = merged, architecture.prefix_tokens
        self.norm1 = nn.LayerNorm(architecture.width, eps=eps)
        self.attention = SelfAttention(architecture)
        self.norm2 = nn.LayerNorm(architecture.width, eps=eps)
        self.mlp = MLP(architecture)

    def forward(self, tokens: Tokens) -> Tokens:
        answer, keys = self.attention(self.norm1(tokens.x), tokens.sizes)
        tokens = tokens._replace(x=tokens.x + answer)
        if self.merged:
            tokens = merge(tokens, keys.mean(dim=1), self.merged, self.prefix)
        return tokens._replace(x=tokens.x + self.mlp(self.norm2(tokens.x)))


class Embedding(nn.Module):
    """Patches projected to width D, the class token in front, positions added: Eq. 1.

    `cls_token` holds all that stands in front of the patches, [1, prefix, D]: a distillation token
    (arXiv:2012.12877) or registers (arXiv:2309.16588) follow the class token.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        width, patch_px = architecture.width, architecture.patch_px
        self.patch: nn.Module = (
            nn.Conv2d(architecture.channels, width, patch_px, stride=patch_px)
            if architecture.tokenizer == "patches"
            else TokensToToken(architecture)
        )
        prefix = architecture.prefix_tokens
        self.cls_token = nn.Parameter(torch.empty(1, prefix, width)) if prefix else None
        self.position = nn.Parameter(torch.empty(1, architecture.tokens, width))
        self.norm = None
        if architecture.norm_pre:
            self.norm = nn.LayerNorm(width, eps=architecture.layer_norm_eps)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch(pixels).flatten(2).transpose(1, 2)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        z: Tensor = x + self.position
        return z if self.norm is None else cast(Tensor, self.norm(z))


class CosineHead(nn.Module):
    """CLIP's zero-shot classifier (arXiv:2103.00020, Figure 3): one text embedding a class.

    logits = scale * cos(features, text); W is stored [in, classes], its columns of any length,
    and in float64 where the texts were computed so.
    """

    def __init__(self, inputs: int, classes: int, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, classes))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.scale * torch.matmul(unit(x, -1), unit(self.weight.to(x.dtype), 0))
        return y


def unit(x: Tensor, axis: int) -> Tensor:
    """Divide by the Euclidean length along an axis."""
    y: Tensor = x / torch.linalg.vector_norm(x, dim=axis, keepdim=True)
    return y


class Decoder(nn.Module):
    """Each patch's token becomes its pixels: the one layer of SimMIM (arXiv:2111.09886)."""

    def __init__(self, architecture: Architecture, stride: int) -> None:
        super().__init__()
        self.grid_hw, self.prefix = architecture.grid_hw, architecture.prefix_tokens
        self.square = (architecture.channels, stride, stride)  # what a token becomes
        channels, height, width = self.square
        self.pixels = Linear(architecture.width, channels * height * width)

    def forward(self, tokens: Tensor) -> Tensor:
        """[N, prefix + patches, D] -> [N, channels, grid height * stride, grid width * stride]."""
        patches: Tensor = self.pixels(tokens[:, self.prefix :])
        squares = patches.reshape(-1, *self.grid_hw, *self.square)
        rows = squares.permute(0, 3, 1, 4, 2, 5)  # channel, then y and x, each as patch and pixel
        return rows.flatten(4).flatten(2, 3)


class Readout(nn.Module):
    """From the tokens of the last block to everything the model answers: Eq. 4 and the head."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        width = architecture.features_dim
        # CLIP's, without a bias
        self.projection: Linear | None = None
        if architecture.projection_dim is not None:
            self.projection = Linear(architecture.pooled_dim, width, bias=False)
        self.norm: nn.Module = nn.Identity()
        if architecture.final_norm:
            self.norm = nn.LayerNorm(architecture.width, eps=architecture.layer_norm_eps)
        self.norm_after_pooling = architecture.norm_after_pooling
        self.pooling, self.prefix = architecture.pooling, architecture.prefix_tokens
        self.patches = architecture.patches
        # The original in21k checkpoints have a tanh layer here; Hugging Face calls it the pooler.
        self.pre_logits: Linear | None = None
        if architecture.pre_logits_dim is not None:
            self.pre_logits = Linear(width, architecture.pre_logits_dim)
            width = architecture.pre_logits_dim
        self.head: Linear | CosineHead | None = None
        if architecture.num_classes and architecture.logit_scale is not None:
            self.head = CosineHead(width, architecture.num_classes, architecture.logit_scale)
        elif architecture.num_classes:
            self.head = Linear(width, architecture.num_classes)
        self.decoder: Decoder | None = None
        if architecture.decoder_stride is not None:
            self.decoder = Decoder(architecture, architecture.decoder_stride)

    def forward(self, last: Tokens) -> Outputs:
        x, sizes = last
        if self.norm_after_pooling:
            tokens, features = x, self.norm(self.pool(x, sizes))
        else:
            tokens = self.norm(x)
            features = self.pool(tokens, sizes)
        if self.projection is not None:
            features = self.projection(features)
        pre_logits = features if self.pre_logits is None else self.pre_logits(features).tanh()
        logits = None if self.head is None else self.head(pre_logits)
        reconstruction = None if self.decoder is None else self.decoder(tokens)
        return Outputs(tokens, features, pre_logits, logits, reconstruction)

    def pool(self, tokens: Tensor, sizes: Tensor | None) -> Tensor:
        """[N, prefix + patches, D] -> [N, D], or [N, 2 D] of two tokens side by side."""
        if self.pooling == "class":
            return tokens[:, 0]
        if self.pooling == "class+distilled":
            return tokens[:, :2].flatten(1)
        patches = tokens[:, self.prefix :]
        if sizes is None:
            mean = patches.mean(dim=1)
        else:  # over the patches, however many of them a token stands for
            mean = (patches * sizes[:, self.prefix :]).sum(dim=1) / self.patches
        return mean if self.pooling == "mean" else torch.cat([tokens[:, 0], mean], dim=-1)


class ViT(nn.Module):
    """float32[N, channels, H, W] pixels -> Outputs. Parameters are uninitialised until loaded."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.embedding = Embedding(architecture)
        self.blocks = nn.ModuleList(Block(architecture, count) for count in architecture.merges)
        self.readout = Readout(architecture)

    def forward(self, pixels: Tensor) -> Outputs:
        tokens = Tokens(self.embedding(pixels))
        for block in self.blocks:
            tokens = block(tokens)
        outputs: Outputs = self.readout(tokens)
        return outputs


def parameter_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every parameter a ViT of this architecture has; allocates nothing."""
    with torch.device("meta"):
        model = ViT(architecture)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def with_merging(vit: ViT, counts: tuple[int, ...]) -> ViT:
    """The model on the same weights, with so many tokens merged in each block."""
    architecture = dataclasses.replace(vit.architecture, merged_tokens=counts)
    return vit_from_weights(architecture, dict(vit.state_dict()))


def vit_from_weights(architecture: Architecture, weights: dict[str, Tensor]) -> ViT:
    """Build the model around these tensors, without copying them.

    Args:
        architecture: The shape.
        weights: Exactly the names and shapes of `parameter_shapes`.

    Returns:
        The model, in eval mode, without gradients.
    """
    with torch.device("meta"):
        model = ViT(architecture)
    model.load_state_dict(weights, strict=True, assign=True)
    return model.eval().requires_grad_(False)
