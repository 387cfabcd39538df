"""Compare things that take time, taking turns, so that a noisy machine hurts all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import numpy as np


def timings(
    candidates: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 2
) -> dict[str, list[float]]:
    """Seconds of each call, `rounds` times around the candidates after `warmup` rounds."""
    found: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(warmup + rounds):
        for name, call in candidates.items():
            start = time.perf_counter()
            call()
            if turn >= warmup:
                found[name].append(time.perf_counter() - start)
    return found


def report(found: Mapping[str, list[float]], baseline: str, bar: float | None = None) -> str:
    """Medians in ms, and each one's ratio to the baseline.

    The ratio is that of the medians; its interval comes from drawing the rounds again 2,000 times
    (a paired bootstrap), so that what a round's neighbours share cancels out.
    """
    lines = [f"{'':<28} {'median ms':>10} {'min ms':>8} {'ratio':>7}   95 % interval"]
    rng = np.random.default_rng(0)
    base = np.array(found[baseline])
    for name, seconds in found.items():
        values = np.array(seconds)
        ratio = float(np.median(values) / np.median(base))
        picks = rng.integers(0, len(base), (2000, len(base)))
        drawn = np.median(values[picks], axis=1) / np.median(base[picks], axis=1)
        low, high = np.quantile(drawn, [0.025, 0.975])
        lines.append(
            f"{name:<28} {statistics.median(seconds) * 1e3:>10.1f} {min(seconds) * 1e3:>8.1f} "
            f"{ratio:>7.3f}   {low:.3f} to {high:.3f}"
        )
    if bar is not None:
        lines.append(f"bar: at most {bar} x {baseline}")
    return "\n".join(lines)
