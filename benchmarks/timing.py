"""Timing within one script: calls that take turns, their medians, and ratios with intervals.

Machines differ and change under load, so a speed is a ratio of two things that were timed in turn.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from vit_edge import cli
from vit_edge.bench.report.cells import ms
from vit_edge.bench.results.percentiles import Estimate

DRAWS = 2000  # of the bootstrap; its quantiles are then good to half a per cent


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
    """The seconds that each measure returns, `rounds` times around after `warmup` rounds."""
    taken: dict[str, list[float]] = {name: [] for name in measures}
    for turn in range(warmup + rounds):
        for name, measure in measures.items():
            took = measure()
            if turn >= warmup:
                taken[name].append(took)
    return taken


def ratio(values: Sequence[float], baseline: Sequence[float]) -> Estimate:
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
    return Estimate(float(np.median(ours) / np.median(theirs)), float(low), float(high))


def report(taken: Mapping[str, list[float]], baseline: str, bar: float | None = None) -> str:
    """Medians in ms, and each one's ratio to the baseline, as a table."""
    rows = [("", "median ms", "min ms", "ratio", "95 % interval")]
    for name, values in taken.items():
        times = ratio(values, taken[baseline])
        rows.append(
            (
                name, ms(1e3 * statistics.median(values)), ms(1e3 * min(values)),
                f"{times.value:.3f}", f"{times.low:.3f} to {times.high:.3f}",
            )
        )  # fmt: skip
    last = "" if bar is None else f"\nbar: at most {bar} x {baseline}"
    return cli.table(rows) + last
