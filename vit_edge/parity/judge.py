"""Hold statistics against a limit and a target, bound by bound; everything else reads this."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from vit_edge.parity.limits import Limit
from vit_edge.parity.result import (
    FAIL,
    INCONCLUSIVE,
    PASS,
    Finding,
    Row,
    RowProof,
    Run,
    Status,
)
from vit_edge.parity.targets import DECIDED, LOGITS, NON_FINITE, STATISTICS, Proof, Target


def findings(rows: Sequence[Row], limit: Limit, target: Target | None) -> list[Finding]:
    """Judge every row of a comparison.

    Args:
        rows: Outputs at batch sizes.
        limit: What the precision allows.
        target: What the user asks for besides.

    Returns:
        One finding for each bound of each row, whether it holds or not.
    """
    judged: list[Finding] = []
    for row in rows:
        for statistic, status, words in _limited(row, limit):
            judged.append(Finding(row.output, row.batch, statistic, "limit", status, words))
        for statistic, status, words in _asked(row, asked_of(target, row, rows)):
            judged.append(Finding(row.output, row.batch, statistic, "target", status, words))
    return judged


def with_findings(run: Run) -> Run:
    """A run with its findings, which files of 0.1.0 do not hold."""
    if run.findings:
        return run
    target = None if run.target is None else Target(tuple(run.target.items()))
    judged = findings(run.comparisons, run.held_against(), target)
    return dataclasses.replace(run, findings=tuple(judged))


def problems(rows: Sequence[Row], judged: Sequence[Finding]) -> list[str]:
    """What fails, in words; what goes wrong alike at several batch sizes is said once."""
    by_place = {(row.output, row.batch): row for row in rows}
    sentences = []
    for finding in judged:
        row = by_place[finding.output, finding.batch]
        hidden = row.non_finite and finding.rule == "limit" and finding.statistic != NON_FINITE
        if finding.status == FAIL and not hidden:
            asked = "target: " * (finding.rule == "target")
            worst = f"worst is image {row.summary['worst_image']}"
            sentences.append((finding, f"{asked}{finding.words}; {worst}"))
    return _said_once(sentences)


def open_questions(judged: Sequence[Finding]) -> list[str]:
    """Rates that the target asks for and the images do not decide, in words."""
    return _said_once([(f, f.words) for f in judged if f.status == INCONCLUSIVE])


def asked_of(target: Target | None, row: Row, rows: Sequence[Row]) -> Target | None:
    """What of a target is held against one row of a comparison.

    Args:
        target: What the user asks for.
        row: An output at a batch size.
        rows: All of them.

    Returns:
        None for other outputs than the logits, where there are logits. Rates only at the batch
        size that saw most images, for the others saw too few to prove any.
    """
    if target is None or (row.output != LOGITS and any(r.output == LOGITS for r in rows)):
        return None
    most = max(other.images for other in rows if other.output == row.output)
    return target if row.images == most else target.without_rates()


def proofs(rows: Sequence[Row], target: Target | None) -> list[RowProof]:
    """Every bound on a rate that the target asks for, and whether its interval holds it."""
    asked = ((row, asked_of(target, row, rows)) for row in rows)
    return [
        RowProof(**dataclasses.asdict(proof), output=row.output, batch=row.batch)
        for row, bounds in asked
        if bounds is not None
        for proof in bounds.proved(row.summary)
    ]


def _limited(row: Row, limit: Limit) -> Iterator[tuple[str, Status, str]]:
    """Hold a row against every bound of a limit."""
    for name, missed in limit.judged(row.output, row.summary):
        yield name, *_failed(missed)


def _asked(row: Row, target: Target | None) -> Iterator[tuple[str, Status, str]]:
    """Hold a row against every bound of what is asked of it."""
    for bound in () if target is None else target.bounds:
        alone, name = Target((bound,)), bound[0]
        undecided = _undecided(alone, row)
        if undecided:
            yield name, INCONCLUSIVE, undecided
        else:
            yield name, *_failed(alone.refuted(row.summary))


def _failed(missed: Sequence[str]) -> tuple[Status, str]:
    return (FAIL, "; ".join(missed)) if missed else (PASS, "")


def _undecided(bound: Target, row: Row) -> str:
    """Why the images do not decide about one bound; empty where they do."""
    ((name, value),) = bound.bounds
    statistic = STATISTICS[name]
    asked = f"{statistic.words} {statistic.direction} {statistic.written(value)} is not proven"
    if not bound.judged(row.summary).bounds:
        return f"{asked}: the reference's own classes lead by less than {DECIDED:g} spreads"
    return "".join(f"{asked}: {_what_would_decide(p, row)}" for p in bound.open(row.summary))


def _what_would_decide(proof: Proof, row: Row) -> str:
    statistic = STATISTICS[proof.statistic]
    low, high = (statistic.written(value) for value in proof.interval)
    needed = (
        "more images must tell"
        if proof.images_needed is None
        else f"about {proof.images_needed} images at this rate would do"
    )
    count = row.summary[statistic.trials]
    return f"{count} images leave it at {low} to {high} (95 %); {needed}"


def _said_once(sentences: Sequence[tuple[Finding, str]]) -> list[str]:
    """Join what is said alike of several batch sizes: "logits, batch 1, 2: ..."."""
    sizes: dict[tuple[str, str], list[str]] = {}
    for finding, sentence in sentences:
        sizes.setdefault((finding.output, sentence), []).append(str(finding.batch))
    return [
        f"{output}, batch {', '.join(of_these)}: {sentence}"
        for (output, sentence), of_these in sizes.items()
    ]
