"""How much arithmetic a model is, by its architecture alone."""

from __future__ import annotations

import itertools
import math

from vit_edge.bundle.architecture import Architecture


def multiply_adds(shape: Architecture) -> int:
    """Multiply-adds of all products of a whole model, for one image: 17.6e9 for base-patch16-224.

    Of the whole model: what a graph leaves out exactly (the last block is needed for the class
    token only: 7 % of 12 blocks) counts as done. Normalization, softmax and GELU are not counted,
    as is usual (arXiv:2010.11929 counts the same, with a fused multiply-add as one).
    """
    blocks = 0
    for entering, leaving in itertools.pairwise(shape.block_tokens):  # fewer, where they are merged
        blocks += 2 * entering * entering * shape.width
        blocks += shape.width * (4 * entering * shape.width + 2 * leaving * shape.mlp_dim)
    patches = math.prod(shape.grid_hw) * shape.width * shape.channels * shape.patch_px**2
    if shape.tokenizer != "patches":
        patches = _tokens_to_token(shape)
    head = (shape.pre_logits_dim or shape.features_dim) * shape.num_classes
    head += shape.features_dim * (shape.pre_logits_dim or 0)
    head += shape.pooled_dim * (shape.projection_dim or 0)
    return blocks + patches + head


def _tokens_to_token(shape: Architecture) -> int:
    """Multiply-adds of T2T-ViT's tokenizer: two layers on windows, and the projection."""
    grid, dim, inputs = math.prod(shape.grid_hw), shape.token_dim, 9 * shape.token_dim
    layers = ((16 * grid, 49 * shape.channels), (4 * grid, inputs))  # tokens, channels of each
    # scores and mixing; or Performer's features of q and k, their sum with v, and the quotient
    per_token = 4 * dim * (dim // 2) + dim // 2
    total = grid * inputs * shape.width
    for tokens, channels in layers:
        attention = per_token if shape.tokenizer == "t2t-performer" else 2 * tokens * dim
        total += tokens * (3 * channels * dim + 3 * dim * dim + attention)
    return total
