"""A comparison as text for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vit_edge.parity.limits import Limit
from vit_edge.parity.result import Row
from vit_edge.parity.targets import DECIDED, LOGITS, STATISTICS, Target, words_of

_SIGN = {"at least": ">=", "at most": "<="}


def exact_table(rows: Sequence[Row]) -> Iterator[str]:
    """One line per output and batch size: what matters where only rounding may differ."""
    logits = next((row.summary for row in rows if row.output == LOGITS), {})
    words = words_of("top1_agreement", logits)
    yield f"output      batch  max|diff|  of max|ref|  allowed  {words}"
    for row in rows:
        summary = row.summary
        agreement = summary.get("top1_agreement")
        yield (
            f"{row.output:<11} {row.batch:>5}  {_number(summary['max_abs_diff']):>9}  "
            f"{_number(summary['relative']):>11}  {summary['allowed_relative']:>7.0e}  "
            + ("-" if agreement is None else f"{agreement:.2%}")
        )


def statistics_table(rows: Sequence[Row], limit: Limit, target: Target | None) -> Iterator[str]:
    """One line per statistic, one column per batch size, and what is allowed."""
    outputs = list(dict.fromkeys(row.output for row in rows))
    for output in outputs:
        of_output = [row for row in rows if row.output == output]
        yield f"{output:<33}" + "".join(f"{f'batch {row.batch}':>11}" for row in of_output)
        columns = [row.summary for row in of_output]
        targeted = target if output == LOGITS or LOGITS not in outputs else None
        allowed = allowed_texts(limit, targeted, of_output[0])
        for name, statistic in STATISTICS.items():
            if all(row.get(name) is None for row in columns):
                continue
            cells = ("-" if r.get(name) is None else statistic.written(r[name]) for r in columns)
            line = f"  {words_of(name, columns[0]):<31}" + "".join(f"{cell:>11}" for cell in cells)
            yield f"{line}  {allowed.get(name, '')}".rstrip()
    if LOGITS in outputs:
        yield from _flips(rows)


def allowed_texts(limit: Limit, target: Target | None, row: Row) -> dict[str, str]:
    """What the limit says of each statistic of an output."""
    bounds = limit.logits if row.output == LOGITS else limit.others
    texts = {
        name: f"{_SIGN[STATISTICS[name].direction]} {STATISTICS[name].written(bound)}"
        for name, bound in bounds.bounds
    }
    if row.output == LOGITS and limit.top1_agreement is not None:
        texts["top1_agreement"] = (
            f">= {limit.top1_agreement:.2%} (within 95 %)"
            if limit.judges_agreement(row.summary)
            else f"not judged: the reference's classes lead by less than {DECIDED:g} spreads"
        )
    for name, bound in () if target is None else target.bounds:
        asked = f"{_SIGN[STATISTICS[name].direction]} {STATISTICS[name].written(bound)}"
        texts[name] = ", ".join([*filter(None, [texts.get(name)]), f"target {asked}"])
    return texts


def _flips(rows: Sequence[Row]) -> Iterator[str]:
    """The flips that matter most, at the batch size that has the worst."""
    worst = max(
        (row for row in rows if row.output == LOGITS),
        key=lambda row: float(row.summary.get("flip_margin_max") or 0.0),
    )
    for flip in worst.summary.get("worst_flips", ()):
        margin = flip["relative_margin"]
        yield (
            f"  flip at batch {worst.batch}: image {flip['image']}, class "
            f"{_class(flip['reference_class'])} -> {_class(flip['candidate_class'])}, margin "
            + ("-" if margin is None else f"{margin:.3g} spreads")
        )


def _class(place: int) -> str:
    return "none" if place < 0 else str(place)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2e}"
