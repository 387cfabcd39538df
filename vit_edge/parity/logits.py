"""How far the candidate's classification lies from the reference's: agreement, flips, accuracy.

What is compared follows the manifest's `scores`. softmax: the class with the largest logit.
sigmoid: for each class whether its score reaches 50 %, that is, its logit 0.
none: the values alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vit_edge.bundle.manifest import Scores
from vit_edge.parity.intervals import mcnemar_interval, mcnemar_p_value, wilson_interval
from vit_edge.parity.statistics import (
    Difference,
    Doubles,
    Floats,
    Repeats,
    decision_divergence,
    finite,
    kl_divergence,
    rows,
)

TOP = 5  # the other rank that ImageNet results are reported at (ILSVRC, arXiv:1409.0575, 4.1)
RANKED = 10  # of the reference's classes, whose order is compared: what a user is ever shown
FLIPS_SHOWN = 5  # enough to look at by hand
UNKNOWN = -1  # the label of an image that has none


class Flip(NamedTuple):
    """An image that gets another class than the reference's, or a class with another decision."""

    image: int
    reference_class: int  # of sigmoid scores -1 where the reference says no and the candidate yes
    candidate_class: int  # -1 where the candidate says no, or its answer holds NaN or Inf
    # Of the reference's logits: its own class minus the candidate's; of sigmoid scores how far the
    # logit of that class is from 0.
    margin: float


@dataclass
class LogitComparison:
    """Running comparison of logits over many images, in float64.

    `add` takes a batch. Kept are running sums, the flips, and two numbers per image. An image that
    comes a second time counts for the extremes of `difference` only.

    Margins are given relative to `spread`, the root mean square of what varies from image to image
    in the reference's logits. The signal of sqnr_centred_db has the same scale. So the noise which
    a limit allows also says how large a margin it can flip.
    """

    scores: Scores = "softmax"  # what is made of the logits
    repeats: Repeats | None = None  # shared between batch sizes, to compare them; None: not asked
    batch_diff: float = 0.0  # the largest |difference| from an image's first answer
    difference: Difference = field(default_factory=Difference)
    top1: int = 0  # images where both choose the same class, or decide every class alike
    rank_correlation: float = 0.0  # summed over the images
    top5: int = 0  # images where the reference's class is among the candidate's five largest
    divergences: list[float] = field(default_factory=list)  # one per image, in nats
    reference_margins: list[float] = field(default_factory=list)  # one per image; `top_margin`
    kl_worst_image: int = -1
    kl_max: float = -1.0
    flips: list[Flip] = field(default_factory=list)
    labelled: int = 0
    right: int = 0  # the candidate, of the labelled images
    lost: int = 0  # the reference right, the candidate wrong
    won: int = 0  # the reverse

    def add(
        self,
        indices: NDArray[np.int64],
        candidate: Floats,
        expected: Floats,
        labels: NDArray[np.int64] | None = None,
    ) -> None:
        """Add a batch.

        Args:
            indices: int64[N], the position of each image in the whole set.
            candidate: float[N, classes], the candidate's logits.
            expected: float[N, classes], the reference's, finite.
            labels: int64[N], the true classes; -1 where unknown.
        """
        if self.repeats is not None:
            self.batch_diff = max(self.batch_diff, self.repeats.add(indices, candidate))
        fresh = self.difference.add(indices, candidate, expected)
        if not fresh.any() or self.scores == "none":
            return
        images, left, right = indices[fresh], rows(candidate)[fresh], rows(expected)[fresh]
        self.rank_correlation += float(rank_correlation(left, right).sum())
        if self.scores == "sigmoid":
            self._add_decisions(images, left, right)
            return
        whole = np.isfinite(left).all(axis=1)
        theirs = right.argmax(axis=1)
        ours = np.where(whole, left.argmax(axis=1), -1)
        self.top1 += int(np.count_nonzero(ours == theirs))
        self.top5 += int(np.count_nonzero(whole & (rank(left, theirs) < TOP)))
        self.reference_margins += top_margin(right).tolist()
        self._add_divergences(images, kl_divergence(right, left))
        self._add_flips(images, ours, theirs, right)
        if labels is not None:
            self._add_labels(ours, theirs, labels[fresh])

    def _add_decisions(
        self, images: NDArray[np.int64], candidate: Doubles, expected: Doubles
    ) -> None:
        """Compare sigmoid scores; the labels of folders say nothing of the other classes."""
        self.reference_margins += np.abs(expected).min(axis=1).tolist()
        self._add_divergences(images, decision_divergence(expected, candidate))
        for row, image in enumerate(images.tolist()):
            place, margin = largest_decision_flip(candidate[row], expected[row])
            if place < 0:
                self.top1 += 1
                continue
            theirs = place if expected[row, place] >= 0 else -1
            broken = not np.isfinite(candidate[row]).all()
            ours = -1 if broken or theirs >= 0 else place
            self.flips.append(Flip(image, theirs, ours, margin))

    def _add_divergences(self, images: NDArray[np.int64], divergences: Doubles) -> None:
        self.divergences += divergences.tolist()
        if divergences.max() > self.kl_max:
            self.kl_max = float(divergences.max())
            self.kl_worst_image = int(images[divergences.argmax()])

    def _add_flips(
        self,
        images: NDArray[np.int64],
        ours: NDArray[np.int64],
        theirs: NDArray[np.int64],
        expected: Doubles,
    ) -> None:
        for row in np.flatnonzero(ours != theirs).tolist():
            logits = expected[row]
            chosen = logits[ours[row]] if ours[row] >= 0 else logits.min()
            margin = float(logits[theirs[row]] - chosen)
            self.flips.append(Flip(int(images[row]), int(theirs[row]), int(ours[row]), margin))

    def _add_labels(
        self, ours: NDArray[np.int64], theirs: NDArray[np.int64], labels: NDArray[np.int64]
    ) -> None:
        known = labels != UNKNOWN
        right, reference_right = known & (ours == labels), known & (theirs == labels)
        self.labelled += int(np.count_nonzero(known))
        self.right += int(np.count_nonzero(right))
        self.lost += int(np.count_nonzero(reference_right & ~right))
        self.won += int(np.count_nonzero(right & ~reference_right))

    def relative_margin(self, margin: float) -> float | None:
        """A margin in units of the spread; None where the reference's logits do not vary."""
        spread = self.difference.noise.spread
        if margin == 0:
            return 0.0
        return margin / spread if spread else None

    def summary(self) -> dict[str, Any]:
        """Every statistic by its name, ready for JSON: None where it is infinite or undefined.

        Of values, there is no more than of any output and batch_relative. Of sigmoid scores:

        top1_agreement: share of images for which every class is decided alike.
        kl_mean, kl_median, kl_max: of each class's yes and no, mean over the classes.
        reference_margin_median: how far the logit nearest to 0 is from it.
        top5_agreement and accuracy: there are none.

        Of softmax:

        top1_agreement: share of images with the largest logit at the reference's class.
        top5_agreement: share of images whose reference class is among the candidate's five largest
            logits, as in top-5 accuracy with the reference for a label; 1 for up to five classes.
        rank_correlation_mean: Spearman's, of the reference's ten largest logits, or all of them
            with the candidate's of the same classes; 1 where all stand in the same order.
        kl_mean, kl_median, kl_max: KL(softmax(reference) || softmax(candidate)) in nats.
        reference_margin_median: how far the reference's first class leads its second, relative to
            the spread: where it is small, agreement says little.
        flip_margin_max: the largest relative margin of a flip; 0 without flips.
        margin_weighted_flips: the sum of the flips' relative margins over the number of images:
            what the candidate's choice costs on average, judged by the reference's logits.
        batch_relative: the largest |difference| between two answers to one image, in batches of
            other sizes or other images, over max |reference|; None unless `repeats` was given.
        """
        summary = self.difference.summary() | {"batch_relative": self._batch_relative()}
        if self.scores != "softmax":
            summary["scores"] = self.scores
        return summary if self.scores == "none" else summary | self._classification()

    def _classification(self) -> dict[str, Any]:
        images = self.difference.images
        divergences = np.array(self.divergences)
        margins = [flip.margin for flip in self.flips]
        weighted = self.relative_margin(math.fsum(margins))
        top5 = {
            "top5_agreement": self.top5 / images if images else None,
            "top5_agreement_interval": list(wilson_interval(self.top5, images)),
        }
        return {
            "top1_agreement": self.top1 / images if images else None,
            "top1_agreement_interval": list(wilson_interval(self.top1, images)),
            **(top5 if self.scores == "softmax" else {}),
            "rank_correlation_mean": self.rank_correlation / images if images else None,
            "kl_mean": finite(float(divergences.mean())) if images else None,
            "kl_median": finite(float(np.median(divergences))) if images else None,
            "kl_max": finite(self.kl_max) if images else None,
            "kl_worst_image": self.kl_worst_image,
            "reference_margin_median": (
                self.relative_margin(float(np.median(self.reference_margins))) if images else None
            ),
            "flips": len(self.flips),
            "flip_margin_max": self.relative_margin(max(margins, default=0.0)),
            "margin_weighted_flips": None if weighted is None else weighted / max(images, 1),
            "worst_flips": self._worst_flips(),
            **(self._accuracy() if self.labelled else {}),
        }

    def _batch_relative(self) -> float | None:
        largest = self.difference.max_abs_reference
        return None if self.repeats is None or not largest else finite(self.batch_diff / largest)

    def _worst_flips(self) -> list[dict[str, Any]]:
        worst = sorted(self.flips, key=lambda flip: (-flip.margin, flip.image))[:FLIPS_SHOWN]
        return [
            flip._asdict() | {"relative_margin": self.relative_margin(flip.margin)}
            for flip in worst
        ]

    def _accuracy(self) -> dict[str, Any]:
        reference_right = self.right + self.lost - self.won
        return {
            "labelled": self.labelled,
            "accuracy": self.right / self.labelled,
            "accuracy_interval": list(wilson_interval(self.right, self.labelled)),
            "reference_accuracy": reference_right / self.labelled,
            "accuracy_drop": (self.lost - self.won) / self.labelled,
            "accuracy_drop_interval": list(mcnemar_interval(self.lost, self.won, self.labelled)),
            "lost": self.lost,
            "won": self.won,
            "mcnemar_p": mcnemar_p_value(self.lost, self.won),
        }


def largest_decision_flip(candidate: Doubles, expected: Doubles) -> tuple[int, float]:
    """Find the class whose yes or no differs, by the largest margin of the reference.

    Args:
        candidate: float64[classes]; one that holds NaN or Inf decides nothing.
        expected: float64[classes], finite.

    Returns:
        The class and |expected| there; -1 and 0 where all decisions are the same.
    """
    different = (candidate >= 0) != (expected >= 0)
    if not np.isfinite(candidate).all():
        different = np.ones_like(different)
    if not different.any():
        return -1, 0.0
    margins = np.where(different, np.abs(expected), -1.0)
    return int(margins.argmax()), float(margins.max())


def rank(logits: Doubles, classes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count the classes ranked before a given one; of equal logits the first class leads.

    Args:
        logits: float64[N, classes].
        classes: int64[N].

    Returns:
        int64[N], 0 where the class is the row's argmax.
    """
    own = np.take_along_axis(logits, classes[:, None], axis=1)
    earlier = np.arange(logits.shape[1]) < classes[:, None]
    result: NDArray[np.int64] = ((logits > own) | ((logits == own) & earlier)).sum(axis=1)
    return result


def rank_correlation(candidate: Doubles, expected: Doubles) -> Doubles:
    """Spearman's rank correlation over the RANKED largest of each row of `expected`.

    Args:
        candidate: float64[N, classes].
        expected: float64[N, classes], finite.

    Returns:
        float64[N] in -1..1; 1 for a single class, 0 where `candidate` is not finite. Of equal
        logits the first class leads.
    """
    count = min(RANKED, expected.shape[1])
    if count < 2:
        return np.ones(len(expected))
    first = np.argsort(-expected, axis=1, kind="stable")[:, :count]
    theirs = np.take_along_axis(candidate, first, axis=1)
    places = np.argsort(np.lexsort((first, -theirs), axis=1), axis=1)
    squares = np.square(places - np.arange(count)).sum(axis=1)
    correlation = 1 - 6 * squares / (count * (count**2 - 1))
    return np.where(np.isfinite(candidate).all(axis=1), correlation, 0.0)


def top_margin(logits: Doubles) -> Doubles:
    """How far each row's largest logit leads its second: float64[N]; 0 for a single class."""
    if logits.shape[1] < 2:
        return np.zeros(len(logits))
    second, first = np.partition(logits, -2, axis=1)[:, -2:].T
    return np.asarray(first - second)
