"""Trying every way to run a bundle on this machine, and keeping what was found.

The ways take turns, several times around: a machine that slows down slows all of them. So do those
of several bundles, see precisions.py.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from vit_edge import backends
from vit_edge.backends import auto
from vit_edge.build.choose import Measured, choose
from vit_edge.build.trial import Terms, built, turn, ways, with_medians
from vit_edge.bundle import Bundle, engines
from vit_edge.errors import UsageError
from vit_edge.machine import child
from vit_edge.parity.targets import Target

_LOG = logging.getLogger(__name__)

ROUNDS = 3  # of everything: shows a machine that changes, and survives one bad turn


class Tried(NamedTuple):
    """Everything that was measured, and what was picked."""

    measured: tuple[Measured, ...]
    chosen: Mapping[int, int]  # batch -> index into `measured`
    record: Path  # the engine directory that keeps it

    def latency_ms(self, batch: int) -> float:
        """The median of the way that was picked for a batch size."""
        return self.measured[self.chosen[batch]].latency_ms[batch]

    def rows(self) -> list[tuple[str, ...]]:
        """Everything that was tried, as a table with its heading."""
        return rows(self.measured, self.chosen)

    def lines(self) -> list[str]:
        """What was picked for each batch size, and where the record is."""
        picked = [f"batch {size:<3} {self.measured[n].name}" for size, n in self.chosen.items()]
        return [*picked, f"record    {self.record}"]

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
    terms = Terms(checked_sizes([bundle], batches), engines_dir, memory_limit_bytes, target)
    (measured,) = measure([bundle], terms, only, rounds)
    return keep(bundle, measured, terms)


def checked_sizes(bundles: Sequence[Bundle], batches: Sequence[int]) -> list[int]:
    """The batch sizes, ascending, each once.

    Raises:
        UsageError: None, or one that not all bundles take.
    """
    sizes = sorted(set(batches))
    largest = min(bundle.manifest.max_batch for bundle in bundles)
    if not sizes or sizes[0] < 1 or sizes[-1] > largest:
        raise UsageError(f"batch sizes must lie between 1 and {largest}, not {list(batches)}")
    return sizes


@dataclass
class _Entry:
    """One way to run one bundle, while it is being measured."""

    bundle: Bundle
    way: Measured
    samples: dict[int, list[float]] = field(default_factory=dict)  # batch -> seconds of each call


def measure(
    bundles: Sequence[Bundle], terms: Terms, only: Sequence[str], rounds: int
) -> list[list[Measured]]:
    """Build, time and check every way to run these bundles, taking turns.

    Args:
        bundles: What to run.
        terms: What all are measured on.
        only: Backends to try; all that are installed if empty.
        rounds: How many times around.

    Returns:
        What was found of each bundle's ways.

    Raises:
        UsageError: A backend that is not there.
    """
    entries = [
        _Entry(bundle, built(bundle, way, terms.engines_dir), {size: [] for size in terms.sizes})
        for bundle in bundles
        for way in ways(bundle, only)
    ]
    for number in range(rounds):
        for entry in (entry for entry in entries if entry.way.usable):
            _LOG.info(
                "round %d of %d: %s: %s", number + 1, rounds, entry.bundle.path, entry.way.name
            )
            entry.way = turn(entry.bundle, entry.way, entry.samples, terms, first=number == 0)
    return [
        [with_medians(entry.way, entry.samples) for entry in entries if entry.bundle is bundle]
        for bundle in bundles
    ]


def keep(bundle: Bundle, measured: Sequence[Measured], terms: Terms) -> Tried:
    """Pick the fastest ways of a bundle, and record them for Predictor.

    Raises:
        ParityError: Nothing answers as well as it must.
        ResourceError: Nothing can run, or within the limit.
    """
    chosen = choose(measured, terms.sizes, one=terms.memory_limit_bytes is not None)
    if problems := _mixed_problems(bundle, measured, chosen, terms):
        _LOG.warning(
            "%s: one way for all batch sizes, since the fastest of each answer too differently: %s",
            bundle.path,
            problems[0],
        )
        chosen = choose(measured, terms.sizes, one=True)
    parts = auto.key_parts(bundle)
    files = (auto.RECORD_NAME,)
    with engines.made(bundle, auto.NAME, parts, files, terms.engines_dir, 2**20) as stage:
        text = json.dumps(_as_dict(measured, chosen), indent=2) + "\n"
        (stage.path / auto.RECORD_NAME).write_text(text)
    return Tried(tuple(measured), chosen, stage.target)


def _mixed_problems(
    bundle: Bundle, measured: Sequence[Measured], chosen: Mapping[int, int], terms: Terms
) -> list[str]:
    """What speaks against answering each batch size another way; empty for one way.

    Each way is near enough to the reference, but an image's answer must not depend on how many
    there are with it either.
    """
    if len(set(chosen.values())) < 2:
        return []
    choices = {
        size: (measured[index].backend, dict(measured[index].options))
        for size, index in chosen.items()
    }
    found: list[str] = child.call_in_child(
        "vit_edge.build.trial:mixed_problems", str(bundle.path), choices, terms.engines_dir
    )
    return found


def rows(measured: Sequence[Measured], chosen: Mapping[int, int]) -> list[tuple[str, ...]]:
    """What was measured as a table with its heading; what was chosen carries a star.

    Args:
        measured: The ways.
        chosen: Batch -> index into them.
    """
    sizes = sorted(chosen)
    heading = ("", *(f"batch {size} ms" for size in sizes), "start s", "own MB", "all MB", "")
    return [heading, *(_row(way, index, chosen) for index, way in enumerate(measured))]


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


def _as_dict(ways: Sequence[Measured], chosen: Mapping[int, int]) -> dict[str, Any]:
    return {
        "runtimes": backends.installed(),
        "chosen": {
            str(batch): {"backend": ways[index].backend, "options": dict(ways[index].options)}
            for batch, index in chosen.items()
        },
        "measured": [dataclasses.asdict(way) for way in ways],
    }
