"""Which bound of a result holds and which does not, bound by bound, from its JSON alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from vit_edge.parity.compare import LOGITS, asked_of
from vit_edge.parity.limits import Limit
from vit_edge.parity.report.sections import Run
from vit_edge.parity.run import FAIL, INCONCLUSIVE, PASS
from vit_edge.parity.targets import DECIDED, STATISTICS, Target

Row = Mapping[str, Any]  # of Comparison.summary()
NON_FINITE = "non_finite"


class Finding(NamedTuple):
    """One bound, held against one output at one batch size."""

    statistic: str
    rule: str  # "limit" or "target"
    status: str  # PASS, FAIL or INCONCLUSIVE
    words: str


def limit_of(run: Run) -> Limit:
    """The limit that a run was held against; one without bounds where it died first."""
    stored = run["limit"]
    return Limit(
        Target(tuple(stored.get("logits", {}).items())),
        Target(tuple(stored.get("others", {}).items())),
        run["limit_reason"],
        stored.get("top1_agreement_surely_below"),
    )


def target_of(run: Run, output: str) -> Target | None:
    """What was asked of an output besides; None where nothing was."""
    outputs = {row["output"] for row in run["comparisons"]}
    if run["target"] is None or (output != LOGITS and LOGITS in outputs):
        return None
    return Target(tuple(run["target"].items()))


def findings(run: Run, row: Row) -> Iterator[Finding]:
    """Hold a row against every bound of its run."""
    limit, output = limit_of(run), row["output"]
    if row[NON_FINITE]:
        yield Finding(NON_FINITE, "limit", FAIL, f"{row[NON_FINITE]} NaN or Inf")
    bounds = limit.logits if output == LOGITS else limit.others
    for name, bound in bounds.bounds:
        missed = Target(((name, bound),)).missed(row)
        yield Finding(name, "limit", FAIL if missed else PASS, "; ".join(missed))
    if output == LOGITS and limit.judges_agreement(row):
        alone = Limit(Target(()), Target(()), "", limit.top1_agreement)
        missed = alone.problems(output, {**row, NON_FINITE: 0})
        yield Finding("top1_agreement", "limit", FAIL if missed else PASS, "; ".join(missed))
    target = asked_of(target_of(run, output), row, run["comparisons"])
    for name, bound in () if target is None else target.bounds:
        yield _asked(Target(((name, bound),)), row)


def _asked(bound: Target, row: Row) -> Finding:
    """Hold a row against one bound of a target."""
    ((name, value),) = bound.bounds
    if not bound.judged(row).bounds:
        why = f"the reference's own classes lead by less than {DECIDED:g} spreads"
        return Finding(name, "target", INCONCLUSIVE, why)
    refuted = bound.refuted(row)
    if refuted:
        return Finding(name, "target", FAIL, "; ".join(refuted))
    for proof in bound.open(row):
        written = STATISTICS[name].written
        low, high = (written(end) for end in proof.interval)
        asked = f"{STATISTICS[name].direction} {written(value)}"
        more = f"; about {proof.images_needed} would" if proof.images_needed else ""
        return Finding(
            name, "target", INCONCLUSIVE,
            f"{STATISTICS[name].words} {asked} is not decided by {row['images']} images "
            f"(95 %: {low} to {high}){more}",
        )  # fmt: skip
    return Finding(name, "target", PASS, "")
