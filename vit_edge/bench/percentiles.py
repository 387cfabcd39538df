"""Percentiles of latencies with their intervals, and how many samples a percentile needs.

Samples of one process are alike in what differs between processes (memory layout, what else the
machine does), so intervals of a configuration come from its processes: pyperf's reason to start
several (pyperf.readthedocs.io, "How to get reproducible benchmark results").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Statistic = Callable[[NDArray[np.float64]], float]

PERCENTILES = (0.5, 0.9, 0.95, 0.99)

# MLPerf Inference, "Number of queries": margin a twentieth of what lies above the percentile, and
# 99 % confidence (arXiv:1911.02549, table 4); rounded up to a multiple of 2**13, as there.
_CONFIDENCE_Z = 2.5758293035489004  # of 99 %, both sides
_MLPERF_UNIT = 2**13
_TAIL = 10  # samples beyond the percentile, else it is an extreme and no percentile


class Estimate(NamedTuple):
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"


def samples_needed(percentile: float, *, strict: bool = False) -> int:
    """How many samples a percentile needs.

    Args:
        percentile: Between 0 and 1.
        strict: As many as MLPerf asks for (24,576 for p90); else so many that ten lie beyond it.
    """
    beyond = 1 - percentile
    if not strict:
        return math.ceil(round(_TAIL / min(beyond, percentile), 6))
    margin = beyond / 20
    count = _CONFIDENCE_Z**2 * percentile * beyond / margin**2
    return math.ceil(count / _MLPERF_UNIT) * _MLPERF_UNIT


def percentile(processes: Sequence[Sequence[float]], q: float) -> Estimate:
    """A percentile of all samples, its interval by drawing processes, and samples in them, again.

    Args:
        processes: The samples of each process.
        q: Between 0 and 1.
    """
    return estimate(processes, lambda values: float(np.quantile(values, q)))


def mean(processes: Sequence[Sequence[float]]) -> Estimate:
    """The mean of all samples, with its interval."""
    return estimate(processes, lambda values: float(np.mean(values)))


def estimate(processes: Sequence[Sequence[float]], of: Statistic) -> Estimate:
    """A statistic of each process, its middle, and an interval from how processes differ.

    With one process there is nothing to tell from how they differ: its samples are drawn again,
    in blocks, since neighbours are alike.

    Args:
        processes: The samples of each process, positive; at least one sample in all.
        of: What of a process's samples is wanted.
    """
    filled = [np.asarray(samples, float) for samples in processes if len(samples)]
    if not filled:
        raise ValueError("no samples")
    each = np.array([of(samples) for samples in filled])
    value = float(np.median(each))
    if len(filled) == 1:
        drawn = np.array([of(again) for again in _blocks_again(filled[0])])
        low, high = np.quantile(drawn, [0.025, 0.975])
        return Estimate(value, float(min(low, value)), float(max(high, value)))
    logs = np.log(each)  # times are positive, and differ by factors
    half = student(len(each) - 1) * float(np.std(logs, ddof=1)) / math.sqrt(len(each))
    centre = float(np.mean(logs))
    low, high = math.exp(centre - half), math.exp(centre + half)
    return Estimate(value, min(low, value), max(high, value))


def _blocks_again(samples: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """A moving-block bootstrap (Kuensch 1989), blocks of the cube root of the length."""
    count = len(samples)
    length = max(1, round(count ** (1 / 3)))
    random = np.random.default_rng(0)
    starts = random.integers(0, count - length + 1, (200, math.ceil(count / length)))
    offsets = np.arange(length)
    return [samples[(row[:, None] + offsets).ravel()[:count]] for row in starts]


# 97.5 % quantiles of Student's t by degrees of freedom (NIST/SEMATECH e-Handbook, 1.3.6.7.2)
_STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
)  # fmt: skip


def student(degrees: int) -> float:
    """The 97.5 % quantile of Student's t, to 1 %."""
    return _STUDENT[degrees - 1] if degrees <= len(_STUDENT) else 1.96 + 2.5 / degrees
