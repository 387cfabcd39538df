"""Trying every way to run a bundle on this machine, and keeping what was found.

Each way runs in a process of its own, several times, taking turns with the others: what one runtime
leaves behind (spinning threads, memory, a warm cache) does not touch the next, a way that needs too
much memory takes only itself down, and a machine that slows down slows all of them.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vit_edge import backends, engines, isolate, tuned
from vit_edge.bench.measure import repeated
from vit_edge.bundle import Bundle
from vit_edge.choose import Measured, Option, choose
from vit_edge.errors import ResourceError, UsageError, VitEdgeError
from vit_edge.parity.compare import check_golden, compare_answers
from vit_edge.parity.golden import Golden
from vit_edge.parity.limits import limit_for
from vit_edge.parity.targets import Target
from vit_edge.preprocess import input_from_resized

_LOG = logging.getLogger(__name__)

ROUNDS = 3  # of everything: shows a machine that changes, and survives one bad turn
AT_LEAST_S = 1.0  # of timed calls, for each batch size and round
AT_LEAST_RUNS = 5
WARMUP_RUNS = 3
TIMEOUT_S = 900.0  # of one child: large models on small boards load for minutes


class Tried(NamedTuple):
    """Everything that was measured, and what was picked."""

    measured: tuple[Measured, ...]
    chosen: Mapping[int, int]  # batch -> index into `measured`
    record: Path  # the engine directory that keeps it

    def rows(self) -> list[tuple[str, ...]]:
        """Everything that was tried, as a table with its heading."""
        sizes = sorted(self.chosen)
        heading = ("", *(f"batch {size} ms" for size in sizes), "start s", "own MB", "all MB", "")
        return [heading, *(_row(way, n, self.chosen) for n, way in enumerate(self.measured))]

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return _as_dict(self.measured, self.chosen) | {"record": str(self.record)}


def tune(
    bundle: Bundle,
    batches: Sequence[int],
    *,
    only: Sequence[str] = (),
    engines_dir: Path | None = None,
    memory_limit_bytes: int | None = None,
    target: Target | None = None,
    rounds: int = ROUNDS,
) -> Tried:
    """Build, time and check every way to run a bundle here, and record the fastest.

    Args:
        bundle: The bundle.
        batches: Batch sizes to time, each at most the bundle's limit.
        only: Backends to try; all that are installed if empty.
        engines_dir: Where engines and the record go.
        memory_limit_bytes: What the whole process may take; a way that dies of it is out, and one
            way is picked for all batch sizes.
        target: What the answers must reach beside the precision's limit.
        rounds: How many times around.

    Returns:
        What was measured and picked.

    Raises:
        UsageError: A batch size out of range, or a backend that is not there.
        ParityError: Nothing answers as well as it must.
        ResourceError: Nothing can run, or within the limit.
    """
    sizes = sorted(set(batches))
    largest = bundle.manifest.max_batch
    if not sizes or sizes[0] < 1 or sizes[-1] > largest:
        raise UsageError(f"batch sizes must lie between 1 and {largest}, not {list(batches)}")
    ways = [_built(bundle, way, engines_dir) for way in _ways(bundle, only)]
    samples: list[dict[int, list[float]]] = [{size: [] for size in sizes} for _ in ways]
    for turn in range(rounds):
        for index, way in enumerate(ways):
            if way.usable:
                _LOG.info("round %d of %d: %s", turn + 1, rounds, way.name)
                ways[index] = _turn(
                    bundle, way, samples[index], turn, engines_dir, memory_limit_bytes, target
                )
    ways = [_with_medians(way, found) for way, found in zip(ways, samples, strict=True)]
    chosen = choose(ways, sizes, one=memory_limit_bytes is not None)
    record = _recorded(bundle, ways, chosen, engines_dir)
    return Tried(tuple(ways), chosen, record)


def _ways(bundle: Bundle, only: Sequence[str]) -> list[Measured]:
    """Every configuration of every backend that is installed."""
    names = list(only) or list(backends.installed())
    return [
        Measured(name, options)
        for name in names
        for options in backends.module(name).configurations(bundle)
    ]


def _built(bundle: Bundle, way: Measured, engines_dir: Path | None) -> Measured:
    """Make its engine where there is none, in a child; say why if it cannot be made."""
    _LOG.info("building %s", way.name)
    try:
        isolate.call_in_child(
            "vit_edge.tune:build_way", str(bundle.path), way.backend, dict(way.options), engines_dir
        )
    except UsageError:
        raise
    except VitEdgeError as error:
        return dataclasses.replace(way, refused=_first_line(error))
    return way


def build_way(
    path: str, backend: str, options: dict[str, Option], engines_dir: Path | None
) -> None:
    """Build the engine that these options load, unless it is there; runs in a child."""
    bundle = Bundle.read(path)
    module: Any = backends.module(backend)
    own = {key: value for key, value in options.items() if key in module.BUILD_OPTIONS}
    if module.find(bundle, engines_dir, **own).path is None:
        backends.build(bundle, backend, engines_dir, own)


def _turn(
    bundle: Bundle,
    way: Measured,
    samples: dict[int, list[float]],
    turn: int,
    engines_dir: Path | None,
    memory_limit_bytes: int | None,
    target: Target | None,
) -> Measured:
    """Run one way once more: the first time without a limit, and with its answers checked."""
    first = turn == 0
    try:
        call = isolate.measured_call(
            "vit_edge.tune:measure_way",
            str(bundle.path),
            way.backend,
            dict(way.options),
            engines_dir,
            list(samples),
            first,
            target,
            memory_limit_bytes=None if first else memory_limit_bytes,
            timeout_s=TIMEOUT_S,
        )
    except ResourceError as error:
        if first or memory_limit_bytes is None:
            return dataclasses.replace(way, refused=_first_line(error))
        return dataclasses.replace(way, over_limit=_first_line(error))
    except VitEdgeError as error:
        return dataclasses.replace(way, refused=_first_line(error))
    found, child = call
    for batch, taken in found["seconds"].items():
        samples[batch].extend(taken)
    if memory_limit_bytes is not None:
        # or the next one finds its pages cached, and counted elsewhere
        engines.evict(bundle, engines_dir)
    return dataclasses.replace(
        way,
        parity=tuple(found["parity"]) if first else way.parity,
        first_answer_s=found["first_answer_s"] if first else way.first_answer_s,
        facts=found["facts"],
        peak_rss_bytes=max(way.peak_rss_bytes, child.peak_rss_bytes),
        peak_anonymous_bytes=max(way.peak_anonymous_bytes, child.peak_anonymous_bytes),
    )


def measure_way(
    path: str,
    backend: str,
    options: dict[str, Option],
    engines_dir: Path | None,
    batches: list[int],
    check: bool,
    target: Target | None,
) -> dict[str, Any]:
    """Open a bundle one way, check and time it; runs in a child.

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
    start = time.perf_counter()
    bundle = Bundle.read(path)
    loaded = tuned.open_choice(bundle, tuned.Choice(backend, options), engines_dir)
    with Golden(bundle.golden_path) as golden:
        check_golden(golden, bundle.manifest)
        images = [index % len(golden) for index in range(max(batches))]
        pixels = input_from_resized(golden.images(images), bundle.manifest)
        loaded.run(pixels[:1])
        first_answer_s = time.perf_counter() - start
        problems: list[str] = []
        if check:
            limit = limit_for(bundle.manifest.precision)
            found = compare_answers(
                loaded, golden, bundle.manifest, batches=batches, limit=limit, target=target
            )
            problems = found.problems
    taken = {
        batch: repeated(
            lambda batch=batch: loaded.run(pixels[:batch]),  # type: ignore[misc]
            at_least_s=AT_LEAST_S,
            at_least_runs=AT_LEAST_RUNS,
            warmup_runs=WARMUP_RUNS,
        )
        for batch in batches
    }
    facts = dict(loaded.facts)
    loaded.close()
    return {
        "first_answer_s": first_answer_s,
        "facts": facts,
        "parity": problems,
        "seconds": taken,
    }


def _with_medians(way: Measured, samples: Mapping[int, list[float]]) -> Measured:
    timed = {batch: found for batch, found in samples.items() if found}
    return dataclasses.replace(
        way,
        latency_ms={batch: 1e3 * statistics.median(found) for batch, found in timed.items()},
        runs={batch: len(found) for batch, found in timed.items()},
    )


def _recorded(
    bundle: Bundle,
    ways: Sequence[Measured],
    chosen: Mapping[int, int],
    engines_dir: Path | None,
) -> Path:
    parts = tuned.key_parts(bundle)
    with engines.made(bundle, tuned.NAME, parts, (tuned.RECORD_NAME,), engines_dir, 2**20) as stage:
        text = json.dumps(_as_dict(ways, chosen), indent=2) + "\n"
        (stage.path / tuned.RECORD_NAME).write_text(text)
    return stage.target


def _as_dict(ways: Sequence[Measured], chosen: Mapping[int, int]) -> dict[str, Any]:
    return {
        "runtimes": backends.installed(),
        "chosen": {
            str(batch): {"backend": ways[index].backend, "options": dict(ways[index].options)}
            for batch, index in chosen.items()
        },
        "measured": [dataclasses.asdict(way) for way in ways],
    }


def _row(way: Measured, index: int, chosen: Mapping[int, int]) -> tuple[str, ...]:
    if way.refused is not None:
        return (way.name, *("-" for _ in range(len(chosen) + 3)), f"refused: {way.refused}")
    latencies = [
        f"{way.latency_ms[size]:.1f}{'*' if chosen[size] == index else ''}"
        if size in way.latency_ms
        else "-"
        for size in sorted(chosen)
    ]
    verdict = way.over_limit or "; ".join(way.parity[:1]) or "answers hold"
    memory = (f"{size / 1e6:.0f}" for size in (way.peak_anonymous_bytes, way.peak_rss_bytes))
    return (way.name, *latencies, f"{way.first_answer_s:.2f}", *memory, verdict)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
