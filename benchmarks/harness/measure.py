"""Timing: calls that take turns, their medians, and ratios with intervals.

Machines differ and change under load, so a speed is a ratio of two things that were timed in turn.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

DRAWS = 2000  # of the bootstrap; its quantiles are then good to half a per cent


class Ratio(NamedTuple):
    """How long something takes, relative to something else."""

    value: float  # of the medians
    low: float  # 95 % interval
    high: float


def seconds(call: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def timings(
    candidates: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 2
) -> dict[str, list[float]]:
    """Seconds of each call, `rounds` times around the candidates after `warmup` rounds."""
    return turns(
        {name: partial(seconds, call) for name, call in candidates.items()}, rounds, warmup
    )


def turns(
    measures: Mapping[str, Callable[[], float]], rounds: int, warmup: int = 2
) -> dict[str, list[float]]:
    """What each measures, such as a worker's seconds, `rounds` times around after `warmup`."""
    found: dict[str, list[float]] = {name: [] for name in measures}
    for turn in range(warmup + rounds):
        for name, measure in measures.items():
            took = measure()
            if turn >= warmup:
                found[name].append(took)
    return found


def ratio(values: Sequence[float], baseline: Sequence[float]) -> Ratio:
    """The ratio of two medians, with its interval.

    The interval comes from drawing the rounds again (a paired bootstrap), so that what a round's
    neighbours share cancels out.

    Args:
        values: Seconds, one for each round.
        baseline: Seconds of the same rounds.
    """
    ours, theirs = np.array(values), np.array(baseline)
    picks = np.random.default_rng(0).integers(0, len(theirs), (DRAWS, len(theirs)))
    drawn = np.median(ours[picks], axis=1) / np.median(theirs[picks], axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Ratio(float(np.median(ours) / np.median(theirs)), float(low), float(high))


def report(found: Mapping[str, list[float]], baseline: str, bar: float | None = None) -> str:
    """Medians in ms, and each one's ratio to the baseline, as a table."""
    lines = [f"{'':<28} {'median ms':>10} {'min ms':>8} {'ratio':>7}   95 % interval"]
    for name, values in found.items():
        value, low, high = ratio(values, found[baseline])
        lines.append(
            f"{name:<28} {statistics.median(values) * 1e3:>10.1f} {min(values) * 1e3:>8.1f} "
            f"{value:>7.3f}   {low:.3f} to {high:.3f}"
        )
    if bar is not None:
        lines.append(f"bar: at most {bar} x {baseline}")
    return "\n".join(lines)
