"""A test that two float32 graphs compute the same, up to rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_edge.parity.statistics import Difference

# float32 rounding over up to 32 blocks: 3e-7 to 3e-6 is what is found (docs/bundle.md)
EXACT_RELATIVE = 1e-5


def relative_difference(
    actual: NDArray[np.floating[Any]], expected: NDArray[np.floating[Any]]
) -> float:
    """Max |difference| / max |expected| of float[N, ...]; infinite where one is not finite."""
    difference = Difference()
    difference.add(np.arange(len(expected)), actual, expected)
    return difference.relative
