"""How far two sets of answers lie apart. Written once; every comparison uses these.

`candidate` is always the candidate's answer and `expected` the reference's. One that holds NaN or
Inf agrees with nothing: it counts as a flip, with cosine 0 and infinite noise and divergence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = "NDArray[np.floating[Any]]"
Doubles: TypeAlias = "NDArray[np.float64]"

# No noise at all reads as this, because JSON has no infinity. Real noise stays far below: one
# float32 rounding (144 dB) in one of 50,000 images of 1,000 classes is 221 dB.
LARGEST_DB = 300.0


@dataclass
class Noise:
    """Running power of signal and noise of one output over many images.

    `centred` leaves out of the signal what is the same for every image: the mean answer. That
    constant part says nothing about the image, and hides faults where it is large (a randomly
    initialised ViT's logits are nearly all of it).
    """

    images: int = 0
    signal: float = 0.0  # sum of expected^2
    noise: float = 0.0  # sum of (candidate - expected)^2
    varying: float = 0.0  # sum of (expected - its mean over the images)^2
    mean: Doubles = field(default_factory=lambda: np.zeros(0))  # [values], of expected

    def add(self, candidate: Doubles, expected: Doubles) -> None:
        """Add a batch.

        The mean is updated by the pairwise formula of Chan, Golub and LeVeque (Stanford
        STAN-CS-79-773, 1979), which does not cancel where the mean is large.

        Args:
            candidate: float64[N, values].
            expected: float64[N, values], finite.
        """
        new = len(expected)
        if not new:
            return
        with np.errstate(invalid="ignore"):
            power = float(np.square(candidate - expected).sum())
        self.noise += power if math.isfinite(power) else math.inf
        self.signal += float(np.square(expected).sum())
        mean = expected.mean(axis=0)
        self.varying += float(np.square(expected - mean).sum())
        if self.images:
            step = mean - self.mean
            self.varying += float(step @ step) * self.images * new / (self.images + new)
            mean = self.mean + step * (new / (self.images + new))
        self.mean = mean
        self.images += new

    @property
    def sqnr_db(self) -> float | None:
        """Signal-to-quantization-noise ratio in dB, within +-LARGEST_DB; None without images."""
        return decibels(self.signal, self.noise) if self.images else None

    @property
    def sqnr_centred_db(self) -> float | None:
        """The same, of what varies from image to image; None for fewer than two images."""
        return decibels(self.varying, self.noise) if self.images > 1 else None

    @property
    def spread(self) -> float:
        """Root mean square of what varies from image to image, in the answer's own unit."""
        return math.sqrt(self.varying / (self.images * self.mean.size)) if self.images else 0.0


@dataclass
class Difference:
    """Running comparison of one output over many images, in float64.

    `add` takes a batch; kept are the running numbers, and one number per image. An image that comes
    a second time (to fill up a batch) counts for the extremes only, not for means and rates.
    """

    max_abs_diff: float = 0.0
    max_abs_reference: float = 0.0
    worst_image: int = -1  # the position of the image with the largest |difference|
    non_finite: int = 0  # values that are NaN or Inf
    cosine_min: float = 1.0
    cosine_sum: float = 0.0
    noise: Noise = field(default_factory=Noise)
    seen: set[int] = field(default_factory=set)
    largest: list[float] = field(default_factory=list)  # |difference|, one per image

    @property
    def images(self) -> int:
        """How many different images were compared."""
        return len(self.seen)

    def add(
        self, indices: NDArray[np.int64], candidate: Floats, expected: Floats
    ) -> NDArray[np.bool_]:
        """Add a batch.

        Args:
            indices: int64[N], the position of each image in the whole set.
            candidate: float[N, ...], the candidate's answers.
            expected: float[N, ...], the reference's.

        Returns:
            bool[N]: which images had not been seen before.
        """
        left, right = rows(candidate), rows(expected)
        self.non_finite += int(np.count_nonzero(~np.isfinite(left)))
        with np.errstate(invalid="ignore"):
            worst = np.abs(left - right).max(axis=1)
        worst = np.where(np.isfinite(worst), worst, np.inf)
        if worst.max() > self.max_abs_diff or self.worst_image < 0:
            self.max_abs_diff = float(worst.max())
            self.worst_image = int(indices[worst.argmax()])
        self.max_abs_reference = max(self.max_abs_reference, float(np.abs(right).max()))
        cosines = cosine(left, right)
        self.cosine_min = min(self.cosine_min, float(cosines.min()))
        fresh = self._fresh(indices)
        self.cosine_sum += float(cosines[fresh].sum())
        self.noise.add(left[fresh], right[fresh])
        self.largest += worst[fresh].tolist()
        return fresh

    def _fresh(self, indices: NDArray[np.int64]) -> NDArray[np.bool_]:
        fresh = np.zeros(len(indices), np.bool_)
        for row, index in enumerate(indices.tolist()):
            fresh[row] = index not in self.seen
            self.seen.add(index)
        return fresh

    @property
    def relative(self) -> float:
        """Max |difference| / max |reference|."""
        return self._of_reference(self.max_abs_diff)

    @property
    def relative_median(self) -> float | None:
        """The same, of the median image; None where it is infinite, or without images."""
        if not self.largest:
            return None
        return finite(self._of_reference(float(np.median(self.largest))))

    def _of_reference(self, difference: float) -> float:
        if self.max_abs_reference == 0:
            return 0.0 if difference == 0 else math.inf
        return difference / self.max_abs_reference

    def summary(self) -> dict[str, Any]:
        """Every statistic by its name, ready for JSON: None where it is infinite or undefined."""
        return {
            "images": self.images,
            "max_abs_diff": finite(self.max_abs_diff),
            "max_abs_reference": self.max_abs_reference,
            "relative": finite(self.relative),
            "relative_median": self.relative_median,
            "worst_image": self.worst_image,
            "non_finite": self.non_finite,
            "cosine_mean": self.cosine_sum / self.images if self.images else None,
            "cosine_min": self.cosine_min if self.images else None,
            "sqnr_db": self.noise.sqnr_db,
            "sqnr_centred_db": self.noise.sqnr_centred_db,
        }


@dataclass
class Repeats:
    """Whether an image gets the same answer whatever else is in its batch.

    Keeps the first answer of every image: float[images, classes], as precise as it came.
    """

    first: dict[int, Floats] = field(default_factory=dict)

    def add(self, indices: NDArray[np.int64], candidate: Floats) -> float:
        """Add a batch.

        Args:
            indices: int64[N], the position of each image in the whole set.
            candidate: float[N, classes].

        Returns:
            The largest |difference| from the first answers; infinite where one is not finite.
        """
        worst = 0.0
        for index, row in zip(indices.tolist(), candidate, strict=True):
            first = self.first.setdefault(index, row.copy())
            with np.errstate(invalid="ignore", over="ignore"):
                difference = float(np.abs(row - first).max())
            worst = max(worst, difference if math.isfinite(difference) else math.inf)
        return worst


def rows(values: Floats) -> Doubles:
    """Flatten each image's answer: float[N, ...] -> float64[N, values]."""
    return values.reshape(len(values), -1).astype(np.float64)


def cosine(left: Doubles, right: Doubles) -> Doubles:
    """Cosine of each pair of rows; 0 where a row is zero or not finite."""
    with np.errstate(invalid="ignore", divide="ignore"):
        norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
        value = (left * right).sum(axis=1) / norms
    return np.where(np.isfinite(value), value, 0.0)


def kl_divergence(expected: Doubles, candidate: Doubles) -> Doubles:
    """KL(softmax(expected) || softmax(candidate)) of each pair of rows.

    Args:
        expected: float64[N, classes], finite logits.
        candidate: float64[N, classes].

    Returns:
        float64[N] in nats, at least 0; infinite where `candidate` is not finite.
    """
    usable = np.isfinite(candidate)
    log_p = log_softmax(expected)
    log_q = log_softmax(np.where(usable, candidate, 0.0))
    divergence = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    # rounding can leave -1e-17
    return np.where(usable.all(axis=1), np.maximum(divergence, 0.0), np.inf)


def decision_divergence(expected: Doubles, candidate: Doubles) -> Doubles:
    """kl_divergence of sigmoid scores, mean over the classes.

    Each class is a yes or no of its own: the softmax of its logit beside 0.
    """

    def decisions(logits: Doubles) -> Doubles:
        return np.stack([logits, np.zeros_like(logits)], axis=-1).reshape(-1, 2)

    each = kl_divergence(decisions(expected), decisions(candidate))
    mean: Doubles = each.reshape(expected.shape).mean(axis=1)
    return mean


def log_softmax(logits: Doubles) -> Doubles:
    """Logarithm of the softmax of each row, without overflow: float64[N, classes]."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: Doubles = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def decibels(signal: float, noise: float) -> float:
    """Express a ratio of powers in dB, within +-LARGEST_DB; no noise at all is LARGEST_DB."""
    if noise == 0:
        return LARGEST_DB
    if signal == 0 or math.isinf(noise):
        return -LARGEST_DB
    return min(max(10 * math.log10(signal / noise), -LARGEST_DB), LARGEST_DB)


def finite(value: float) -> float | None:
    """Keep a number that JSON can hold."""
    return value if math.isfinite(value) else None
