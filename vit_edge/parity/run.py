"""Comparisons in child processes, one backend at a time.

The reference's answers come from a file, so reference and candidate are never in memory together.
What a candidate needs is measured and can be limited. A candidate that dies is a result.
"""

from __future__ import annotations

import dataclasses
import datetime
import logging
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vit_edge import __version__, backends
from vit_edge.backends import AUTO, Backend
from vit_edge.bundle import Bundle
from vit_edge.bundle.bundle import sha256_of
from vit_edge.bundle.golden import Golden, GoldenWriter
from vit_edge.errors import UsageError, VitEdgeError
from vit_edge.kserve.endpoint import Endpoint
from vit_edge.machine import child
from vit_edge.machine.facts import machine_facts
from vit_edge.parity import judge
from vit_edge.parity.compare import (
    Comparison,
    check_golden,
    check_probes,
    compare_answers,
    gate_batches,
    write_answers,
)
from vit_edge.parity.invariance import check_invariance, failed
from vit_edge.parity.limits import limit_of, merging_judged, merging_limit
from vit_edge.parity.localize.localize import check_pair
from vit_edge.parity.localize.localize import localize as localize_failure
from vit_edge.parity.logits import LogitComparison
from vit_edge.parity.result import (
    DIED,
    FAIL,
    INCONCLUSIVE,
    PASS,
    SCHEMA_VERSION,
    BundleFacts,
    Check,
    GoldenFacts,
    Memory,
    Result,
    Run,
    Scatter,
    Seconds,
    StoredLimit,
)
from vit_edge.parity.served import PREPROCESSING, check_files
from vit_edge.parity.targets import LOGITS, Target
from vit_edge.parity.witness import Witness

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Question:
    """What a child is to find out."""

    bundle: str
    backend: str
    golden: str
    target: Target | None
    url: str | None = None  # of a server, which is asked instead of a backend here
    unmerged: bool = False  # the answers are of the model whose tokens are not merged


@dataclass(frozen=True)
class ChildLimits:
    """What each child may take; None for no limit."""

    memory_limit_bytes: int | None = None
    timeout_s: float | None = None


def compare(
    bundle: str | os.PathLike[str] | Bundle,
    *,
    backend_names: Sequence[str] = (AUTO,),
    against_url: str | None = None,
    golden: Path | None = None,
    against: str | os.PathLike[str] | Bundle | None = None,
    target: Target | None = None,
    localize: bool = False,
    memory_limit_bytes: int | None = None,
    timeout_s: float | None = None,
) -> Result:
    """Compare what backends make of a bundle with the reference.

    Args:
        bundle: The candidate.
        backend_names: One child process each, in this order.
        against_url: A server of KServe's protocol, which is asked instead of backends here.
        golden: Images with the reference's answers; by default the bundle's own.
        against: Another bundle, whose answers to those images are the reference instead.
        target: What the logits must reach besides the precision's limit.
        localize: Look for the place where what fails leaves the reference, which `against` names.
        memory_limit_bytes: Of each child.
        timeout_s: Of each child.

    Returns:
        The result; it does not raise when a candidate fails or dies.

    Raises:
        VitEdgeError: The bundle, the golden file or the other bundle cannot be read or used.
    """
    candidate = Bundle.read(bundle)
    if against_url is None:
        for name in backend_names:
            backends.module(name)  # refused before any runs
    else:
        backend_names = [Endpoint(candidate, against_url).url]
    if localize and against is None:
        raise UsageError(
            "localizing needs the fp32 bundle of the same model to compare with step by step: "
            "name it with --against"
        )
    reference = None if against is None else Bundle.read(against)
    if localize and reference is not None:
        check_pair(candidate, reference)
    unmerged = reference is not None and merging_judged(candidate.manifest, reference.manifest)
    limits = ChildLimits(memory_limit_bytes, timeout_s)
    created = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    asked = path = golden or candidate.golden_path
    with tempfile.TemporaryDirectory(prefix="vit_edge-parity-") as scratch:
        if reference is not None:
            path = _answered_by(reference, asked, Path(scratch))
        with Golden(path) as opened:
            check_golden(opened, candidate.manifest)
            sha256, dtype = sha256_of(asked), opened.reference_dtype
            golden_facts = GoldenFacts(asked.name, sha256, len(opened), dtype)
        runs = [
            _run(
                Question(str(candidate.path), name, str(path), target, against_url, unmerged),
                limits,
            )
            for name in backend_names
        ]
        if localize and reference is not None:
            runs = [
                _localized(candidate, reference, run, path, limits) if run.verdict == FAIL else run
                for run in runs
            ]
    return Result(
        schema_version=SCHEMA_VERSION,
        tool=f"vit_edge {__version__}",
        created=created,
        machine=machine_facts(),
        bundle=_bundle_facts(candidate),
        against=None if reference is None else _bundle_facts(reference),
        golden=golden_facts,
        runs=tuple(runs),
    )


def _localized(
    candidate: Bundle, reference: Bundle, run: Run, golden: Path, limits: ChildLimits
) -> Run:
    """A run that failed, with the place where it leaves the reference or why that was not found."""
    try:
        place = localize_failure(
            candidate,
            reference,
            backend=run.name,
            golden=golden,
            memory_limit_bytes=limits.memory_limit_bytes,
            timeout_s=limits.timeout_s,
        )
    except VitEdgeError as error:
        return dataclasses.replace(run, localized=f"not found: {error}")
    return dataclasses.replace(run, blocks=place.blocks(), localized=place.sentence)


def _bundle_facts(bundle: Bundle) -> BundleFacts:
    manifest = bundle.manifest
    return BundleFacts(
        bundle.path.resolve().name,
        manifest.variant,
        manifest.precision,
        bundle.model_sha256,
        bundle.model_bytes,
    )


def _run(question: Question, limits: ChildLimits) -> Run:
    """One child: its findings, its memory, or its death."""
    _LOG.info("comparing on %s", question.backend)
    started = time.monotonic()
    memory = Memory(limits.memory_limit_bytes)
    try:
        call = child.attempted_call(
            "vit_edge.parity.run:compare_here",
            question,
            memory_limit_bytes=limits.memory_limit_bytes,
            timeout_s=limits.timeout_s,
        )
        ended = call.child
        memory = Memory(
            limits.memory_limit_bytes,
            ended.limited_by,
            ended.peak_rss_bytes,
            ended.peak_anonymous_bytes,
        )
        run: Run = call.value or _dead(
            question, ended.death or f"exit code {ended.returncode}: {_last(ended.stderr)}"
        )
    except Exception as error:  # whatever it raised is this backend's result, not the others' end
        run = _dead(question, f"{type(error).__name__}: {error}")
    seconds = Seconds(time.monotonic() - started, run.seconds.running)
    return dataclasses.replace(run, memory=memory, seconds=seconds)


def _dead(question: Question, reason: str) -> Run:
    return Run(
        name=question.backend, verdict=DIED, problems=(), open_questions=(), death=reason, facts={},
        simulated=None, limit=StoredLimit(), limit_reason="", target=None, comparisons=(),
        checks=(), images=(), scatter=Scatter(), blocks=None, localized=None, memory=Memory(None),
        seconds=Seconds(0.0, 0.0),
    )  # fmt: skip


def _last(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def compare_here(question: Question) -> Run:
    """Compare in this process; what a child of `compare` runs.

    Returns:
        What was found; memory and total time are for the parent to measure.
    """
    bundle = Bundle.read(question.bundle)
    manifest = bundle.manifest
    limit = merging_limit(manifest.scores) if question.unmerged else limit_of(manifest)
    with Golden(Path(question.golden)) as golden:
        served = None if question.url is None else Endpoint(bundle, question.url)
        backend = _Timed(served or backends.module(question.backend).load(bundle))
        if served is not None:  # which may take smaller batches than the bundle
            manifest = dataclasses.replace(manifest, max_batch=served.max_batch)
        probes = golden.probes()
        witness = Witness(len(golden), manifest.scores)
        comparison = compare_answers(
            backend,
            golden,
            manifest,
            batches=gate_batches(manifest.max_batch),
            limit=limit,
            target=question.target,
            seen=witness.add,
        )
        if served is not None and served.encoded:
            preprocessing = check_files(served, probes, manifest, limit)
        else:
            wrong = check_probes(probes, manifest.preprocessing)
            words = "; ".join(wrong) or f"{len(probes)} probe files"
            preprocessing = Check(PREPROCESSING, not wrong, words)
        checks = (
            preprocessing,
            *check_invariance(backend, golden, manifest, limit),
        )
        names = golden.names
    backend.close()
    rows = comparison.rows()
    findings = judge.findings(rows, limit, question.target)
    problems = (*comparison.problems, *failed(checks))
    open_questions = tuple(judge.open_questions(findings))
    facts = dict(backend.facts)
    return Run(
        name=question.backend,
        verdict=FAIL if problems else INCONCLUSIVE if open_questions else PASS,
        problems=problems,
        open_questions=open_questions,
        death=None,
        facts=facts,
        simulated=facts.get("simulated"),
        limit=StoredLimit(**limit.as_dict()),
        limit_reason=limit.reason,
        target=None if question.target is None else question.target.as_dict(),
        proofs=tuple(judge.proofs(rows, question.target)),
        comparisons=rows,
        findings=tuple(findings),
        checks=checks,
        images=witness.images(names, _largest_batch(comparison)),
        scatter=witness.scatter(),
        blocks=None,
        localized=None,
        memory=Memory(None),
        seconds=Seconds(0.0, backend.seconds),
    )


def _largest_batch(comparison: Comparison) -> LogitComparison | None:
    by_batch = comparison.statistics.get(LOGITS, {})
    statistics = by_batch[max(by_batch)] if by_batch else None
    return statistics if isinstance(statistics, LogitComparison) else None


class _Timed:
    """A backend that counts the time spent in it."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.facts = backend.facts
        self.seconds = 0.0

    def run(self, pixels: NDArray[np.generic]) -> dict[str, NDArray[np.float32]]:
        started = time.perf_counter()
        try:
            return self._backend.run(pixels)
        finally:
            self.seconds += time.perf_counter() - started

    def close(self) -> None:
        self._backend.close()


def _answered_by(reference: Bundle, golden: Path, scratch: Path) -> Path:
    """A golden file of the same images, answered by another bundle in a child of its own."""
    _LOG.info("asking %s", reference.path)
    path = scratch / "against.npz"
    child.call_in_child(
        "vit_edge.parity.run:answer_here", str(reference.path), str(golden), str(path)
    )
    return path


def answer_here(bundle_path: str, golden_path: str, target_path: str) -> None:
    """Write a golden file with this bundle's answers to another one's images; runs in a child.

    Raises:
        BundleError: The bundle takes images of another size.
    """
    bundle = Bundle.read(bundle_path)
    with Golden(Path(golden_path)) as golden:
        check_golden(golden, bundle.manifest)
        backend = backends.module(AUTO).load(bundle)
        with GoldenWriter(
            Path(target_path),
            probes=golden.probes(),
            outputs=golden.outputs,
            reference_dtype=f"{bundle.manifest.precision} on {backend.facts['runtime']}",
            labelled=golden.labels([]) is not None,
        ) as writer:
            write_answers(writer, backend, golden, bundle.manifest, golden.outputs, len(golden))
        backend.close()
