"""What memory a bundle needs: answers under a limit that the kernel enforces.

Each try is a fresh process in a fresh memory cgroup, with the bundle's files out of the page cache,
so that every page it reads is charged to it (cgroups.evict). Python's own libraries stay cached and
are charged to whoever read them first; their own, unshared memory is counted.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from vit_edge.bundle import Bundle, engines
from vit_edge.errors import ResourceError
from vit_edge.machine import child

RUNS = 10  # timed, after the first


class Answered(NamedTuple):
    """A process that answered within a limit."""

    limit_bytes: int | None
    first_answer_s: float  # from the start of the process
    median_ms: float  # of the runs after the first
    relative: float  # largest difference from the golden logits, over their largest
    peak_anonymous_bytes: int
    peak_rss_bytes: int


def answer_within(
    bundle: Bundle,
    backend: str,
    options: Mapping[str, Any],
    limit_bytes: int | None,
    *,
    timeout_s: float,
    runs: int = RUNS,
) -> Answered:
    """Let a fresh process open a bundle, answer a golden image, and answer it again.

    Args:
        bundle: Built already, where it should be.
        backend: Its name.
        options: Of the backend's `load`.
        limit_bytes: Of the process's cgroup; None: no limit.
        timeout_s: Of the whole process.
        runs: After the first answer.

    Raises:
        ResourceError: It needed more memory, or longer; or there are no cgroups to be had.
    """
    engines.evict(bundle, None)
    request = json.dumps([str(bundle.path), backend, dict(options), runs])
    done = child.run_child(
        [sys.executable, __file__, str(time.time()), request],
        memory_limit_bytes=limit_bytes,
        timeout_s=timeout_s,
    ).check(f"answering within {limit_bytes or 0} bytes")
    if limit_bytes is not None and done.limited_by != "cgroup":
        raise ResourceError("no memory cgroup can be made here: a limit would not be enforced")
    found = json.loads(done.stdout)
    return Answered(
        limit_bytes, **found, peak_anonymous_bytes=done.peak_anonymous_bytes,
        peak_rss_bytes=done.peak_rss_bytes,
    )  # fmt: skip


def _answer(started: float, path: str, backend: str, options: dict[str, Any], runs: int) -> None:
    """The child's side: print what it took, as JSON."""
    import numpy as np

    from vit_edge.backends import auto
    from vit_edge.bundle.golden import Golden
    from vit_edge.images.preprocess import input_from_resized

    bundle = Bundle.read(path)
    opened = auto.open_choice(bundle, auto.Choice(backend, options), None)
    with Golden(bundle.golden_path) as golden:
        pixels = input_from_resized(golden.images([0]), bundle.manifest)
        output, expected = next(iter(golden.answers([0]).items()))
    found = opened.run(pixels)[output]
    first_answer_s = time.time() - started
    taken = []  # not by bench.measure: what it imports would count as memory of the bundle
    for _ in range(runs):
        start = time.perf_counter()
        opened.run(pixels)
        taken.append(time.perf_counter() - start)
    print(
        json.dumps(
            {
                "first_answer_s": first_answer_s,
                "median_ms": 1e3 * float(np.median(taken)) if taken else 0.0,
                "relative": float(np.abs(found - expected).max() / np.abs(expected).max()),
            }
        )
    )


if __name__ == "__main__":
    _answer(float(sys.argv[1]), *json.loads(sys.argv[2]))
