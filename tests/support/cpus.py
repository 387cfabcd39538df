"""The CPUs of one worker of pytest-xdist.

Workers that all compute on every CPU spend half of their time waiting in each other's way: the
thread pools of NumPy, PyTorch and the runtimes spin. So each worker keeps to its share, and
children inherit that.

This is imported before NumPy, whose pool is as large as the share at its import.
"""

from __future__ import annotations

import os

HAS_AFFINITY = hasattr(os, "sched_setaffinity")  # not on macOS
ALL = sorted(os.sched_getaffinity(0)) if HAS_AFFINITY else []


def share(worker: str | None, workers: int, cpus: list[int]) -> list[int]:
    """The CPUs of one worker: every `workers`-th, or one that others have too where there are few.

    Args:
        worker: As pytest-xdist names it: gw0, gw1, ...; None for a run in one process.
        workers: How many there are.
        cpus: Those that this process may use.
    """
    if worker is None or not cpus:
        return cpus
    index = int(worker.removeprefix("gw"))
    return cpus[index::workers] or [cpus[index % len(cpus)]]


def take_share() -> None:
    """Keep this process, and the threads and children it starts from now on, to its share."""
    if HAS_AFFINITY:
        os.sched_setaffinity(0, SHARE)


def take_every_cpu() -> None:
    """Let the threads and children that are started from now on use every CPU."""
    if HAS_AFFINITY:
        os.sched_setaffinity(0, ALL)


SHARE = share(
    os.environ.get("PYTEST_XDIST_WORKER"),
    int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")),
    ALL,
)
