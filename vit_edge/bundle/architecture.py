"""The shape of a Vision Transformer, and of its relatives."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from vit_edge.strict import unmet

# Of a side in pixels, a width, a depth, ...: ViT-22B's MLP has 24,576 (arXiv:2302.05442).
LARGEST_SIZE = 2**16
IN_RANGE = f"must lie in 1..{LARGEST_SIZE}"

# Exact, with tanh for erf (SigLIP), or x * sigmoid(1.702 x) (CLIP).
Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]
# The tokens that become `features`: one, the mean over the patches, or two side by side.
Pooling = Literal["class", "mean", "class+mean", "class+distilled"]
# A convolution, or the overlapping windows of T2T-ViT with one of its two kinds of attention.
Tokenizer = Literal["patches", "t2t", "t2t-performer"]
T2T_PATCH_PX = 16  # its windows lie 4 px apart, then 2 tokens, then 2
_LEAST_PREFIX = {"class": 1, "mean": 0, "class+mean": 1, "class+distilled": 2}
_LARGEST_PREFIX = 64  # 16 registers are the most that were published
LARGEST_SCALE = 1e6  # CLIP clips its own to 100; the answers of anything near are one class or none

# What bundles of 0.1.0, without these fields, mean by that.
ADDED_IN_0_2 = {
    "prefix_tokens": 1,
    "pooling": "class",
    "norm_after_pooling": False,
    "norm_pre": False,
    "qk_norm": False,
    "activation": "gelu",
    "projection_dim": None,
    "logit_scale": None,
    "final_norm": True,
    "decoder_stride": None,
    "tokenizer": "patches",
    "token_dim": 64,
    "merged_tokens": [],
}


@dataclass(frozen=True)
class Architecture:
    """The shape of a Vision Transformer (arXiv:2010.11929, Table 1)."""

    width: int  # D, the hidden size
    depth: int  # L, the number of blocks
    heads: int
    mlp_dim: int
    patch_px: int
    image_hw: tuple[int, int]  # height, width in pixels
    num_classes: int  # 0: no head
    channels: int = 3
    qkv_bias: bool = True
    layer_norm_eps: float = 1e-6
    pre_logits_dim: int | None = None  # width of the tanh layer before the head, if there is one
    prefix_tokens: int = 1  # in front of the patches: class token, distillation token, registers
    pooling: Pooling = "class"
    norm_after_pooling: bool = False  # timm's fc_norm: the last LayerNorm sees the pooled token
    norm_pre: bool = False  # a LayerNorm before the first block (CLIP)
    qk_norm: bool = False  # a LayerNorm on each head's queries and keys (arXiv:2302.05442)
    activation: Activation = "gelu"
    projection_dim: int | None = None  # CLIP: of a matrix behind the pooling, without a bias
    logit_scale: float | None = None  # of a head that compares directions (CLIP); None: a Linear
    final_norm: bool = True  # the last LayerNorm; InternViT has none
    decoder_stride: int | None = None  # pixels a side that a decoder makes of a patch (SimMIM)
    tokenizer: Tokenizer = "patches"  # what makes tokens of pixels
    token_dim: int = 64  # channels between the layers of T2T-ViT's tokenizer
    merged_tokens: tuple[int, ...] = ()  # patches that each block merges (ToMe); empty: none does

    @property
    def grid_hw(self) -> tuple[int, int]:
        """Whole patches down and across; what is left at the lower and right edge is not seen."""
        return self.image_hw[0] // self.patch_px, self.image_hw[1] // self.patch_px

    @property
    def patches(self) -> int:
        """Patches of an image."""
        return self.grid_hw[0] * self.grid_hw[1]

    @property
    def tokens(self) -> int:
        """Patches and what stands in front of them."""
        return self.patches + self.prefix_tokens

    @property
    def merges(self) -> tuple[int, ...]:
        """Patches that each block merges, also where none does."""
        return self.merged_tokens or (0,) * self.depth

    @property
    def block_tokens(self) -> tuple[int, ...]:
        """Tokens that enter each block, and those that leave the last."""
        return tuple(accumulate(self.merges, operator.sub, initial=self.tokens))

    @property
    def pooled_dim(self) -> int:
        """Channels behind the pooling: twice the width where two tokens are set side by side."""
        return self.width * (1 + ("+" in self.pooling))

    @property
    def features_dim(self) -> int:
        """Channels of `features`."""
        return self.projection_dim or self.pooled_dim

    @property
    def reconstructed_hw(self) -> tuple[int, int]:
        """Height and width of what the decoder makes: the image's, where its stride is a patch."""
        stride = self.decoder_stride or 0
        return self.grid_hw[0] * stride, self.grid_hw[1] * stride

    @property
    def class_token_alone(self) -> bool:
        """Whether the last block can work for the class token alone, exactly."""
        return self.pooling == "class" and not self.qk_norm

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.width // self.heads

    def problems(self) -> list[str]:
        """Everything that makes these numbers no ViT; empty if nothing does."""
        sizes = ("width", "depth", "heads", "mlp_dim", "patch_px", "channels", "token_dim")
        in_range = {name: 1 <= getattr(self, name) <= LARGEST_SIZE for name in sizes}
        if not all(in_range.values()):
            return unmet(self, **{name: (ok, IN_RANGE) for name, ok in in_range.items()})
        dim, least = self.pre_logits_dim, _LEAST_PREFIX[self.pooling]
        projected, scale = self.projection_dim, self.logit_scale
        stride = self.decoder_stride
        problems = unmet(
            self,
            prefix_tokens=(
                least <= self.prefix_tokens <= _LARGEST_PREFIX,
                f"must lie between {least} and {_LARGEST_PREFIX} where pooling is {self.pooling!r}",
            ),
            num_classes=(self.num_classes >= 0, "must not be negative"),
            pre_logits_dim=(dim is None or dim > 0, "must be positive or null"),
            decoder_stride=(stride is None or 1 <= stride <= LARGEST_SIZE, IN_RANGE),
            projection_dim=(projected is None or 1 <= projected <= LARGEST_SIZE, IN_RANGE),
            logit_scale=(scale is None or 0 < scale <= LARGEST_SCALE, "must be positive or null"),
            layer_norm_eps=(0 < self.layer_norm_eps < 1, "must lie between 0 and 1"),
        )
        if self.norm_after_pooling and self.pooling != "mean":
            problems.append(f"norm_after_pooling fits pooling 'mean', not {self.pooling!r}")
        if self.norm_after_pooling and not self.final_norm:
            problems.append("norm_after_pooling needs final_norm")
        if self.width % self.heads:
            problems.append(f"width {self.width} is not divisible by {self.heads} heads")
        fits = self.patch_px == T2T_PATCH_PX and not any(px % T2T_PATCH_PX for px in self.image_hw)
        if self.tokenizer != "patches" and not fits:
            problems.append(
                f"tokenizer {self.tokenizer!r} needs patch_px {T2T_PATCH_PX} and an image of whole "
                f"patches, not {self.patch_px} and {list(self.image_hw)}"
            )
        problems += self._merging_problems()
        for axis, size_px in zip(("height", "width"), self.image_hw, strict=True):
            if size_px < self.patch_px:
                problems.append(
                    f"image {axis} {size_px} px is less than the patch size {self.patch_px} px"
                )
        return problems

    def _merging_problems(self) -> list[str]:
        if not self.merged_tokens:
            return []
        if len(self.merged_tokens) != self.depth:
            return [f"merged_tokens must be one number a block, {self.depth}, or none at all"]
        patches = [tokens - self.prefix_tokens for tokens in self.block_tokens]
        return [
            f"merged_tokens: block {block} has {there} patches left and merges {count}; it can "
            "merge none, or up to half of them"
            for block, (count, there) in enumerate(zip(self.merged_tokens, patches, strict=False))
            if not 0 <= count <= there // 2
        ]
