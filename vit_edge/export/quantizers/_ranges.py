"""Choosing the range of an activation: what is covered, and what is clipped for finer steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vit_edge.export.quantizers._integers import Format
from vit_edge.export.quantizers._samples import Sample

RangeMethod = Literal["minmax", "percentile", "entropy", "mse", "output"]

PERCENTILE = 99.99  # of |x|, as onnxruntime's and TensorRT's percentile calibrators start from
SHARES = tuple(round(1 - 0.04 * step, 2) for step in range(16))  # of the range: 1.0 to 0.4
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
        method: minmax covers all that was seen; percentile the middle 99.99 %; entropy the range
            whose histogram loses least information; mse the least squared error of the input;
            output the least squared error of what the Linear makes of it.
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
    if method == "entropy":
        divergence = _Divergence(sample.rows, low, high)
        return kind.parameters(*_least(low, high, kind, divergence.of))
    exact = sample.rows @ rounded_weight if method == "output" else sample.rows

    def squared_error(found: Parameters, kind: Format) -> float:
        rounded = kind.fake(sample.rows, *found)
        if method == "output":
            rounded = rounded @ rounded_weight
        rounded -= exact
        return float(np.square(rounded, out=rounded).sum(dtype=np.float64))

    return kind.parameters(*_least(low, high, kind, squared_error))


def _least(
    low: float, high: float, kind: Format, cost: Callable[[Parameters, Format], float]
) -> tuple[float, float]:
    """The clipped range of least cost: first the upper end is searched, then the lower one.

    With zero in the middle there is one end only, and both follow the same share.
    """
    at_least = low if kind.symmetric else 0.0
    shares = [(share * at_least + (low - at_least), share * high) for share in SHARES]
    low, high = min(shares, key=lambda ends: cost(kind.parameters(*ends), kind))
    if not kind.symmetric and low < 0:
        shares = [(share * low, high) for share in SHARES]
        low, high = min(shares, key=lambda ends: cost(kind.parameters(*ends), kind))
    return low, high


class _Divergence:
    """Of a histogram from what rounding leaves of it (S. Migacz, GTC 2017)."""

    def __init__(self, x: NDArray[np.float32], low: float, high: float) -> None:
        """Count once; candidates are compared on the counts."""
        self._counts, edges = np.histogram(x, ENTROPY_BINS, (low, high if high > low else low + 1))
        self._centres = ((edges[:-1] + edges[1:]) / 2).astype(np.float32)

    def of(self, found: Parameters, kind: Format) -> float:
        """KL divergence in nats; what is clipped is counted at the last level."""
        rounded = kind.fake(self._centres, *found)
        levels, place = np.unique(rounded, return_inverse=True)
        kept = (self._counts > 0) & (np.abs(rounded - self._centres) <= found[0])
        mass = np.bincount(place, self._counts, len(levels))
        spread = np.bincount(place, kept, len(levels))
        q = np.where(kept, mass[place] / np.maximum(spread[place], 1), 0.0)
        p, q = self._counts / self._counts.sum(), q / max(float(q.sum()), 1e-300)
        filled = p > 0
        return float((p[filled] * np.log(p[filled] / np.maximum(q[filled], 1e-12))).sum())
