"""Scores of an image's logits, as the manifest's `scores` says."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vit_edge.bundle.manifest import Scores as Scores


def scores_from_logits(logits: NDArray[np.float32], kind: Scores) -> NDArray[np.float64]:
    """Make scores of one image's logits.

    Args:
        logits: float32[classes], finite.
        kind: softmax, sigmoid, or none, which leaves the values as they are.
    """
    values = logits.astype(np.float64)
    if kind == "none":
        return values
    if kind == "sigmoid":
        sigmoid: NDArray[np.float64] = np.exp(-np.logaddexp(0.0, -values))
        return sigmoid
    powers = np.exp(values - values.max())
    softmax: NDArray[np.float64] = powers / powers.sum()
    return softmax
