"""Offers: a bundle with a backend, as it was measured, and what speaks against shipping it.

Everything is judged by the end of its interval that is worse: what is said to be within a limit is
so with 95 % confidence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vit_edge import backends
from vit_edge.bench.results import results
from vit_edge.bench.results.compare import MACHINE
from vit_edge.bench.results.percentiles import Estimate, percentile, samples_needed
from vit_edge.bench.results.runs import Answers, Entry, Run
from vit_edge.bench.run.plan import Configuration
from vit_edge.build.choose import Measured
from vit_edge.bundle import Bundle
from vit_edge.parity.targets import AGREEMENTS, STATISTICS, Proof, Target, decides


class Terms(NamedTuple):
    """The demands on an offer."""

    batch: int = 1
    percentile: float = 0.5
    max_latency_ms: float | None = None
    memory_limit_bytes: int | None = None
    target: Target | None = None

    @property
    def percentile_name(self) -> str:
        """Such as p50."""
        return f"p{100 * self.percentile:g}"


@dataclass(frozen=True)
class Offer:
    """One bundle with one backend.

    Attributes:
        bundle: The bundle.
        setup: What was found; its latency is the upper end of the interval.
        entry: The configuration as it was measured, in `run`; None for what cannot run.
        run: The run.
        doubts: What the images that were compared cannot decide.
        proven: What they can, in words.
    """

    bundle: Bundle
    setup: Measured
    entry: Entry | None = None
    run: Run | None = None
    doubts: tuple[str, ...] = ()
    proven: str = ""

    @property
    def name(self) -> str:
        """As one would say it."""
        return f"{self.bundle.path} with {self.setup.name}"

    @property
    def key(self) -> tuple[str, str]:
        """The model and the setup."""
        return self.bundle.model_sha256, self.setup.name

    def configuration(self, batch: int) -> Configuration:
        """Return the configuration that measures it again."""
        return Configuration(self.bundle.path, self.setup.backend, self.setup.options, batch)

    def with_parity(self, parity: Answers | None, target: Target | None) -> Offer:
        """The same, judged by this comparison; see session.parity."""
        faults, doubts, proven = _judged(parity, target)
        setup = dataclasses.replace(self.setup, parity=tuple(faults))
        return dataclasses.replace(self, setup=setup, doubts=tuple(doubts), proven=proven)


def offer(bundle: Bundle, entry: Entry, run: Run, terms: Terms) -> Offer:
    """Judge what was measured of a configuration.

    Args:
        bundle: What was measured.
        entry: A configuration that was measured, of `run`.
        run: A run.
        terms: What is asked.
    """
    latency = percentile(entry.samples, terms.percentile)
    memory = [process.memory_bytes for process in entry.processes]
    peak_bytes = round(max(bytes_of.peak for bytes_of in memory))
    own_bytes = round(max(bytes_of.anonymous for bytes_of in memory))
    setup = Measured(
        entry.backend,
        entry.options,
        too_slow=_too_slow(latency, terms),
        over_limit=_over_limit(peak_bytes, own_bytes, terms.memory_limit_bytes),
        latency_ms={terms.batch: latency.high},
        peak_rss_bytes=peak_bytes,
        peak_anonymous_bytes=own_bytes,
        facts={key: str(value) for key, value in entry.facts.items()},
    )
    return Offer(bundle, setup, entry, run).with_parity(entry.parity, terms.target)


def from_results(
    paths: Sequence[Path], bundles: Sequence[Bundle], here: Mapping[str, str], terms: Terms
) -> tuple[list[Offer], list[str]]:
    """Read what results say of these bundles on this machine, with what is installed here.

    Of the same the newest counts, that of an interrupted run only where no complete one has it.

    Args:
        paths: Results.
        bundles: The bundles.
        here: The facts of this machine, see facts.run_facts.
        terms: What is asked.

    Returns:
        The offers; and what was left out, with the reason.

    Raises:
        ResultsError: A file holds no results.
    """
    by_model = {bundle.model_sha256: bundle for bundle in bundles}
    offers: dict[tuple[str, str], Offer] = {}
    left_out: dict[str, None] = {}
    for path, run in sorted(_runs(paths), key=_rank):
        for entry in run.configurations:
            reason = _unfit(entry, run, by_model, here, terms)
            if reason is not None:
                left_out[f"{path}: {entry.name}: {reason}"] = None
                continue
            latest = offer(by_model[entry.model.model_sha256 or ""], entry, run, terms)
            offers[latest.key] = latest
    return list(offers.values()), list(left_out)


def _runs(paths: Sequence[Path]) -> Iterator[tuple[Path, Run]]:
    for path in paths:
        for run in results.read(path):
            yield path, run


def _rank(item: tuple[Path, Run]) -> tuple[bool, str]:
    """Order by what counts: what counts more comes later."""
    _, run = item
    return run.complete, run.started


def _unfit(
    entry: Entry,
    run: Run,
    by_model: Mapping[str, Bundle],
    here: Mapping[str, str],
    terms: Terms,
) -> str | None:
    """Say why a configuration says nothing about what is asked; None if it does."""
    if entry.bundle is None or entry.bundle.model_sha256 not in by_model:
        return "another model than any of these bundles'"
    there = run.facts
    differing = [name for name in MACHINE if there.get(name) != here.get(name)]
    if differing:
        name = differing[0]
        return f"measured on another machine: {name} is {there.get(name)}, here {here.get(name)}"
    asked = {"batch": terms.batch, "scenario": "single-stream", "stage": "model"}
    for name, value in asked.items():
        if (measured := getattr(entry, name)) != value:
            return f"{name} is {measured}, asked is {value}"
    if not entry.measured:
        return f"it failed: {entry.failed or 'nothing was measured'}"
    count = sum(len(latencies) for latencies in entry.samples)
    if count < (needed := samples_needed(terms.percentile)):
        return f"{count} samples, {terms.percentile_name} needs {needed}"
    if not run.complete and len(entry.processes) == 1:
        # Its interval comes from its own samples, and is far narrower than that of several.
        return "one process of an interrupted run: how processes differ is not known"
    return _other_runtime(entry)


def _other_runtime(entry: Entry) -> str | None:
    """Say how the runtime differs from the one here, as far as its backend tells."""
    facts = entry.facts
    name = str(facts.get("backend", entry.backend))  # what runs, where "auto" was asked for
    there, here = facts.get("runtime"), backends.version(name)
    if here is None:
        return f"backend {name} cannot be used here"
    words = here.split()  # "onnxruntime 1.31.1"; of eager only "torch", whose import takes seconds
    if str(there).split()[: len(words)] == words:
        return None
    return f"measured with another runtime: {there}, here {here}"


def _too_slow(latency: Estimate, terms: Terms) -> str | None:
    if terms.max_latency_ms is None or latency.high <= terms.max_latency_ms:
        return None
    text = f"{terms.percentile_name} may be {latency.high:.4g} ms, allowed {terms.max_latency_ms:g}"
    if latency.value > terms.max_latency_ms:
        return text
    return f"{text}; measured {latency.value:.4g}: more processes narrow it (--processes)"


def _over_limit(peak_bytes: int, own_bytes: int, limit_bytes: int | None) -> str | None:
    if limit_bytes is None or peak_bytes <= limit_bytes:
        return None
    text = f"it takes {peak_bytes / 1e6:.0f} MB, allowed are {limit_bytes / 1e6:.0f}"
    if own_bytes > limit_bytes:
        return text
    return (
        f"{text}; {own_bytes / 1e6:.0f} MB are its own and the rest are files, so it may still "
        "answer, more slowly: vit-edge build BUNDLE --tune --memory-limit tells"
    )


def _judged(parity: Answers | None, target: Target | None) -> tuple[list[str], list[str], str]:
    """Return what answers miss, what is open, and what is proven."""
    if parity is None:
        return [], ["its answers were not compared with the reference's"], ""
    faults, statistics = list(parity.problems), parity.statistics
    if target is None:
        return faults, [], ""
    judged = target.judged(statistics)
    faults += judged.refuted(statistics)
    doubts = [_doubt(proof, statistics) for proof in judged.open(statistics)]
    if any(name in AGREEMENTS for name, _ in target.bounds) and not decides(statistics):
        doubts.append(
            "the reference itself hardly decides between the classes of these images, so that "
            "agreement with it says nothing: compare others (--golden)"
        )
    proven = (_proven(proof, statistics) for proof in judged.proved(statistics) if proof.holds)
    return faults, doubts, ", ".join(proven)


def _surely(proof: Proof) -> str:
    """The end of an interval that is worse, in words."""
    statistic = STATISTICS[proof.statistic]
    low, high = proof.interval
    end = low if statistic.direction == "at least" else high
    return f"{statistic.direction} {statistic.written(end)}"


def _doubt(proof: Proof, statistics: Mapping[str, Any]) -> str:
    statistic = STATISTICS[proof.statistic]
    needed = "more" if proof.images_needed is None else f"{proof.images_needed:,} (at this rate)"
    return (
        f"{statistic.words} is {statistic.written(statistics[proof.statistic])} on "
        f"{statistics[statistic.trials]} {statistic.trials}, which proves {_surely(proof)}; asked "
        f"is {statistic.direction} {statistic.written(proof.bound)}: compare {needed} "
        "(vit-edge parity record, then --golden FILE)"
    )


def _proven(proof: Proof, statistics: Mapping[str, Any]) -> str:
    statistic = STATISTICS[proof.statistic]
    return (
        f"{statistic.words} {_surely(proof)} on {statistics[statistic.trials]:,} {statistic.trials}"
    )
