"""The tokenizer of T2T-ViT, arXiv:2101.11986, section 3.1: it stands where a ViT embeds patches.

    T'_i    = MLP(MSA(T_i))                                    Eq. 1
    I_i     = Reshape(T'_i)                                    Eq. 2
    T_{i+1} = SS(I_i), i = 1, 2                                Eq. 4
    T_1     = SS(image), and T_3 E are the tokens of the encoder

SS, the soft split, cuts overlapping windows; each becomes one token. As in the authors' code,
github.com/yitu-opensource/T2T-ViT: one head, values instead of tokens on the way past the
attention, its scale by the channels that enter, and on request Performer (arXiv:2009.14794) as MSA.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional

from vit_edge.bundle.architecture import Architecture
from vit_edge.models.layers import MLP, Linear

FIRST, LATER = (7, 4), (3, 2)  # side and stride of the windows, in pixels and in tokens
EPSILON = 1e-8  # of Performer's quotient


class TokenLayer(nn.Module):
    """Eq. 1, from `inputs` channels to `token_dim`."""

    def __init__(self, inputs: int, architecture: Architecture) -> None:
        super().__init__()
        dim, eps = architecture.token_dim, architecture.layer_norm_eps
        performer = architecture.tokenizer == "t2t-performer"
        self.scale = inputs**-0.5
        self.norm1 = nn.LayerNorm(inputs, eps=eps)
        self.qkv = Linear(inputs, 3 * dim, bias=performer)
        # Performer's random features w. Three axes: it is no Linear, and never quantized as one.
        self.kernel = nn.Parameter(torch.empty(1, dim, dim // 2)) if performer else None
        self.out = Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = MLP(dataclasses.replace(architecture, width=dim, mlp_dim=dim))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        x = v + self.out(self.attend(q, k, v))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Mix the values: with softmax, or with the kernel that stands for it."""
        if self.kernel is not None:
            return attend_by_kernel(q, k, v, self.kernel)
        mixed: Tensor = ((q * self.scale) @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        return mixed


def attend_by_kernel(q: Tensor, k: Tensor, v: Tensor, w: Tensor) -> Tensor:
    """phi(q) (phi(k)^T v) / (phi(q) sum phi(k) + epsilon): linear in the tokens (FAVOR+)."""
    q, k = positive_features(q, w), positive_features(k, w)
    total = q @ k.sum(dim=1, keepdim=True).transpose(1, 2)
    return q @ (k.transpose(1, 2) @ v) / (total + EPSILON * w.shape[-1])


def positive_features(x: Tensor, w: Tensor) -> Tensor:
    """sqrt(m) phi(x) = exp(x w - |x|^2 / 2): [N, tokens, dim] -> [N, tokens, m].

    The factor cancels but for the epsilon, which has it squared: torch.onnx drops 1e-8 as zero.
    """
    return torch.exp(x @ w - (x * x).sum(dim=-1, keepdim=True) / 2)


class TokensToToken(nn.Module):
    """float32[N, channels, H, W] -> [N, D, H / 16, W / 16], as a convolution of patches would."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a, (first, _), (later, _) = architecture, FIRST, LATER
        self.image_hw = a.image_hw
        self.first = TokenLayer(a.channels * first**2, a)
        self.second = TokenLayer(a.token_dim * later**2, a)
        self.project = Linear(a.token_dim * later**2, a.width)

    def forward(self, pixels: Tensor) -> Tensor:
        x = functional.unfold(pixels, FIRST[0], padding=2, stride=FIRST[1]).transpose(1, 2)
        x = soft_split(self.first(x), self.hw(4))
        x = soft_split(self.second(x), self.hw(8))
        return image_of(self.project(x), self.hw(16))

    def hw(self, px: int) -> tuple[int, int]:
        """Tokens down and across, where one stands for so many pixels a side."""
        return self.image_hw[0] // px, self.image_hw[1] // px


def soft_split(tokens: Tensor, hw: tuple[int, int]) -> Tensor:
    """[N, h * w, C] -> [N, h/2 * w/2, 9 * C]: nine tokens side by side, zeros beyond the edge."""
    side, stride = LATER
    windows = functional.unfold(image_of(tokens, hw), side, padding=1, stride=stride)
    by_channel = windows.reshape(len(tokens), tokens.shape[-1], side**2, -1)
    return by_channel.permute(0, 3, 2, 1).flatten(2)


def image_of(tokens: Tensor, hw: tuple[int, int]) -> Tensor:
    """[N, h * w, C] -> [N, C, h, w], Eq. 2."""
    return tokens.transpose(1, 2).reshape(len(tokens), -1, *hw)
