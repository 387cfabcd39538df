"""Token merging as it is exported: models.merging with products in place of indices.

Rows are sorted and added by products with matrices of zeros and ones. Every runtime is good at
products; operators that gather or scatter by index are slow in some of them and absent in others.
The sizes go along as one more channel.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from vit_edge.models.merging import LEAST_LENGTH, Tokens


class ExportMerging(nn.Module):
    """Merge the `count` closest pairs of patches; see models.merging.merge."""

    def __init__(self, count: int, prefix: int) -> None:
        super().__init__()
        self.count, self.prefix = count, prefix

    def forward(self, tokens: Tokens, keys: Tensor) -> Tokens:
        """Take tokens, and each one's key: float32[N, tokens, head_dim]."""
        x, sizes = tokens
        if sizes is None:
            summed = functional.pad(x, (0, 1), value=1.0)
        else:
            summed = torch.cat([x * sizes, sizes], dim=2)
        prefix = self.prefix
        front, first, second = summed[:, :prefix], summed[:, prefix::2], summed[:, prefix + 1 :: 2]
        found, order = match(keys[:, prefix:])
        into = one_hot(found.gather(1, order[:, : self.count]), first.shape[1]).transpose(1, 2)
        moved = one_hot(order, order.shape[1]) @ second  # the closest first
        gone, left = moved[:, : self.count], moved[:, self.count :]
        merged = torch.cat([front, left, first + into @ gone], dim=1)
        sizes = merged[..., -1:]
        return Tokens(merged[..., :-1] / sizes, sizes)


def match(keys: Tensor) -> tuple[Tensor, Tensor]:
    """See models.merging.match; TopK takes the first of equals, as the stable sort does."""
    length = torch.linalg.vector_norm(keys, dim=-1, keepdim=True).clamp(min=LEAST_LENGTH)
    keys = keys / length
    cosine = keys[:, 1::2] @ keys[:, ::2].transpose(1, 2)
    closest, found = cosine.max(dim=-1)
    return found, closest.topk(closest.shape[1], dim=-1).indices


def one_hot(index: Tensor, length: int) -> Tensor:
    """int64[N, M] -> float32[N, M, length]."""
    return (index[..., None] == torch.arange(length)).to(torch.float32)


def size_bias(sizes: Tensor) -> Tensor:
    """[N, tokens, 1] -> [N, 1, tokens]: what the scores of attention grow by."""
    return sizes.log().transpose(1, 2)
