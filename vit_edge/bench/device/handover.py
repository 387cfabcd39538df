"""How fast a CPU reads what another has just written: what threads pay for working on one image.

CPUs that share a cache hand data over several times faster than those that do not. On a machine of
one's own that is a fact of its processor; a virtual machine's host moves its CPUs about, and then
everything that runs on more than one thread changes its speed for seconds or minutes, the smaller
the model the more, without any other sign (no steal, no other process, one thread as fast as ever).
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from vit_edge.machine import cpus

_BYTES = 64 * 1024  # the second-level cache of any CPU of today holds it
_ROUNDS = 100  # 15 ms
_PATIENCE_S = 1.0


def handover_gb_s() -> float | None:
    """The rate at which the first CPU of ours copies what the last one has just written.

    Returns:
        Gigabytes (1e9) a second, the median of many copies; None where there is one CPU, or where
        threads cannot be bound to one.
    """
    allowed = cpus.allowed_cpus()
    if len(allowed) < 2:
        return None
    written, read = np.zeros(_BYTES, np.uint8), np.empty(_BYTES, np.uint8)
    asked, answered = threading.Semaphore(0), threading.Semaphore(0)

    def write() -> None:
        os.sched_setaffinity(0, {allowed[-1]})  # of this thread alone: sched_setaffinity(2)
        for turn in range(_ROUNDS):
            if not asked.acquire(timeout=_PATIENCE_S):
                return
            written.fill(turn)
            answered.release()

    def copy() -> float | None:
        os.sched_setaffinity(0, {allowed[0]})
        taken_ns = []
        for _ in range(_ROUNDS):
            asked.release()
            if not answered.acquire(timeout=_PATIENCE_S):
                return None
            start = time.perf_counter_ns()
            np.copyto(read, written)
            taken_ns.append(time.perf_counter_ns() - start)
        return _BYTES / statistics.median(taken_ns)

    with ThreadPoolExecutor(2) as threads:
        writer, copier = threads.submit(write), threads.submit(copy)
        try:
            writer.result()
            return copier.result()
        except OSError:
            return None
