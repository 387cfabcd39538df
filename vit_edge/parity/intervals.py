"""How sure a rate is: confidence intervals and an exact test, from counts alone."""

from __future__ import annotations

import math
from statistics import NormalDist

CONFIDENCE = 0.95  # the field's usual; two-sided


def wilson_interval(
    successes: int, trials: int, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Bound a rate, well also near 0 and 1 and for few trials.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference,
    JASA 22 (1927) 209-212; recommended by Brown, Cai, DasGupta, Statistical Science 16 (2001).

    Args:
        successes: How many of the trials succeeded.
        trials: How many there were; without any, nothing is known: (0, 1).
        confidence: Two-sided, between 0 and 1.

    Returns:
        The lower and the upper bound.
    """
    if not trials:
        return 0.0, 1.0
    z = quantile(confidence)
    rate = successes / trials
    centre = rate + z * z / (2 * trials)
    half = z * math.sqrt(rate * (1 - rate) / trials + (z / (2 * trials)) ** 2)
    scale = 1 + z * z / trials
    low = 0.0 if successes == 0 else (centre - half) / scale
    high = 1.0 if successes == trials else (centre + half) / scale
    return low, high


def trials_to_prove(rate: float, bound: float, confidence: float = CONFIDENCE) -> int | None:
    """Count the trials after which Wilson's interval of this rate no longer holds the bound.

    Wilson's interval is the score test turned round: it excludes `bound` once
    (rate - bound)^2 trials > z^2 bound (1 - bound).

    Returns:
        The least number of trials, or None where the rate is the bound itself.
    """
    if rate == bound:
        return None
    z = quantile(confidence)
    return math.floor(z * z * bound * (1 - bound) / (rate - bound) ** 2) + 1


def mcnemar_interval(
    lost: int, won: int, trials: int, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Bound the difference of two accuracies measured on the same images.

    The adjusted Wald interval: one discordant pair of each kind is added, which keeps its promise
    for few pairs, where Wald's collapses to a point.

    Source: D. G. Bonett, R. M. Price, Adjusted Wald confidence interval for a difference of
    binomial proportions based on paired data, J. Educ. Behav. Stat. 37 (2012) 479-488.

    Args:
        lost: Images the reference gets right and the candidate wrong.
        won: Images the candidate gets right and the reference wrong.
        trials: All images with a label; without any, nothing is known: (-1, 1).
        confidence: Two-sided, between 0 and 1.

    Returns:
        The lower and the upper bound of (lost - won) / trials, the drop in accuracy.
    """
    if not trials:
        return -1.0, 1.0
    z = quantile(confidence)
    p_lost, p_won = (lost + 1) / (trials + 2), (won + 1) / (trials + 2)
    drop = p_lost - p_won
    half = z * math.sqrt((p_lost + p_won - drop * drop) / (trials + 2))
    return max(-1.0, drop - half), min(1.0, drop + half)


def mcnemar_p_value(lost: int, won: int) -> float:
    """Test whether two classifiers are equally accurate, exactly and two-sided.

    Under that hypothesis each discordant image is a fair coin. Source: Q. McNemar, Psychometrika
    12 (1947) 153-157, with the binomial distribution itself instead of its approximation.

    Args:
        lost: Images the reference gets right and the candidate wrong.
        won: Images the candidate gets right and the reference wrong.

    Returns:
        The probability of a split at least as uneven; 1 without any discordant image.
    """
    tosses = lost + won
    log_all = math.lgamma(tosses + 1) - tosses * math.log(2)
    tail = math.fsum(
        math.exp(log_all - math.lgamma(k + 1) - math.lgamma(tosses - k + 1))
        for k in range(min(lost, won) + 1)
    )
    return min(1.0, 2 * tail)


def quantile(confidence: float) -> float:
    """Look up the standard normal quantile of a two-sided confidence: 1.96 for 0.95."""
    return NormalDist().inv_cdf((1 + confidence) / 2)
