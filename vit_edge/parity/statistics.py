"""How far two sets of answers lie apart. Written once; every comparison uses these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = "NDArray[np.floating[Any]]"


@dataclass
class Difference:
    """Running comparison of one output over many images, in float64.

    `add` takes a batch; nothing but the running numbers is kept.
    """

    images: int = 0
    max_abs_diff: float = 0.0
    max_abs_reference: float = 0.0
    worst_image: int = -1  # the position of the image with the largest |difference|
    agreeing: int = 0  # images whose largest entry is in the same place
    non_finite: int = 0
    cosine_min: float = 1.0

    def add(
        self,
        indices: NDArray[np.int64],
        found: Floats,
        expected: Floats,
    ) -> None:
        """Add a batch.

        Args:
            indices: int64[N], the position of each image in the whole set.
            found: float[N, ...], the candidate's answers.
            expected: float[N, ...], the reference's.
        """
        left = found.reshape(len(found), -1).astype(np.float64)
        right = expected.reshape(len(expected), -1).astype(np.float64)
        self.images += len(left)
        self.non_finite += int(np.count_nonzero(~np.isfinite(left)))
        with np.errstate(invalid="ignore"):
            worst = np.abs(left - right).max(axis=1)
        worst = np.where(np.isfinite(worst), worst, np.inf)
        if worst.max() >= self.max_abs_diff or self.worst_image < 0:
            self.max_abs_diff = float(worst.max())
            self.worst_image = int(indices[worst.argmax()])
        self.max_abs_reference = max(self.max_abs_reference, float(np.abs(right).max()))
        self.agreeing += int(np.count_nonzero(left.argmax(axis=1) == right.argmax(axis=1)))
        self.cosine_min = min(self.cosine_min, float(cosine(left, right).min()))

    @property
    def relative(self) -> float:
        """Max |difference| / max |reference|."""
        if self.max_abs_reference == 0:
            return 0.0 if self.max_abs_diff == 0 else float("inf")
        return self.max_abs_diff / self.max_abs_reference

    @property
    def agreement(self) -> float:
        """Share of images with the same largest entry."""
        return self.agreeing / self.images if self.images else 0.0


def cosine(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosine of each pair of rows; 0 where a row is zero or not finite."""
    with np.errstate(invalid="ignore", divide="ignore"):
        norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
        value = (left * right).sum(axis=1) / norms
    return np.where(np.isfinite(value), value, 0.0)
