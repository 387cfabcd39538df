"""Accuracy from true and predicted classes, with how sure it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vit_edge.evaluate.answers import TOP, Answers
from vit_edge.parity.intervals import mcnemar_interval, mcnemar_p_value, wilson_interval

WORST = 10  # classes shown
CONFUSED = 3  # wrong answers shown of each


def rate(successes: int, trials: int) -> dict[str, Any]:
    """A share of images and its 95 % interval (Wilson), ready for JSON."""
    return {
        "count": successes,
        "images": trials,
        "rate": successes / trials if trials else None,
        "interval": list(wilson_interval(successes, trials)),
    }


def accuracy(answers: Answers, classes: int) -> dict[str, Any]:
    """Top-1 and top-5 accuracy; top-5 is None where there are no more than 5 classes."""
    images = int(answers.read.sum())
    return {
        "top1": rate(int(answers.right.sum()), images),
        "top5": rate(int(answers.in_top.sum()), images) if classes > TOP else None,
    }


def drop(candidate: Answers, reference: Answers) -> dict[str, Any]:
    """What was lost against a reference, over the images that both answered.

    Returns:
        How often both choose the same class; how many images only the reference, or only the
        candidate, gets right; the drop of top-1 with its 95 % interval, and McNemar's p value.
    """
    both = candidate.read & reference.read
    images = int(both.sum())
    lost = int((both & reference.right & ~candidate.right).sum())
    won = int((both & candidate.right & ~reference.right).sum())
    return {
        "agreement": rate(int((both & (candidate.chosen == reference.chosen)).sum()), images),
        "lost": lost,
        "won": won,
        "top1_drop": (lost - won) / images if images else None,
        "top1_drop_interval": list(mcnemar_interval(lost, won, images)),
        "mcnemar_p_value": mcnemar_p_value(lost, won),
    }


def worst_classes(answers: Answers, labels: Sequence[str]) -> list[dict[str, Any]]:
    """The classes whose images are recognised least, and what they are taken for instead.

    Args:
        answers: Of the model.
        labels: One per class.

    Returns:
        Up to WORST classes, the least recall first; none that has no images, nor one without
        mistakes.
    """
    read, right = answers.read, answers.right
    images = np.bincount(answers.labels[read], minlength=len(labels))
    correct = np.bincount(answers.labels[right], minlength=len(labels))
    mistaken = np.flatnonzero(correct < images)
    order = np.lexsort((mistaken, -images[mistaken], correct[mistaken] / images[mistaken]))
    worst = []
    for index in mistaken[order][:WORST].tolist():
        wrong = answers.chosen[read & ~right & (answers.labels == index)]
        taken, counts = np.unique(wrong, return_counts=True)
        most = np.lexsort((taken, -counts))[:CONFUSED]
        worst.append(
            {
                "class": index,
                "label": labels[index],
                "recall": rate(int(correct[index]), int(images[index])),
                "taken_for": [
                    {"class": int(taken[i]), "label": labels[taken[i]], "count": int(counts[i])}
                    for i in most
                ],
            }
        )
    return worst
