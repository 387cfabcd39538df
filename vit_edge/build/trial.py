"""One setup of a bundle: built, opened, checked and timed, each in a child.

What one runtime leaves behind (spinning threads, memory, a warm cache) does not touch the next. A
setup that needs too much memory ends its own process, and no other.
"""

from __future__ import annotations

import dataclasses
import logging
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vit_edge import backends
from vit_edge.backends import Option, auto
from vit_edge.bench.run import session
from vit_edge.bench.run.built import build_options
from vit_edge.bench.run.golden import compare_golden, golden_pixels
from vit_edge.bench.run.plan import Configuration
from vit_edge.bench.run.scenarios import Limits, timed
from vit_edge.build.choose import Measured
from vit_edge.bundle import Bundle, engines
from vit_edge.bundle.golden import Golden
from vit_edge.errors import ResourceError, UsageError, VitEdgeError
from vit_edge.machine import child
from vit_edge.parity.compare import check_golden
from vit_edge.parity.targets import Target

_LOG = logging.getLogger(__name__)

AT_LEAST_S = 1.0  # of timed calls, for each batch size and round
AT_LEAST_RUNS = 5
WARMUP_RUNS = 3
TIMEOUT_S = 900.0  # of one child: large models on small boards load for minutes


class Terms(NamedTuple):
    """The conditions that every setup is measured under."""

    sizes: Sequence[int]  # of batches, ascending
    engines_dir: Path | None  # where engines and records go
    memory_limit_bytes: int | None  # what the whole process may take
    target: Target | None  # what answers must reach beside the precision's limit


def list_setups(bundle: Bundle, only: Sequence[str]) -> list[Measured]:
    """List every configuration of these backends that is worth trying, nothing measured yet.

    Args:
        bundle: The bundle.
        only: Names of backends; all that are installed if empty.
    """
    names = list(only) or list(backends.installed())
    return [
        Measured(name, options)
        for name in names
        for options in backends.module(name).configurations(bundle)
    ]


def build_missing(bundle: Bundle, setup: Measured, engines_dir: Path | None) -> Measured:
    """Build the engine of a setup where there is none, in a child; say why if that fails."""
    _LOG.info("building %s: %s", bundle.path, setup.name)
    try:
        child.call_in_child(
            "vit_edge.build.trial:build_setup",
            str(bundle.path),
            setup.backend,
            dict(setup.options),
            engines_dir,
        )
    except UsageError:
        raise
    except VitEdgeError as error:
        return dataclasses.replace(setup, refused=_first_line(error))
    return setup


def build_setup(
    path: str, backend: str, options: dict[str, Option], engines_dir: Path | None
) -> None:
    """Build the engine that these options load, unless it is there; runs in a child."""
    bundle = Bundle.read(path)
    module: Any = backends.module(backend)
    own = build_options(backend, options)
    if module.find(bundle, engines_dir, **own).path is None:
        backends.build(bundle, backend, engines_dir, own)


def run_turn(
    bundle: Bundle,
    setup: Measured,
    samples: Mapping[int, list[float]],
    terms: Terms,
    *,
    first: bool,
) -> Measured:
    """Run one setup once more.

    Args:
        bundle: The bundle.
        setup: What is known of it.
        samples: Batch size -> seconds of each call; what is measured is added.
        terms: What all are measured on.
        first: Run without a limit, and check the answers.

    Returns:
        What is known now.
    """
    limit_bytes = terms.memory_limit_bytes
    try:
        trial, completed = child.measured_call(
            "vit_edge.build.trial:measure_setup",
            str(bundle.path),
            setup.backend,
            dict(setup.options),
            terms.engines_dir,
            list(terms.sizes),
            first,
            terms.target,
            memory_limit_bytes=None if first else limit_bytes,
            timeout_s=TIMEOUT_S,
        )
    except ResourceError as error:
        if first or limit_bytes is None:
            return dataclasses.replace(setup, refused=_first_line(error))
        return dataclasses.replace(setup, over_limit=_first_line(error))
    except VitEdgeError as error:
        return dataclasses.replace(setup, refused=_first_line(error))
    for batch, taken in trial["seconds"].items():
        samples[batch].extend(taken)
    if limit_bytes is not None:
        # or the next one finds its pages cached, and counted elsewhere
        engines.evict(bundle, terms.engines_dir)
    return dataclasses.replace(
        setup,
        parity=tuple(trial["parity"]) if first else setup.parity,
        first_answer_s=trial["first_answer_s"] if first else setup.first_answer_s,
        facts=trial["facts"],
        peak_rss_bytes=max(setup.peak_rss_bytes, completed.peak_rss_bytes),
        peak_anonymous_bytes=max(setup.peak_anonymous_bytes, completed.peak_anonymous_bytes),
    )


def mixed_problems(
    path: str,
    choices: dict[int, tuple[str, dict[str, Option]]],
    engines_dir: Path | None,
) -> list[str]:
    """Compare the answers where each batch size has a setup of its own; runs in a child.

    Args:
        path: The bundle's.
        choices: Batch -> backend and options.
        engines_dir: Where their engines lie.

    Returns:
        What exceeds the precision's limit.
    """
    bundle = Bundle.read(path)
    mixed = auto.TunedBackend(
        bundle,
        {size: auto.Choice(backend, options) for size, (backend, options) in choices.items()},
        "",
        engines_dir,
    )
    largest = bundle.manifest.max_batch
    sizes = sorted({min(size, largest) for size in (1, 2, 3, largest, *choices)})
    problems = compare_golden(bundle, mixed, sizes).problems
    mixed.close()
    return problems


def measure_setup(
    path: str,
    backend: str,
    options: dict[str, Option],
    engines_dir: Path | None,
    batches: list[int],
    check: bool,
    target: Target | None,
) -> dict[str, Any]:
    """Open a bundle, check and time it; runs in a child.

    Args:
        path: The bundle's.
        backend: Its name.
        options: Of its `load`.
        engines_dir: Where its engine lies.
        batches: Sizes to time.
        check: Compare its answers with the reference's.
        target: What they must reach.

    Returns:
        first_answer_s, facts, parity (problems), and batch -> seconds of each call.
    """
    setup = Configuration(Path(path), backend, options)
    bundle = Bundle.read(path)
    with Golden(bundle.golden_path) as golden:
        check_golden(golden, bundle.manifest)
    with session.opened(setup, time.monotonic(), engines_dir=engines_dir) as opened:
        loaded = opened.backend
        problems = compare_golden(bundle, loaded, batches, target=target).problems if check else []
        pixels = golden_pixels(bundle, max(batches))
        return {
            "first_answer_s": sum(opened.cold_s.values()),
            "facts": dict(loaded.facts),
            "parity": problems,
            "seconds": {batch: _seconds(loaded, pixels[:batch]) for batch in batches},
        }


def _seconds(loaded: backends.Backend, pixels: Any) -> list[float]:
    """Time each run, in seconds."""
    for _ in range(WARMUP_RUNS):
        loaded.run(pixels)
    limits = Limits(AT_LEAST_RUNS, AT_LEAST_S, TIMEOUT_S)
    latencies_ms, _ = timed(lambda: loaded.run(pixels), limits)
    return [latency / 1e3 for latency in latencies_ms]


def with_medians(setup: Measured, samples: Mapping[int, list[float]]) -> Measured:
    """A setup with the median of what was timed of it, for each batch size."""
    known = {batch: seconds for batch, seconds in samples.items() if seconds}
    return dataclasses.replace(
        setup,
        latency_ms={batch: 1e3 * statistics.median(seconds) for batch, seconds in known.items()},
        runs={batch: len(seconds) for batch, seconds in known.items()},
    )


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
