"""Trying every setup of a bundle on this machine, and keeping what is fastest.

The setups take turns, several times around: a machine that slows down slows all of them. So do
those of several bundles, which hold the same model in other precisions. INT8 may lose to FP16 on a
GPU: both are built and timed, in the same rounds, and the winner is named.
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
from vit_edge.build.trial import Terms, build_missing, list_setups, run_turn, with_medians
from vit_edge.bundle import Bundle, engines
from vit_edge.errors import ParityError, ResourceError, UsageError
from vit_edge.machine import child
from vit_edge.parity.targets import Target

_LOG = logging.getLogger(__name__)

ROUNDS = 3  # of everything: shows a machine that changes, and survives one bad turn


class Record(NamedTuple):
    """The setups picked for a bundle, kept for Predictor."""

    chosen: Mapping[int, int]  # batch -> index into the setups of the bundle
    path: Path  # the engine directory that keeps it


@dataclass(frozen=True)
class Candidate:
    """One bundle, and what came of it."""

    bundle: Bundle
    measured: tuple[Measured, ...]
    record: Record | None = None
    error: ParityError | ResourceError | None = None  # why there is no record

    def latency_ms(self, batch: int) -> float | None:
        """The median of what was picked for a batch size; None where nothing was."""
        if self.record is None:
            return None
        return self.measured[self.record.chosen[batch]].latency_ms[batch]

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        if self.record is None:
            measured = [dataclasses.asdict(setup) for setup in self.measured]
            return {"out": str(self.error), "measured": measured}
        return _as_dict(self.measured, self.record.chosen) | {"record": str(self.record.path)}


@dataclass(frozen=True)
class Tuning:
    """The measurements of the bundles, and which setups to keep."""

    candidates: tuple[Candidate, ...]
    chosen: Mapping[int, int]  # batch -> index into the setups of all candidates, in their order

    def kept(self, batch: int) -> Bundle:
        """The bundle that is the fastest for a batch size."""
        return self._setups()[self.chosen[batch]][0]

    def rows(self) -> list[tuple[str, ...]]:
        """List everything that was tried, as a table with its heading; a star at what to keep."""
        tried = self._setups()
        table = _rows([setup for _, setup in tried], self.chosen)
        if len(self.candidates) == 1:
            return table
        paths = ["", *(str(bundle.path) for bundle, _ in tried)]
        return [(path, *row) for path, row in zip(paths, table, strict=True)]

    def lines(self) -> list[str]:
        """List the picks for each batch size, where the records are, what is out and why."""
        if len(self.candidates) == 1:
            setups = self.candidates[0].measured
            picked = [
                f"batch {size:<3} {setups[index].name}" for size, index in self.chosen.items()
            ]
            return [*picked, f"record    {self._records()[0].path}"]
        kept = [self._kept_line(batch) for batch in sorted(self.chosen)]
        return kept + [
            f"out {entry.bundle.path}: {entry.error}"
            if entry.record is None
            else f"record {entry.record.path}"
            for entry in self.candidates
        ]

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON: of one bundle what was measured, of several which to keep, too."""
        if len(self.candidates) == 1:
            return self.candidates[0].as_dict()
        return {
            "keep": {str(batch): str(self.kept(batch).path) for batch in self.chosen},
            "bundles": [
                {
                    "bundle": str(entry.bundle.path),
                    "precision": entry.bundle.manifest.precision,
                    **entry.as_dict(),
                }
                for entry in self.candidates
            ],
        }

    def _kept_line(self, batch: int) -> str:
        bundle, setup = self._setups()[self.chosen[batch]]
        others = [
            f"{latency_ms:.2f} ms of {entry.bundle.path}"
            for entry in self.candidates
            if entry.bundle is not bundle and (latency_ms := entry.latency_ms(batch)) is not None
        ]
        rivals = f"against {', '.join(others)}" if others else "and nothing else passes"
        return f"keep {bundle.path}: batch {batch} {setup.latency_ms[batch]:.2f} ms {rivals}"

    def _setups(self) -> list[tuple[Bundle, Measured]]:
        """The setups of all candidates, each with its bundle."""
        return [(entry.bundle, setup) for entry in self.candidates for setup in entry.measured]

    def _records(self) -> list[Record]:
        return [entry.record for entry in self.candidates if entry.record is not None]


def tune(
    bundles: Sequence[Bundle],
    batches: Sequence[int],
    *,
    only: Sequence[str] = (),
    engines_dir: Path | None = None,
    memory_limit_bytes: int | None = None,
    target: Target | None = None,
    rounds: int = ROUNDS,
) -> Tuning:
    """Build, time and check every setup of bundles here, and record the fastest setups of each.

    Args:
        bundles: One, or the same model in several precisions.
        batches: Batch sizes to time, each at most the limit of every bundle.
        only: Backends to try; all that are installed if empty.
        engines_dir: Where engines and the records go.
        memory_limit_bytes: What the whole process may take; a setup that dies of it is out, and one
            setup is picked for all batch sizes.
        target: What the answers of every bundle must reach beside the precision's limit.
        rounds: How many times around.

    Returns:
        What was measured, and which bundle to keep.

    Raises:
        UsageError: Bundles of different models, a batch size out of range, no such backend.
        ParityError: Nothing answers as well as it must.
        ResourceError: Nothing can run, or within the limit.
    """
    check_same_model(bundles)
    terms = Terms(_checked_sizes(bundles, batches), engines_dir, memory_limit_bytes, target)
    candidates = [
        _candidate(bundle, setups, terms)
        for bundle, setups in zip(bundles, measure(bundles, terms, only, rounds), strict=True)
    ]
    if all(entry.record is None for entry in candidates):
        raise _nothing(candidates)
    if len(candidates) == 1 and candidates[0].record is not None:
        return Tuning((candidates[0],), candidates[0].record.chosen)
    everything = [setup for entry in candidates for setup in entry.measured]
    chosen = choose(everything, terms.sizes, one=memory_limit_bytes is not None)
    return Tuning(tuple(candidates), chosen)


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
            "bundles that are compared hold one model in several precisions:\n  "
            + "\n  ".join(problems)
            + "\nExport them from one checkpoint, or take them one by one"
        )


def _identity(bundle: Bundle) -> dict[str, Any]:
    """Return what is the same in every precision of a model."""
    manifest = bundle.manifest
    weights = manifest.checkpoint
    return {
        "variant": manifest.variant,
        "checkpoint": weights.sha256 or weights.source,  # seeded weights are in no file
        "position embeddings": weights.position_interpolation,
        "preprocessing": manifest.preprocessing,
        "labels": bundle.labels,
    }


def _checked_sizes(bundles: Sequence[Bundle], batches: Sequence[int]) -> list[int]:
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
    """One setup of one bundle, while it is being measured."""

    bundle: Bundle
    setup: Measured
    samples: dict[int, list[float]] = field(default_factory=dict)  # batch -> seconds of each call


def measure(
    bundles: Sequence[Bundle], terms: Terms, only: Sequence[str], rounds: int
) -> list[list[Measured]]:
    """Build, time and check every setup of these bundles, taking turns.

    Args:
        bundles: What to run.
        terms: What all are measured on.
        only: Backends to try; all that are installed if empty.
        rounds: How many times around.

    Returns:
        What was found of each bundle's setups.

    Raises:
        UsageError: A backend that is not there.
    """
    entries = [
        _Entry(
            bundle,
            build_missing(bundle, setup, terms.engines_dir),
            {size: [] for size in terms.sizes},
        )
        for bundle in bundles
        for setup in list_setups(bundle, only)
    ]
    for number in range(rounds):
        for entry in (entry for entry in entries if entry.setup.usable):
            _LOG.info(
                "round %d of %d: %s: %s", number + 1, rounds, entry.bundle.path, entry.setup.name
            )
            entry.setup = run_turn(
                entry.bundle, entry.setup, entry.samples, terms, first=number == 0
            )
    return [
        [with_medians(entry.setup, entry.samples) for entry in entries if entry.bundle is bundle]
        for bundle in bundles
    ]


def _candidate(bundle: Bundle, measured: Sequence[Measured], terms: Terms) -> Candidate:
    try:
        return Candidate(bundle, tuple(measured), record=keep(bundle, measured, terms))
    except (ParityError, ResourceError) as error:
        return Candidate(bundle, tuple(measured), error=error)


def _nothing(candidates: Sequence[Candidate]) -> ParityError | ResourceError:
    """Say why no bundle can be kept: a failed check, where one was made."""
    errors = [entry.error for entry in candidates if entry.error is not None]
    if len(errors) == 1:
        return errors[0]
    reasons = "\n".join(f"{entry.bundle.path}: {entry.error}" for entry in candidates)
    wrong = any(isinstance(error, ParityError) for error in errors)
    return ParityError(reasons) if wrong else ResourceError(reasons)


def keep(bundle: Bundle, measured: Sequence[Measured], terms: Terms) -> Record:
    """Pick the fastest setups of a bundle, and record them for Predictor.

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
    with engines.stage_engine(bundle, auto.NAME, parts, files, terms.engines_dir, 2**20) as stage:
        text = json.dumps(_as_dict(measured, chosen), indent=2) + "\n"
        (stage.path / auto.RECORD_NAME).write_text(text)
    return Record(chosen, stage.target)


def _mixed_problems(
    bundle: Bundle, measured: Sequence[Measured], chosen: Mapping[int, int], terms: Terms
) -> list[str]:
    """List what speaks against answering each batch size by another setup; empty for one.

    Each setup is near enough to the reference, but an image's answer must not depend on how many
    there are with it either.
    """
    if len(set(chosen.values())) < 2:
        return []
    choices = {
        size: (measured[index].backend, dict(measured[index].options))
        for size, index in chosen.items()
    }
    problems: list[str] = child.call_in_child(
        "vit_edge.build.trial:mixed_problems", str(bundle.path), choices, terms.engines_dir
    )
    return problems


def _rows(measured: Sequence[Measured], chosen: Mapping[int, int]) -> list[tuple[str, ...]]:
    """List the measurements as a table with its heading; a star marks what was chosen.

    Args:
        measured: The setups.
        chosen: Batch -> index into them.
    """
    sizes = sorted(chosen)
    heading = ("", *(f"batch {size} ms" for size in sizes), "start s", "own MB", "all MB", "")
    return [heading, *(_row(setup, index, chosen) for index, setup in enumerate(measured))]


def _row(setup: Measured, index: int, chosen: Mapping[int, int]) -> tuple[str, ...]:
    if setup.refused is not None:
        return (setup.name, *("-" for _ in range(len(chosen) + 3)), f"refused: {setup.refused}")
    latencies = [
        f"{setup.latency_ms[size]:.1f}{'*' if chosen[size] == index else ''}"
        if size in setup.latency_ms
        else "-"
        for size in sorted(chosen)
    ]
    verdict = setup.over_limit or "; ".join(setup.parity[:1]) or "answers hold"
    memory = (f"{size / 1e6:.0f}" for size in (setup.peak_anonymous_bytes, setup.peak_rss_bytes))
    return (setup.name, *latencies, f"{setup.first_answer_s:.2f}", *memory, verdict)


def _as_dict(setups: Sequence[Measured], chosen: Mapping[int, int]) -> dict[str, Any]:
    return {
        "runtimes": backends.installed(),
        "chosen": {
            str(batch): {"backend": setups[index].backend, "options": dict(setups[index].options)}
            for batch, index in chosen.items()
        },
        "measured": [dataclasses.asdict(setup) for setup in setups],
    }
