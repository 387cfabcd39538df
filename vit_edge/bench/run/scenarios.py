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
_WARMUP_S = 10.0  # then shorter windows are compared, and it is measured all the same
_LEAST_WINDOW = 2
_OVERLOADED = 0.98  # of the time busy: more than arrives at random can be waited for

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
        overloaded: Queries came faster than they were answered: their latencies grow with time.
    """

    latencies_ms: list[float]
    seconds: float
    images: int
    warmup_runs: int
    stable: bool
    enough: bool
    overloaded: bool = False


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

    Latencies count from arrivals. What the queue still holds when the time is up is not answered,
    and not counted.

    Args:
        query: Answers one query.
        images: Of one query.
        rate: Queries a second.
        limits: When to stop.
        seed: Of the arrivals.
        around: Entered after the warm-up.

    Raises:
        Exception: What a query raised.
    """
    warmup_runs, stable = warmed_up(query)
    random = np.random.default_rng(seed)
    waiting: queue.SimpleQueue[float | None] = queue.SimpleQueue()
    latencies_ms: list[float] = []
    busy_s = 0.0
    failed: list[BaseException] = []

    def serve() -> None:
        nonlocal busy_s
        try:
            while (arrived := waiting.get()) is not None and not limits.late():
                before = time.perf_counter()
                query()
                now = time.perf_counter()
                latencies_ms.append(1e3 * (now - arrived))
                busy_s += now - before
        except BaseException as error:  # raised where it can be seen, below
            failed.append(error)

    with around:
        server = threading.Thread(target=serve)
        server.start()
        started = due = time.perf_counter()
        sent = 0
        try:
            while not limits.reached(sent, due - started) and not failed:
                due += float(random.exponential(1 / rate))
                time.sleep(max(0.0, due - time.perf_counter()))
                waiting.put(due)  # it has arrived then, however late we are
                sent += 1
        finally:
            waiting.put(None)
            server.join()
        seconds = time.perf_counter() - started
    if failed:
        raise failed[0]
    answered = len(latencies_ms)
    return Sampled(
        latencies_ms, seconds, images * answered, warmup_runs, stable, answered >= limits.samples,
        overloaded=answered < sent or busy_s > _OVERLOADED * seconds,
    )  # fmt: skip
