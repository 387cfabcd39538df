"""Percentiles of latencies with their intervals, and how many samples a percentile needs.

Samples of one process are alike in what differs between processes: memory layout, what else the
machine does. So the intervals of a configuration come from its processes. pyperf starts several for
the same reason (pyperf.readthedocs.io, "How to get reproducible benchmark results").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Statistic = Callable[[NDArray[np.float64]], float | NDArray[np.float64]]

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
    """A percentile of all samples, with its interval: see `estimates`.

    Args:
        processes: The samples of each process.
        q: Between 0 and 1.
    """
    (found,) = percentiles(processes, [q])
    return found


def percentiles(processes: Sequence[Sequence[float]], qs: Sequence[float]) -> list[Estimate]:
    """Several percentiles at once, which takes little longer than one."""
    return estimates(processes, lambda values: np.quantile(values, qs))


def mean(processes: Sequence[Sequence[float]]) -> Estimate:
    """The mean of all samples, with its interval."""
    (found,) = estimates(processes, np.mean)
    return found


def estimates(processes: Sequence[Sequence[float]], of: Statistic) -> list[Estimate]:
    """Statistics of all samples, and intervals from how the processes' own differ.

    All samples together: those of one process are too few for a tail. With one process there is
    nothing to tell from how they differ: its samples are drawn again, in blocks, since neighbours
    are alike.

    Args:
        processes: The samples of each process, positive; at least one sample in all.
        of: What of a process's samples is wanted: a number, or several.
    """
    filled = [np.asarray(samples, float) for samples in processes if len(samples)]
    if not filled:
        raise ValueError("no samples")
    values = np.atleast_1d(of(np.concatenate(filled)))
    if len(filled) == 1:
        drawn = np.array([np.atleast_1d(of(again)) for again in _blocks_again(filled[0])])
        lows, highs = np.quantile(drawn, [0.025, 0.975], axis=0)
    else:
        # [processes, statistics]; times are positive, and differ by factors
        logs = np.log([np.atleast_1d(of(samples)) for samples in filled])
        half = student(len(filled) - 1) * np.std(logs, axis=0, ddof=1) / math.sqrt(len(filled))
        lows, highs = values * np.exp(-half), values * np.exp(half)
    ends = zip(values.tolist(), lows.tolist(), highs.tolist(), strict=True)
    return [Estimate(value, min(low, value), max(high, value)) for value, low, high in ends]


def _blocks_again(samples: NDArray[np.float64]) -> Iterator[NDArray[np.float64]]:
    """A moving-block bootstrap (Kuensch 1989), blocks of the cube root of the length."""
    count = len(samples)
    length = max(1, round(count ** (1 / 3)))
    random = np.random.default_rng(0)
    starts = random.integers(0, count - length + 1, (200, math.ceil(count / length)))
    offsets = np.arange(length)
    return (samples[(row[:, None] + offsets).ravel()[:count]] for row in starts)


# 97.5 % quantiles of Student's t by degrees of freedom (NIST/SEMATECH e-Handbook, 1.3.6.7.2)
_STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
)  # fmt: skip


def student(degrees: int) -> float:
    """The 97.5 % quantile of Student's t, to 1 %."""
    return _STUDENT[degrees - 1] if degrees <= len(_STUDENT) else 1.96 + 2.5 / degrees
