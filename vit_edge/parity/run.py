"""Comparisons in child processes, one backend at a time, as a result ready for JSON.

The reference's answers come from a file, so reference and candidate are never in memory together;
what a candidate needs is measured, can be limited, and a candidate that dies is a result.
docs/parity.md describes the result.
"""

from __future__ import annotations

import datetime
import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_edge import __version__, backends
from vit_edge.backends import AUTO, Backend
from vit_edge.bundle import Bundle
from vit_edge.bundle.bundle import sha256_of
from vit_edge.bundle.golden import Golden, GoldenWriter
from vit_edge.errors import UsageError, VitEdgeError
from vit_edge.machine import child
from vit_edge.machine.facts import machine_facts
from vit_edge.parity.compare import (
    LOGITS,
    Comparison,
    asked_of,
    check_golden,
    check_probes,
    compare_answers,
    gate_batches,
    proofs,
    write_answers,
)
from vit_edge.parity.invariance import Check, check_invariance, failed
from vit_edge.parity.limits import limit_for
from vit_edge.parity.localize.localize import check_pair
from vit_edge.parity.localize.localize import localize as localize_failure
from vit_edge.parity.logits import LogitComparison
from vit_edge.parity.targets import DECIDED, STATISTICS, Proof, Target
from vit_edge.parity.witness import Witness

_LOG = logging.getLogger(__name__)

SCHEMA_VERSION = 3  # 2: the parity.json of a bundle, one comparison (parity.compare.as_json)

PASS, FAIL, INCONCLUSIVE, DIED = "pass", "fail", "inconclusive", "died"

Result = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """What a child is to find out."""

    bundle: str
    backend: str
    golden: str
    target: Target | None


def compare(
    bundle: str | Path | Bundle,
    *,
    backend_names: Sequence[str] = (AUTO,),
    golden: Path | None = None,
    against: str | Path | None = None,
    target: Target | None = None,
    localize: bool = False,
    memory_limit_bytes: int | None = None,
    timeout_s: float | None = None,
) -> Result:
    """Compare what backends make of a bundle with the reference.

    Args:
        bundle: The candidate.
        backend_names: One child process each, in this order.
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
    candidate = bundle if isinstance(bundle, Bundle) else Bundle.read(bundle)
    for name in backend_names:
        backends.module(name)  # refused before any runs
    if localize and against is None:
        raise UsageError(
            "localizing needs the fp32 bundle of the same model to compare with step by step: "
            "name it with --against"
        )
    reference = None if against is None else Bundle.read(against)
    if localize and reference is not None:
        check_pair(candidate, reference)
    asked = path = golden or candidate.golden_path
    with tempfile.TemporaryDirectory(prefix="vit_edge-parity-") as scratch:
        result: Result = {
            "schema_version": SCHEMA_VERSION,
            "tool": f"vit_edge {__version__}",
            "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "machine": machine_facts(),
            "bundle": bundle_facts(candidate),
            "against": None if reference is None else bundle_facts(reference),
        }
        if reference is not None:
            path = _answered_by(reference, asked, Path(scratch))
        with Golden(path) as opened:
            check_golden(opened, candidate.manifest)
            result["golden"] = {
                "name": asked.name,
                "sha256": sha256_of(asked),
                "images": len(opened),
                "reference_dtype": opened.reference_dtype,
            }
        result["runs"] = [
            _run(
                Question(str(candidate.path), name, str(path), target),
                memory_limit_bytes,
                timeout_s,
            )
            for name in backend_names
        ]
        for entry in result["runs"]:
            if localize and reference is not None and entry["verdict"] == FAIL:
                entry |= _localized(
                    candidate, reference, entry, path, memory_limit_bytes, timeout_s
                )
    return result


def _localized(
    candidate: Bundle,
    reference: Bundle,
    entry: Mapping[str, Any],
    golden: Path,
    memory_limit_bytes: int | None,
    timeout_s: float | None,
) -> Result:
    """Where a run that failed leaves the reference, or why that was not found."""
    try:
        found = localize_failure(
            candidate,
            reference,
            backend=entry["name"],
            golden=golden,
            memory_limit_bytes=memory_limit_bytes,
            timeout_s=timeout_s,
        )
    except VitEdgeError as error:
        return {"localized": f"not found: {error}"}
    return {"blocks": found.blocks(), "localized": found.sentence}


def bundle_facts(bundle: Bundle) -> dict[str, Any]:
    """What a result says of a bundle."""
    return {
        "name": bundle.path.resolve().name,
        "variant": bundle.manifest.variant,
        "precision": bundle.manifest.precision,
        "model_sha256": bundle.model_sha256,
        "model_bytes": bundle.model_bytes,
    }


def exit_code(results: Sequence[Mapping[str, Any]], *, strict: bool) -> int:
    """0 where all holds, 4 where something failed or died, or is open while `strict`."""
    verdicts = {run["verdict"] for result in results for run in result["runs"]}
    refused = {FAIL, DIED} | ({INCONCLUSIVE} if strict else set())
    return 4 if verdicts & refused or not verdicts else 0


def _run(question: Question, memory_limit_bytes: int | None, timeout_s: float | None) -> Result:
    """One child: its findings, its memory, or its death."""
    _LOG.info("comparing on %s", question.backend)
    started = time.monotonic()
    memory: Result = {}
    try:
        call = child.attempted_call(
            "vit_edge.parity.run:compare_here",
            question,
            memory_limit_bytes=memory_limit_bytes,
            timeout_s=timeout_s,
        )
        found: Result | None = call.value
        completed = call.child
        memory = {
            "limited_by": completed.limited_by,
            "peak_rss_bytes": completed.peak_rss_bytes,
            "peak_anonymous_bytes": completed.peak_anonymous_bytes,
        }
        if found is None:
            found = _dead(
                completed.death or f"exit code {completed.returncode}: {_last(completed.stderr)}"
            )
    except Exception as error:  # whatever it raised is this backend's result, not the others' end
        found = _dead(f"{type(error).__name__}: {error}")
    seconds = {"total": time.monotonic() - started, "running": found.pop("running_s", 0.0)}
    limit = {"limit_bytes": memory_limit_bytes}
    return {"name": question.backend, **found, "memory": {**limit, **memory}, "seconds": seconds}


def _dead(reason: str) -> Result:
    return {
        "verdict": DIED, "problems": [], "open_questions": [], "death": reason, "facts": {},
        "simulated": None, "limit": {}, "limit_reason": "", "target": None, "proofs": [],
        "comparisons": [], "checks": [], "images": [],
        "scatter": {"reference": [], "candidate": []}, "blocks": None, "localized": None,
    }  # fmt: skip


def _last(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def compare_here(question: Question) -> Result:
    """Compare in this process; what a child of `compare` runs.

    Returns:
        An entry of the result's "runs", less memory and total time.
    """
    bundle = Bundle.read(question.bundle)
    manifest = bundle.manifest
    limit = limit_for(manifest.precision)
    with Golden(Path(question.golden)) as golden:
        backend = _Timed(backends.module(question.backend).load(bundle))
        probes = golden.probes()
        witness = Witness(len(golden))
        comparison = compare_answers(
            backend,
            golden,
            manifest,
            batches=gate_batches(manifest.max_batch),
            limit=limit,
            target=question.target,
            seen=witness.add,
        )
        wrong = check_probes(probes, manifest.preprocessing)
        checks = [
            Check("preprocessing", not wrong, "; ".join(wrong) or f"{len(probes)} probe files"),
            *check_invariance(backend, golden, manifest, limit),
        ]
        names = golden.names
    backend.close()
    problems = comparison.problems + failed(checks)
    open_questions = unproven(comparison)
    facts = dict(backend.facts)
    verdict = FAIL if problems else INCONCLUSIVE if open_questions else PASS
    return {
        "verdict": verdict,
        "problems": problems,
        "open_questions": open_questions,
        "death": None,
        "facts": facts,
        "simulated": facts.get("simulated"),
        "limit": limit.as_dict(),
        "limit_reason": limit.reason,
        "target": None if question.target is None else question.target.as_dict(),
        "proofs": proofs(comparison),
        "comparisons": comparison.summary(),
        "checks": [check._asdict() for check in checks],
        "images": witness.images(names, _largest_batch(comparison)),
        "scatter": witness.scatter(),
        "blocks": None,
        "localized": None,
        "running_s": backend.seconds,
    }


def unproven(comparison: Comparison) -> list[str]:
    """Rates that the target asks for and these images do not decide.

    Returns:
        One sentence each, with the number of images that would.
    """
    rows = comparison.summary()
    batches: dict[tuple[str, str], list[str]] = {}  # what is open alike is said once
    for row in rows:
        target = asked_of(comparison.target, row, rows)
        if target is None:
            continue
        meaningful = {name for name, _ in target.judged(row).bounds}
        for proof in target.proved(row):
            if proof.statistic not in meaningful:
                why = f"the reference's own classes lead by less than {DECIDED:g} spreads"
            elif proof in target.open(row):
                why = _what_would_decide(proof, row)
            else:
                continue
            sentence = f"{_asked(proof)}: {why}"
            batches.setdefault((row["output"], sentence), []).append(str(row["batch"]))
    return [
        f"{output}, batch {', '.join(sizes)}: {sentence}"
        for (output, sentence), sizes in batches.items()
    ]


def _asked(proof: Proof) -> str:
    statistic = STATISTICS[proof.statistic]
    return f"{statistic.words} {statistic.direction} {statistic.written(proof.bound)} is not proven"


def _what_would_decide(proof: Proof, row: Mapping[str, Any]) -> str:
    statistic = STATISTICS[proof.statistic]
    low, high = (statistic.written(value) for value in proof.interval)
    needed = (
        "more images must tell"
        if proof.images_needed is None
        else f"about {proof.images_needed} images at this rate would do"
    )
    return f"{row[statistic.trials]} images leave it at {low} to {high} (95 %); {needed}"


def _largest_batch(comparison: Comparison) -> LogitComparison | None:
    by_batch = comparison.found.get(LOGITS, {})
    found = by_batch[max(by_batch)] if by_batch else None
    return found if isinstance(found, LogitComparison) else None


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
