"""How much arithmetic a model is, by its architecture alone."""

from __future__ import annotations

import math

from vit_edge.bundle.architecture import Architecture


def multiply_adds(shape: Architecture) -> int:
    """Multiply-adds of all products of a whole model, for one image: 17.6e9 for base-patch16-224.

    Of the whole model: what a graph leaves out exactly (the last block is needed for the class
    token only: 7 % of 12 blocks) counts as done. Normalization, softmax and GELU are not counted,
    as is usual (arXiv:2010.11929 counts the same, with a fused multiply-add as one).
    """
    attention = 2 * shape.tokens * shape.tokens * shape.width
    linears = shape.tokens * shape.width * (4 * shape.width + 2 * shape.mlp_dim)
    patches = math.prod(shape.grid_hw) * shape.width * shape.channels * shape.patch_px**2
    head = (shape.pre_logits_dim or shape.features_dim) * shape.num_classes
    head += shape.features_dim * (shape.pre_logits_dim or 0)
    head += shape.pooled_dim * (shape.projection_dim or 0)
    return shape.depth * (linears + attention) + patches + head
