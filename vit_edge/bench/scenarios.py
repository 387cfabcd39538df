"""How queries come, and what is sampled of them: latencies, and images in a time."""

from __future__ import annotations

import queue
import statistics
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np

_WINDOW = 10  # runs whose median is compared with that of those before
_STABLE = 0.02  # two windows that differ by less are the same
_WARMUP_S = 10.0  # then it is measured all the same, and told

Query = Callable[[], object]
Around = AbstractContextManager[object]  # what is done around that which is timed
_NOTHING = nullcontext()


@dataclass(frozen=True)
class Sampled:
    """What came of one process.

    Attributes:
        latencies_ms: Of each query, from its arrival to its answer.
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
        return enough or time.perf_counter() - self.started > self.most_s


def warmed_up(query: Query) -> tuple[int, bool]:
    """Run until it gets no faster: how many runs that took, and whether it came to rest."""
    taken: list[float] = []
    started = time.perf_counter()
    while True:
        before = time.perf_counter()
        query()
        taken.append(time.perf_counter() - before)
        if len(taken) >= 2 * _WINDOW:
            last = statistics.median(taken[-_WINDOW:])
            previous = statistics.median(taken[-2 * _WINDOW : -_WINDOW])
            if abs(last - previous) <= _STABLE * previous:
                return len(taken), True
        if time.perf_counter() - started > _WARMUP_S:
            return len(taken), False


def one_after_another(
    query: Query, images: int, limits: Limits, around: Around = _NOTHING
) -> Sampled:
    """Single-stream and multi-stream, and offline with nothing to wait for: back to back.

    Args:
        query: Answers one query.
        images: Of one query.
        limits: When to stop.
        around: Entered after the warm-up.
    """
    warmup_runs, stable = warmed_up(query)
    latencies_ms: list[float] = []
    clock = time.perf_counter
    with around:
        started = before = clock()
        while not limits.reached(len(latencies_ms), before - started):
            query()
            now = clock()
            latencies_ms.append(1e3 * (now - before))
            before = now
    return Sampled(
        latencies_ms, before - started, images * len(latencies_ms), warmup_runs, stable,
        len(latencies_ms) >= limits.samples,
    )  # fmt: skip


def at_random(
    query: Query,
    images: int,
    rate: float,
    limits: Limits,
    seed: int,
    around: Around = _NOTHING,
) -> Sampled:
    """Server: queries arrive as a Poisson process, whether the last one is answered or not.

    Args:
        query: Answers one query.
        images: Of one query.
        rate: Queries a second.
        limits: When to stop.
        seed: Of the arrivals.
        around: Entered after the warm-up.
    """
    warmup_runs, stable = warmed_up(query)
    random = np.random.default_rng(seed)
    waiting: queue.SimpleQueue[float | None] = queue.SimpleQueue()
    latencies_ms: list[float] = []

    def serve() -> None:
        while (arrived := waiting.get()) is not None:
            query()
            latencies_ms.append(1e3 * (time.perf_counter() - arrived))

    with around:
        server = threading.Thread(target=serve)
        server.start()
        started = due = time.perf_counter()
        sent = 0
        try:
            while not limits.reached(sent, due - started):
                due += float(random.exponential(1 / rate))
                time.sleep(max(0.0, due - time.perf_counter()))
                waiting.put(due)  # it has arrived then, however late we are
                sent += 1
        finally:
            waiting.put(None)
            server.join()
        seconds = time.perf_counter() - started
    enough = len(latencies_ms) >= limits.samples
    return Sampled(latencies_ms, seconds, images * sent, warmup_runs, stable, enough)
