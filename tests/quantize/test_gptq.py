"""GPTQ: the walk does what the paper's algorithm does, and less is lost than by rounding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vit_edge.quantize.formats.blocks import BlockFormat, Grid, WholeFormat, rounded
from vit_edge.quantize.rounding.gptq import BATCH, gptq, triangular

requires = ("onnx_ir",)

KIND = BlockFormat(4, False, 32)


def inputs(rows: int, seed: int) -> NDArray[np.float32]:
    """The covariance of correlated channels of different strength."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((4 * rows, rows)) @ rng.standard_normal((rows, rows))
    mixed *= np.exp(rng.uniform(-2, 2, rows))
    return np.cov(mixed.T).astype(np.float32)


def weights(rows: int, outputs: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((rows, outputs)).astype(np.float32)


def lost(
    matrix: NDArray[np.float32], left: NDArray[np.float32], covariance: NDArray[np.float32]
) -> float:
    wrong = (matrix - left).astype(np.float64)
    return float(np.vdot(wrong, covariance @ wrong))


def paper(
    matrix: NDArray[np.float32], covariance: NDArray[np.float32], grid: Grid, damping: float
) -> NDArray[np.float64]:
    """Algorithm 1 of arXiv:2210.17323 in float64: the inverse, and weights bent as it goes."""
    rows = len(matrix)
    order = np.argsort(-np.diag(covariance), kind="stable")
    hessian = covariance[np.ix_(order, order)].astype(np.float64)
    hessian += damping * np.diag(hessian).mean() * np.eye(rows)
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T
    bent = matrix[order].astype(np.float64)
    left = np.empty_like(bent)
    for i in range(rows):
        block = order[i] // KIND.block
        scale, zero = (part[block].astype(np.float64) for part in (grid.scale, grid.zero))
        level = np.clip(np.rint(bent[i] / scale) + zero, KIND.low, KIND.high)
        left[order[i]] = (level - zero) * scale
        bent[i:] -= np.outer(upper[i, i:], (bent[i] - left[order[i]]) / upper[i, i])
    return left


@pytest.mark.parametrize("rows", [20, 64, BATCH + 22])
def test_the_walk_gives_what_the_papers_algorithm_gives(rows: int) -> None:
    matrix, covariance = weights(rows, 8, rows), inputs(rows, rows)
    grid = KIND.covering(matrix)
    found = gptq(matrix, covariance, grid, KIND, damping=0.01).dequantize()
    expected = paper(matrix, covariance, grid, 0.01)
    # a weight halfway between two levels may fall to either side, and moves the rest of its column
    same = np.isclose(found, expected, rtol=1e-4, atol=1e-6).all(axis=0)
    assert same.mean() >= 0.75
    assert lost(matrix, found, covariance) == pytest.approx(
        lost(matrix, expected.astype(np.float32), covariance), rel=0.05
    )


@settings(max_examples=10)
@given(rows=st.integers(40, 160), seed=st.integers(0, 999), symmetric=st.booleans())
def test_less_is_lost_than_by_rounding_to_the_nearest(
    rows: int, seed: int, symmetric: bool
) -> None:
    kind = BlockFormat(4, symmetric, 32)
    matrix, covariance = weights(rows, 16, seed), inputs(rows, seed)
    grid = kind.fitting(matrix, np.diag(covariance))
    walked = lost(matrix, gptq(matrix, covariance, grid, kind).dequantize(), covariance)
    nearest = lost(matrix, rounded(matrix, grid, kind).dequantize(), covariance)
    assert walked < 0.7 * nearest


def test_independent_channels_are_rounded_to_the_nearest() -> None:
    matrix = weights(50, 4, 0)
    variances = np.diag(np.random.default_rng(1).uniform(1, 2, 50)).astype(np.float32)
    grid = KIND.covering(matrix)
    found, expected = gptq(matrix, variances, grid, KIND), rounded(matrix, grid, KIND)
    assert np.array_equal(found.levels.astype(int), expected.levels.astype(int))


def test_the_factor_is_upper_triangular_and_gives_the_covariance_back() -> None:
    covariance = inputs(60, 3)
    factor = triangular(covariance, 0.01).astype(np.float64)
    assert not np.tril(factor, -1).any()
    damped = covariance + 0.01 * np.diag(covariance).mean() * np.eye(60)
    assert np.abs(factor @ factor.T - damped).max() < 1e-6 * np.abs(damped).max()


@pytest.mark.parametrize("dead", [[3], [0, 1, 2, 30, 31], list(range(40))])
def test_channels_that_are_always_zero_do_no_harm(dead: list[int]) -> None:
    matrix, covariance = weights(40, 6, 0), inputs(40, 0)
    covariance[dead] = covariance[:, dead] = 0
    grid = KIND.covering(matrix)
    left = gptq(matrix, covariance, grid, KIND).dequantize()
    assert np.isfinite(left).all()
    step = np.repeat(grid.scale, KIND.block, axis=0)[:40]
    assert (np.abs(left - matrix)[dead] <= step[dead]).all()  # and nothing wild happens to them


def test_fewer_images_than_channels_are_enough() -> None:
    """The covariance is singular then; the damping decides what was not seen."""
    rng = np.random.default_rng(0)
    covariance = np.cov(rng.standard_normal((10, 80)).T).astype(np.float32)
    matrix = weights(80, 6, 0)
    left = gptq(matrix, covariance, KIND.covering(matrix), KIND).dequantize()
    assert np.isfinite(left).all()
    nearest = rounded(matrix, KIND.covering(matrix), KIND).dequantize()
    assert lost(matrix, left, covariance) < lost(matrix, nearest, covariance)


@pytest.mark.parametrize("largest", [127, 63])
def test_int8_weights_of_one_scale_make_up_for_each_other(largest: int) -> None:
    matrix, covariance = weights(96, 16, 5), inputs(96, 5)
    kind = WholeFormat(8, True, len(matrix), largest)
    grid = kind.grid((np.abs(matrix).max(axis=0) / largest).astype(np.float32))
    walked, nearest = gptq(matrix, covariance, grid, kind), rounded(matrix, grid, kind)
    assert walked.levels.dtype == np.int8
    assert np.abs(walked.levels.astype(int)).max() <= largest
    better = lost(matrix, walked.dequantize(), covariance)
    assert better < 0.5 * lost(matrix, nearest.dequantize(), covariance)
