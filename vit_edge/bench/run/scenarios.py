"""What is sampled of queries that come back to back: latencies, and images in a time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

_WINDOW = 10  # runs whose median is compared with that of those before
_STABLE = 0.02  # two windows that differ by less are the same
_WARMUP_S = 10.0  # then shorter windows are compared, and it is measured all the same
_LEAST_WINDOW = 2

Query = Callable[[], object]
Around = AbstractContextManager[object]  # what is done around that which is timed
_NOTHING = nullcontext()


@dataclass(frozen=True)
class Sampled:
    """What came of one process.

    Attributes:
        latencies_ms: Of each query.
        seconds: From the first query to the last answer.
        images: Answered in that time.
        warmup_runs: Before it.
        stable: Whether the last runs of the warm-up were as fast as those before them.
        enough: Whether there are as many samples as were asked for.
    """

    latencies_ms: list[float]
    seconds: float
    images: int
    warmup_runs: int
    stable: bool
    enough: bool


@dataclass(frozen=True)
class Limits:
    """When a process has enough."""

    samples: int
    at_least_s: float
    most_s: float
    started: float = field(default_factory=time.perf_counter)

    def reached(self, samples: int, seconds: float) -> bool:
        """Whether to stop."""
        enough = samples >= self.samples and seconds >= self.at_least_s
        return enough or self.late()

    def late(self) -> bool:
        """Whether the process has had all its time."""
        return time.perf_counter() - self.started > self.most_s


def warmed_up(query: Query) -> tuple[int, bool]:
    """Run until it gets no faster: how many runs that took, and whether it came to rest.

    Ten runs are compared with the ten before them; of runs so slow that ten seconds hold fewer,
    those that there are: at least two with two.
    """
    taken: list[float] = []
    started = time.perf_counter()
    while True:
        before = time.perf_counter()
        query()
        taken.append(time.perf_counter() - before)
        late = time.perf_counter() - started > _WARMUP_S
        window = min(_WINDOW, len(taken) // 2) if late else _WINDOW
        if len(taken) < 2 * max(window, _LEAST_WINDOW):
            continue
        last = statistics.median(taken[-window:])
        previous = statistics.median(taken[-2 * window : -window])
        stable = abs(last - previous) <= _STABLE * previous
        if stable or late:
            return len(taken), stable


def one_after_another(
    query: Query, images: int, limits: Limits, around: Around = _NOTHING
) -> Sampled:
    """Answer one query after another: single-stream, and offline with nothing to wait for.

    Args:
        query: Answers one query.
        images: Of one query.
        limits: When to stop.
        around: Entered after the warm-up.
    """
    warmup_runs, stable = warmed_up(query)
    with around:
        latencies_ms, seconds = timed(query, limits)
    return Sampled(
        latencies_ms, seconds, images * len(latencies_ms), warmup_runs, stable,
        len(latencies_ms) >= limits.samples,
    )  # fmt: skip


def timed(query: Query, limits: Limits) -> tuple[list[float], float]:
    """Run back to back, without any warm-up.

    Args:
        query: Answers one query.
        limits: When to stop.

    Returns:
        The milliseconds of each run, and the seconds of all.
    """
    latencies_ms: list[float] = []
    clock = time.perf_counter
    started = before = clock()
    while not limits.reached(len(latencies_ms), before - started):
        query()
        now = clock()
        latencies_ms.append(1e3 * (now - before))
        before = now
    return latencies_ms, before - started
