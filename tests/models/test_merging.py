"""Token merging against a second implementation of the paper, in loops, and its edge cases."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.support.vits import random_vit
from vit_edge.bundle.architecture import Architecture
from vit_edge.models.merging import Tokens, merge
from vit_edge.models.reference import reference_outputs
from vit_edge.models.vit import with_merging

requires = ("torch",)

SHAPE = Architecture(16, 3, 2, 32, 4, (20, 20), 5)  # 25 patches: the first set has one more


def merge_in_loops(
    x: NDArray[np.float64],
    sizes: NDArray[np.float64],
    keys: NDArray[np.float64],
    count: int,
    prefix: int,
) -> set[tuple[Any, ...]]:
    """One image: a set of (rounded values, size), since the order of tokens means nothing."""
    first = range(prefix, len(x), 2)
    second = range(prefix + 1, len(x), 2)
    pairs = []
    for source in second:
        cosines = {
            target: keys[source]
            @ keys[target]
            / np.linalg.norm(keys[source])
            / np.linalg.norm(keys[target])
            for target in first
        }
        best = max(cosines, key=lambda target: cosines[target])
        pairs.append((cosines[best], source, best))
    groups: dict[int, list[int]] = {token: [token] for token in range(len(x))}
    for _, source, target in sorted(pairs, reverse=True)[:count]:
        groups[target].append(source)
        del groups[source]
    return {
        (*np.round(np.average(x[group], axis=0, weights=sizes[group]), 9), sizes[group].sum())
        for group in groups.values()
    }


def as_set(tokens: Tokens, image: int) -> set[tuple[Any, ...]]:
    assert tokens.sizes is not None
    rows = zip(tokens.x[image].numpy(), tokens.sizes[image].numpy(), strict=True)
    return {(*np.round(values, 9), size[0]) for values, size in rows}


@pytest.mark.parametrize("prefix", [0, 1, 3])
@pytest.mark.parametrize("patches", [2, 3, 24, 25])
def test_merging_is_that_of_the_paper(prefix: int, patches: int) -> None:
    rng = np.random.default_rng(patches)
    x, keys = (rng.standard_normal((2, prefix + patches, 6)) for _ in range(2))
    sizes = rng.integers(1, 5, (2, prefix + patches, 1)).astype(np.float64)
    for count in {1, patches // 2}:
        found = merge(
            Tokens(torch.from_numpy(x), torch.from_numpy(sizes)),
            torch.from_numpy(keys),
            count,
            prefix,
        )
        assert found.x.shape[1] == prefix + patches - count
        for image in range(2):
            expected = merge_in_loops(x[image], sizes[image, :, 0], keys[image], count, prefix)
            assert as_set(found, image) == expected


def test_sizes_begin_with_one_and_add_up_to_the_patches() -> None:
    torch.manual_seed(0)
    tokens = Tokens(torch.randn(2, 26, 4))
    for count in (5, 7, 2):
        tokens = merge(tokens, torch.randn(2, tokens.x.shape[1], 3), count, 1)
    assert tokens.sizes is not None
    assert tokens.sizes[:, 0].eq(1).all()
    assert tokens.sizes.sum(dim=1).eq(26).all()


def test_keys_without_direction_leave_finite_tokens() -> None:
    merged = merge(Tokens(torch.randn(1, 9, 4)), torch.zeros(1, 9, 3), 4, 1)
    assert merged.x.isfinite().all()


def test_attention_counts_a_token_as_often_as_it_has_patches() -> None:
    """Merging patches that are equal changes nothing: their copies would have answered the same."""
    model = random_vit(dataclasses.replace(SHAPE, image_hw=(8, 8)), scale=0.3)  # 4 patches
    model.embedding.position[:, 2:] = model.embedding.position[:, 1:2]
    merging = with_merging(model, (2, 0, 0))
    pixels = np.tile(
        np.random.default_rng(1).standard_normal((2, 3, 4, 4), np.float32), (1, 1, 2, 2)
    )
    plain, merged = (reference_outputs(each, pixels, "float64") for each in (model, merging))
    assert plain.logits is not None
    assert merged.logits is not None
    assert torch.allclose(plain.logits, merged.logits, atol=1e-12)
    counted_once = merging.blocks[1].attention
    without = counted_once.forward  # type: ignore[operator]
    counted_once.forward = lambda x, sizes=None: without(x)  # type: ignore[assignment]
    planted = reference_outputs(merging, pixels, "float64")
    assert planted.logits is not None
    assert not torch.allclose(plain.logits, planted.logits, atol=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "class+mean"])
def test_the_mean_is_over_patches_not_over_tokens(pooling: Any) -> None:
    shape = dataclasses.replace(SHAPE, pooling=pooling, merged_tokens=(0, 0, 6))
    model = random_vit(shape, scale=0.3)
    sizes = torch.ones(1, 20, 1)
    sizes[:, 5] = 7
    tokens = torch.randn(1, 20, 16)
    found = model.readout.pool(tokens, sizes)[0, -16:]
    by_hand = (tokens[0, 1:].sum(dim=0) + 6 * tokens[0, 5]) / 25
    assert torch.allclose(found, by_hand, atol=1e-6)


@pytest.mark.parametrize(
    ("merged", "words"),
    [
        ((1, 1), "one number a block"),
        ((13, 0, 0), "block 0 has 25 patches left and merges 13"),
        ((12, 6, 4), "block 2 has 7 patches left and merges 4"),
        ((-1, 0, 0), "block 0"),
    ],
)
def test_what_cannot_be_merged_is_a_problem(merged: tuple[int, ...], words: str) -> None:
    [problem] = dataclasses.replace(SHAPE, merged_tokens=merged).problems()
    assert words in problem


def test_tokens_of_each_block() -> None:
    assert SHAPE.block_tokens == (26, 26, 26, 26)
    assert dataclasses.replace(SHAPE, merged_tokens=(12, 0, 3)).block_tokens == (26, 14, 14, 11)
