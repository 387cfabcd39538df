"""What a report shows of single images: both answers, how far apart, and some of the logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vit_edge.bundle.manifest import Scores
from vit_edge.parity.logits import LogitComparison, largest_decision_flip
from vit_edge.parity.result import Choice, ImageAnswers, Scatter
from vit_edge.parity.statistics import Floats, decision_divergence, finite, kl_divergence, rows

SHOWN = 5  # classes of each answer
SCATTER = 2_000  # pairs of logits: more would be a blot
IMAGES = 10_000  # beyond, only the statistics grow: a row takes about 300 bytes


class _Seen(NamedTuple):
    reference: tuple[Choice, ...]
    candidate: tuple[Choice, ...]
    kl: float | None
    margin: float  # in the reference's logits; 0 without a flip


class Witness:
    """Watches a comparison of logits; an image counts once."""

    def __init__(self, images: int, scores: Scores = "softmax") -> None:
        """Take note of up to IMAGES of so many.

        Args:
            images: How many there are.
            scores: What is made of the logits; values without classes are scattered, no more.
        """
        self._scores = scores
        self._per_image = max(1, SCATTER // max(images, 1))
        self._images: dict[int, _Seen] = {}
        self._scatter: tuple[list[float], list[float]] = ([], [])

    def add(self, indices: NDArray[np.int64], answers: Floats, expected: Floats) -> None:
        """Take note of a batch.

        Args:
            indices: int64[N], positions in the whole set.
            answers: float[N, classes], the candidate's logits.
            expected: float[N, classes], the reference's.
        """
        candidate, reference = rows(answers), rows(expected)
        sigmoid = self._scores == "sigmoid"
        divergence = decision_divergence if sigmoid else kl_divergence
        divergences = divergence(reference, candidate)
        for row, index in enumerate(indices.tolist()):
            if index in self._images or len(self._images) >= IMAGES:
                continue
            margin = 0.0
            if sigmoid:
                _, margin = largest_decision_flip(candidate[row], reference[row])
            elif np.isfinite(candidate[row]).all():
                margin = float(reference[row].max() - reference[row][candidate[row].argmax()])
            firsts = _first(reference[row]), _first(candidate[row])
            self._images[index] = _Seen(*firsts, finite(float(divergences[row])), margin)
            self._scattered(reference[row], candidate[row])

    def _scattered(self, reference: NDArray[np.float64], candidate: NDArray[np.float64]) -> None:
        """Logits of evenly spaced ranks: the largest and the least, and some between."""
        if len(self._scatter[0]) >= SCATTER:
            return
        order = np.argsort(reference, kind="stable")
        ranks = np.linspace(0, len(order) - 1, min(self._per_image, len(order))).round()
        for place in order[ranks.astype(np.int64)[::-1]]:
            if np.isfinite(candidate[place]):
                self._scatter[0].append(float(f"{reference[place]:.4g}"))
                self._scatter[1].append(float(f"{candidate[place]:.4g}"))

    def images(
        self, names: Sequence[str], logits: LogitComparison | None
    ) -> tuple[ImageAnswers, ...]:
        """One entry per image.

        Args:
            names: Of the images.
            logits: The comparison that was watched; it knows the scale of margins.
        """
        return tuple(
            ImageAnswers(
                index, names[index], seen.reference, seen.candidate, seen.kl,
                0.0 if logits is None else logits.relative_margin(seen.margin),
            )
            for index, seen in sorted(self._images.items())
            if self._scores != "none"
        )  # fmt: skip

    def scatter(self) -> Scatter:
        """Pairs of logits."""
        reference, candidate = self._scatter
        return Scatter(tuple(reference), tuple(candidate))


def _first(logits: NDArray[np.float64]) -> tuple[Choice, ...]:
    """The largest logits with their classes; NaN goes last."""
    order = np.argsort(np.where(np.isnan(logits), -np.inf, logits), kind="stable")[::-1]
    return tuple((int(place), finite(float(logits[place]))) for place in order[:SHOWN])
