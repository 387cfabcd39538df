"""Token merging (ToMe, arXiv:2210.09461): of two patches that look alike, one goes on.

Between attention and MLP the patches are split by turns into two sets. Each of the second set finds
the one of the first whose key points most nearly in its direction; the closest pairs become one
token each, the mean over all patches that it stands for. What stands in front of the patches is
left alone. Attention then counts a token as often as it has patches: log(size) is added to its
scores.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

LEAST_LENGTH = 1e-6  # of a key: below it a key has no direction


class Tokens(NamedTuple):
    """Tokens between two blocks."""

    x: Tensor  # [N, tokens, D]
    sizes: Tensor | None = None  # [N, tokens, 1], how many patches each is; None: one each


def merge(tokens: Tokens, keys: Tensor, count: int, prefix: int) -> Tokens:
    """Merge the closest pairs of patches.

    Args:
        tokens: [N, tokens, D] and their sizes.
        keys: [N, tokens, head_dim], each token's key, the mean over the heads.
        count: How many tokens go; at most half of the patches.
        prefix: How many tokens stand in front of the patches.

    Returns:
        Tokens, `count` fewer: the prefix, what was not merged of the second set, the first set.
    """
    x, sizes = tokens
    if sizes is None:
        sizes = torch.ones_like(x[..., :1])
    found, order = match(keys[:, prefix:])
    gone, kept = order[:, :count], order[:, count:]
    summed = torch.cat([x * sizes, sizes], dim=-1)  # [N, tokens, D + 1]
    first, second = summed[:, prefix::2], summed[:, prefix + 1 :: 2]
    into = found.gather(1, gone)[..., None].expand(-1, -1, summed.shape[-1])
    first = first.scatter_add(1, into, second.take_along_dim(gone[..., None], dim=1))
    left = second.take_along_dim(kept[..., None], dim=1)
    merged = torch.cat([summed[:, :prefix], left, first], dim=1)
    sizes = merged[..., -1:]
    return Tokens(merged[..., :-1] / sizes, sizes)


def match(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Find for each of the second set its closest of the first, and who is closest.

    Args:
        keys: [N, patches, head_dim]; the sets are the even and the odd ones.

    Returns:
        int64[N, second set], the positions in the first set that were found; int64[N, second set],
        the positions in the second set, the closest pair first.
    """
    keys = keys / torch.linalg.vector_norm(keys, dim=-1, keepdim=True).clamp(min=LEAST_LENGTH)
    cosine, found = (keys[:, 1::2] @ keys[:, ::2].transpose(1, 2)).max(dim=-1)
    return found, cosine.argsort(dim=-1, descending=True, stable=True)
