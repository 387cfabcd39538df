"""Timing calls."""

from __future__ import annotations

import time
from collections.abc import Callable


def seconds(call: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def repeated(
    call: Callable[[], object], *, at_least_s: float, at_least_runs: int, warmup_runs: int
) -> list[float]:
    """Seconds of each call: as many as the time allows, and no fewer than asked for."""
    for _ in range(warmup_runs):
        call()
    found: list[float] = []
    while len(found) < at_least_runs or sum(found) < at_least_s:
        found.append(seconds(call))
    return found
