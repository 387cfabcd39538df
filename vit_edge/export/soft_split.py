"""T2T-ViT's tokenizer as it is exported: windows by a convolution and by Gather, not by Unfold.

The first windows, of pixels, are a convolution with one group a channel, whose kernels pick a pixel
each. The later ones gather whole tokens, which are contiguous, and a row of zeros for the edge.
Of the forms that were tried on onnxruntime 1.31 (224 px, one thread of two busy cores, least of 30
and 10 interleaved runs):

    ms                                                batch 1    batch 8
    first   Conv of one group a channel                  1.0        8.3    chosen
            Conv of one group, windows token by token    1.8       16
            Gather of pixels                             1.5       12
            Slice and Concat of 4x4 blocks               0.9       10
    second  Gather of tokens                             0.3        2.6    chosen
            nine strided Slices and Concat               0.6        5.7
            Conv of one group a channel                  0.7        6.5
            Conv of one group, windows token by token    5.2       62
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from vit_edge.models.t2t import (
    EPSILON,
    FIRST,
    LATER,
    TokenLayer,
    TokensToToken,
    positive_features,
)

_LONGEST_SUM = 128  # columns that onnxruntime's SGEMM takes at a time


class ExportTokensToToken(nn.Module):
    """float32[N, channels, H, W] -> [N, tokens, D]."""

    def __init__(self, tokenizer: TokensToToken, *, fused: bool) -> None:
        super().__init__()
        side, self.stride = FIRST
        inputs = tokenizer.first.norm1.normalized_shape[0]
        self.channels = inputs // side**2
        picked = torch.eye(side**2).reshape(-1, 1, side, side).repeat(self.channels, 1, 1, 1)
        self.windows = nn.Parameter(picked, requires_grad=False)
        self.first = exportable(tokenizer.first, fused=fused)
        self.second = exportable(tokenizer.second, fused=fused)
        self.split1 = Gathered(tokenizer.hw(4))
        self.split2 = Gathered(tokenizer.hw(8))
        self.project = tokenizer.project

    def forward(self, pixels: Tensor) -> Tensor:
        x = functional.conv2d(
            pixels, self.windows, stride=self.stride, padding=2, groups=self.channels
        )
        x = self.first(x.flatten(2).transpose(1, 2))
        y: Tensor = self.project(self.split2(self.second(self.split1(x))))
        return y


class Gathered(nn.Module):
    """models.t2t.soft_split: [N, h * w, C] -> [N, h/2 * w/2, 9 * C]."""

    def __init__(self, hw: tuple[int, int]) -> None:
        super().__init__()
        side, stride = LATER
        (rows, columns), beyond = hw, hw[0] * hw[1]
        places = functional.pad(torch.arange(beyond).reshape(hw), (1, 1, 1, 1), value=beyond)
        windows = places.unfold(0, side, stride).unfold(1, side, stride)
        self.tokens = -(-rows // stride) * -(-columns // stride)
        self.register_buffer("places", windows.reshape(-1).clone(), persistent=False)
        self.places: Tensor

    def forward(self, x: Tensor) -> Tensor:
        windows = functional.pad(x, (0, 0, 0, 1)).index_select(1, self.places)
        return windows.reshape(x.shape[0], self.tokens, -1)


class ExportTokenLayer(TokenLayer):
    """The same weights, and another way to mix the values."""

    def __init__(self, layer: TokenLayer) -> None:
        nn.Module.__init__(self)
        self.norm1, self.norm2, self.mlp = layer.norm1, layer.norm2, layer.mlp
        self.qkv, self.kernel, self.out = layer.qkv, layer.kernel, layer.out
        self.scale = layer.scale


class FusedTokenLayer(ExportTokenLayer):
    """One Attention operator."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        y: Tensor = torch.onnx.ops.attention(
            q, k, v, q_num_heads=1, kv_num_heads=1, scale=self.scale
        )[0]
        return y


class PerformerTokenLayer(ExportTokenLayer):
    """models.t2t.attend_by_kernel, its sums over tokens in parts of at most 128.

    onnxruntime splits longer ones by how many threads there are for an image. Then an image's
    answer in a batch is another in the last bit, which INT8 rounds to another level.
    """

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        assert self.kernel is not None
        q, k = positive_features(q, self.kernel), positive_features(k, self.kernel)
        batch, tokens, features = k.shape
        part = max(size for size in range(1, _LONGEST_SUM + 1) if tokens % size == 0)
        counted = functional.pad(v, (0, 1), value=1.0)  # whose sum is that of the features
        width = counted.shape[-1]
        rows = k.reshape(batch, -1, part, features).transpose(2, 3)
        sums = rows @ counted.reshape(batch, -1, part, width)
        ones = torch.ones(1, 1, tokens // part, dtype=v.dtype)
        total = (ones @ sums.flatten(2)).reshape(batch, features, width)
        mixed: Tensor = q @ total
        return mixed[..., :-1] / (mixed[..., -1:] + EPSILON * features)


def exportable(layer: TokenLayer, *, fused: bool) -> TokenLayer:
    """Choose the form of a layer."""
    if layer.kernel is not None:
        return PerformerTokenLayer(layer)
    return FusedTokenLayer(layer) if fused else layer
