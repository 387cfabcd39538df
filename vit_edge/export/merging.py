"""Token merging as it is exported: models.merging with products in place of indices.

Rows are sorted and added by products with matrices of zeros and ones. Every runtime is good at
products; operators that gather or scatter by index are slow in some of them and absent in others.
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
        front, first, second = self.parts(x)
        found, order = match(keys[:, self.prefix :])
        into = one_hot(found.gather(1, order[:, : self.count]), first.shape[1]).transpose(1, 2)
        sorting = one_hot(order, order.shape[1])
        gone, left = self.split(sorting @ second)
        if sizes is None:
            first_sizes = 1 + into.sum(dim=2, keepdim=True)
            others = front.shape[1] + left.shape[1]
            sizes = functional.pad(first_sizes, (0, 0, others, 0), value=1.0)
        else:
            front_sizes, first_sizes, second_sizes = self.parts(sizes)
            gone_sizes, left_sizes = self.split(sorting @ second_sizes)
            first, gone = first * first_sizes, gone * gone_sizes
            first_sizes = first_sizes + into @ gone_sizes
            sizes = torch.cat([front_sizes, left_sizes, first_sizes], dim=1)
        first = (first + into @ gone) / first_sizes
        return Tokens(torch.cat([front, left, first], dim=1), sizes)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[N, tokens, ...] -> the prefix, the first set of patches, and the second."""
        return x[:, : self.prefix], x[:, self.prefix :: 2], x[:, self.prefix + 1 :: 2]

    def split(self, ordered: Tensor) -> tuple[Tensor, Tensor]:
        """[N, second set, ...], the closest first -> those that go, and those that stay."""
        return ordered[:, : self.count], ordered[:, self.count :]


def match(keys: Tensor) -> tuple[Tensor, Tensor]:
    """See models.merging.match; TopK takes the first of equals, as the stable sort does."""
    length = (keys * keys).sum(dim=-1, keepdim=True).clamp(min=LEAST_LENGTH**2).sqrt()
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
