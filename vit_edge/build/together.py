"""The same model in several precisions: which bundle is the fastest here that answers right.

INT8 may lose to FP16 on a GPU, so both are built and timed, in the same rounds, and the winner is
kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vit_edge.build.choose import Measured, choose
from vit_edge.build.trial import Terms
from vit_edge.build.tune import ROUNDS, Tried, checked_sizes, keep, measure, rows
from vit_edge.bundle import Bundle
from vit_edge.errors import ParityError, ResourceError, UsageError
from vit_edge.parity.targets import Target


class Candidate(NamedTuple):
    """One bundle, and what was found of it."""

    bundle: Bundle
    measured: tuple[Measured, ...]
    tried: Tried | None = None  # what was recorded of it
    error: ParityError | ResourceError | None = None  # or why it is out

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        about = {"bundle": str(self.bundle.path), "precision": self.bundle.manifest.precision}
        if self.tried is not None:
            return about | self.tried.as_dict()
        measured = [dataclasses.asdict(way) for way in self.measured]
        return about | {"out": str(self.error), "measured": measured}


class Compared(NamedTuple):
    """Everything that was measured of the bundles, and which to keep."""

    candidates: tuple[Candidate, ...]
    chosen: Mapping[int, int]  # batch -> index into the ways of all candidates, in their order

    def kept(self, batch: int) -> Bundle:
        """The bundle that is the fastest for a batch size."""
        return self._entries()[self.chosen[batch]][0]

    def rows(self) -> list[tuple[str, ...]]:
        """Everything that was tried, as a table with its heading; a star at what to keep."""
        entries = self._entries()
        paths = ["", *(str(bundle.path) for bundle, _ in entries)]
        table = rows([way for _, way in entries], self.chosen)
        return [(path, *row) for path, row in zip(paths, table, strict=True)]

    def lines(self) -> list[str]:
        """What to keep for each batch size, where the records are, what is out and why."""
        kept = [self._kept_line(batch) for batch in sorted(self.chosen)]
        return kept + [
            f"out {entry.bundle.path}: {entry.error}"
            if entry.tried is None
            else f"record {entry.tried.record}"
            for entry in self.candidates
        ]

    def _kept_line(self, batch: int) -> str:
        bundle, way = self._entries()[self.chosen[batch]]
        others = [
            f"{entry.tried.latency_ms(batch):.2f} ms of {entry.bundle.path}"
            for entry in self.candidates
            if entry.tried is not None and entry.bundle is not bundle
        ]
        rivals = f"against {', '.join(others)}" if others else "and nothing else passes"
        return f"keep {bundle.path}: batch {batch} {way.latency_ms[batch]:.2f} ms {rivals}"

    def _entries(self) -> list[tuple[Bundle, Measured]]:
        """The ways of all candidates, each with its bundle."""
        return [(entry.bundle, way) for entry in self.candidates for way in entry.measured]

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "keep": {str(batch): str(self.kept(batch).path) for batch in self.chosen},
            "bundles": [entry.as_dict() for entry in self.candidates],
        }


def compare(
    bundles: Sequence[Bundle],
    batches: Sequence[int],
    *,
    only: Sequence[str] = (),
    engines_dir: Path | None = None,
    memory_limit_bytes: int | None = None,
    target: Target | None = None,
    rounds: int = ROUNDS,
) -> Compared:
    """Build, time and check bundles of one model together, and record the fastest ways of each.

    Args:
        bundles: The same model in several precisions.
        batches: As for `tune.tune`, and what follows.
        only: Backends to try.
        engines_dir: Where engines and records go.
        memory_limit_bytes: What the whole process may take.
        target: What the answers of every bundle must reach.
        rounds: How many times around.

    Returns:
        What was measured, and which bundle to keep.

    Raises:
        UsageError: Bundles of different models, a batch size out of range, no such backend.
        ParityError: No bundle answers as well as it must.
        ResourceError: None can run, or within the limit.
    """
    check_same_model(bundles)
    terms = Terms(checked_sizes(bundles, batches), engines_dir, memory_limit_bytes, target)
    measured = measure(bundles, terms, only, rounds)
    candidates = [
        _candidate(bundle, ways, terms) for bundle, ways in zip(bundles, measured, strict=True)
    ]
    if all(entry.tried is None for entry in candidates):
        raise _nothing(candidates)
    everything = [way for ways in measured for way in ways]
    chosen = choose(everything, terms.sizes, one=memory_limit_bytes is not None)
    return Compared(tuple(candidates), chosen)


def check_same_model(bundles: Sequence[Bundle]) -> None:
    """Refuse what cannot be compared by its speed alone.

    Raises:
        UsageError: A bundle given twice, or of another model; all differences are listed.
    """
    paths = [bundle.path.resolve() for bundle in bundles]
    problems = [f"{path} is given twice" for path in sorted(set(paths)) if paths.count(path) > 1]
    first = bundles[0]
    for bundle in bundles[1:]:
        own, others = _identity(first), _identity(bundle)
        differing = [name for name in own if own[name] != others[name]]
        if differing:
            problems.append(f"{first.path} and {bundle.path} differ in {', '.join(differing)}")
    if problems:
        raise UsageError(
            "bundles that are tuned together hold one model in several precisions:\n  "
            + "\n  ".join(problems)
            + "\nExport them from one checkpoint, or tune them one by one"
        )


def _identity(bundle: Bundle) -> dict[str, Any]:
    """What is the same in every precision of a model."""
    manifest = bundle.manifest
    weights = manifest.checkpoint
    return {
        "variant": manifest.variant,
        "checkpoint": weights.sha256 or weights.source,  # seeded weights are in no file
        "position embeddings": weights.position_interpolation,
        "preprocessing": manifest.preprocessing,
        "labels": bundle.labels,
    }


def _candidate(bundle: Bundle, measured: Sequence[Measured], terms: Terms) -> Candidate:
    try:
        return Candidate(bundle, tuple(measured), tried=keep(bundle, measured, terms))
    except (ParityError, ResourceError) as error:
        return Candidate(bundle, tuple(measured), error=error)


def _nothing(candidates: Sequence[Candidate]) -> ParityError | ResourceError:
    """Say why no bundle can be kept: a failed check, where one was made."""
    wrong = any(isinstance(entry.error, ParityError) for entry in candidates)
    reasons = "\n".join(f"{entry.bundle.path}: {entry.error}" for entry in candidates)
    return ParityError(reasons) if wrong else ResourceError(reasons)
