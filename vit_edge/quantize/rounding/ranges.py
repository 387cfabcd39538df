"""Choosing the range of an activation: what is covered, and what is clipped for finer steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vit_edge.quantize.formats.integers import Format
from vit_edge.quantize.rounding.samples import Sample

RangeMethod = Literal["minmax", "percentile", "entropy", "mse", "output"]

PERCENTILE = 99.99  # of |x|, as onnxruntime's and TensorRT's percentile calibrators start from
# Of the range seen on half of the images; more than 1 leaves room for what the others show.
SHARES = (1.3, 1.2, 1.1, *(round(1 - 0.05 * step, 2) for step in range(13)))  # to 0.4
ENTROPY_BINS = 2048  # TensorRT's entropy calibrator (S. Migacz, GTC 2017)

Parameters = tuple[np.float32, int]  # scale, zero point


def parameters(
    method: RangeMethod,
    sample: Sample,
    rounded_weight: NDArray[np.float32],
    kind: Format,
) -> Parameters:
    """Scale and zero point of a Linear's input.

    Args:
        method: minmax covers all that was seen, percentile the middle 99.99 %. entropy takes the
            range whose histogram loses least information, mse that of the least squared error of
            the input, and output that of the least squared error of the Linear's output.
        sample: Of the input.
        rounded_weight: float32[in, out], the Linear's weight after quantization.
        kind: The integers to use.
    """
    low, high = float(sample.low.min()), float(sample.high.max())
    if method == "minmax":
        return kind.parameters(low, high)
    if method == "percentile":
        tail = (100 - PERCENTILE) / 2
        below, above = np.percentile(sample.rows, [tail, 100 - tail])
        return kind.parameters(float(below), float(above))
    fit = float(sample.fit_low.min()), float(sample.fit_high.max())
    cost = _divergence(sample) if method == "entropy" else _error(method, sample, rounded_weight)
    below, above = _least(*fit, kind, cost)
    return kind.parameters(below * low, above * high)


Cost = Callable[[Parameters, Format], float]


def _error(method: RangeMethod, sample: Sample, rounded_weight: NDArray[np.float32]) -> Cost:
    """The squared error of the input, or of what the Linear makes of it."""
    exact = sample.rows @ rounded_weight if method == "output" else sample.rows

    def squared_error(parameters: Parameters, kind: Format) -> float:
        rounded = kind.fake(sample.rows, *parameters)
        if method == "output":
            rounded = rounded @ rounded_weight
        rounded -= exact
        return sample.squared(rounded)

    return squared_error


def _least(low: float, high: float, kind: Format, cost: Cost) -> tuple[float, float]:
    """The shares of low and high that cost least: first the upper end's, then the lower one's.

    With zero in the middle there is one range only, and both ends follow the same share.
    """

    def of(shares: tuple[float, float]) -> float:
        return cost(kind.parameters(shares[0] * low, shares[1] * high), kind)

    if kind.symmetric:
        return min(((share, share) for share in SHARES), key=of)
    _, above = min(((1.0, share) for share in SHARES), key=of)
    return min(((share, above) for share in SHARES), key=of)


def _divergence(sample: Sample) -> Cost:
    """KL divergence of the histogram from what rounding leaves of it (S. Migacz, GTC 2017)."""
    low, high = float(sample.rows.min()), float(sample.rows.max())
    counts, edges = np.histogram(sample.rows, ENTROPY_BINS, (low, high if high > low else low + 1))
    centres = ((edges[:-1] + edges[1:]) / 2).astype(np.float32)

    def divergence(parameters: Parameters, kind: Format) -> float:
        rounded = kind.fake(centres, *parameters)
        levels, place = np.unique(rounded, return_inverse=True)
        kept = (counts > 0) & (np.abs(rounded - centres) <= parameters[0])  # the rest is clipped
        mass = np.bincount(place, counts, len(levels))
        spread = np.bincount(place, kept, len(levels))
        q = np.where(kept, mass[place] / np.maximum(spread[place], 1), 0.0)
        p, q = counts / counts.sum(), q / max(float(q.sum()), 1e-300)
        filled = p > 0
        return float((p[filled] * np.log(p[filled] / np.maximum(q[filled], 1e-12))).sum())

    return divergence
