"""The statistics of a section as a table: one row each, one column per backend and machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from vit_edge.parity.limits import Limit
from vit_edge.parity.report.sections import Column, Section
from vit_edge.parity.result import FAIL, INCONCLUSIVE, PASS, Row
from vit_edge.parity.tables import allowed_texts
from vit_edge.parity.targets import LOGITS, STATISTICS, Statistic, Target, words_of

_ABSENT = "-"
_SEVERITY = (FAIL, INCONCLUSIVE, PASS)


class Cell(NamedTuple):
    """What one backend reached, at the batch size where it is worst."""

    text: str
    interval: str  # of a rate, 95 %; else empty
    status: str  # of all batch sizes: PASS, FAIL, INCONCLUSIVE; empty where nothing bounds it


class Line(NamedTuple):
    """One statistic."""

    words: str
    cells: list[Cell]
    allowed: str


class Table(NamedTuple):
    """One output."""

    output: str
    lines: list[Line]


def tables(section: Section) -> list[Table]:
    """Every output that any run of a section compared."""
    columns = section.columns
    outputs = dict.fromkeys(row.output for c in columns for row in c.run.comparisons)
    return [Table(output, list(_lines(columns, output))) for output in outputs]


def _lines(columns: list[Column], output: str) -> Iterator[Line]:
    by_column = [[r for r in c.run.comparisons if r.output == output] for c in columns]
    judged = [_statuses(column, output) for column in columns]
    allowed = _allowed(columns, output, by_column)
    for name, statistic in STATISTICS.items():
        if all(row.summary.get(name) is None for rows in by_column for row in rows):
            continue
        cells = [
            _cell(rows, name, statistic, statuses.get(name, ""))
            for rows, statuses in zip(by_column, judged, strict=True)
        ]
        known = next(row.summary for rows in by_column for row in rows)
        yield Line(words_of(name, known), cells, allowed.get(name, ""))
    counts = [max((row.non_finite for row in rows), default=None) for rows in by_column]
    if any(counts):
        cells = [
            Cell(_ABSENT if count is None else f"{count:,}", "", FAIL if count else "")
            for count in counts
        ]
        yield Line("NaN or Inf", cells, "none")


def _statuses(column: Column, output: str) -> dict[str, str]:
    """Statistic -> the worst of what is said of it at any batch size."""
    by_statistic: dict[str, list[str]] = {}
    for finding in column.run.findings:
        if finding.output == output:
            by_statistic.setdefault(finding.statistic, []).append(finding.status)
    return {name: min(statuses, key=_SEVERITY.index) for name, statuses in by_statistic.items()}


def _allowed(columns: list[Column], output: str, by_column: list[list[Row]]) -> dict[str, str]:
    """Statistic -> what its limits, then its targets allow; what several runs share, once."""
    nothing = Limit(Target(()), Target(()), "")
    by_statistic: dict[str, list[str]] = {}
    for limited in (True, False):
        for column, rows in zip(columns, by_column, strict=True):
            limit = column.run.held_against() if limited else nothing
            target = None if limited else column.run.target_of(output)
            texts = allowed_texts(limit, target, rows[0]) if rows else {}
            for name, text in texts.items():
                by_statistic.setdefault(name, []).append(text)
    return {name: ", ".join(dict.fromkeys(texts)) for name, texts in by_statistic.items()}


def _cell(rows: list[Row], name: str, statistic: Statistic, status: str) -> Cell:
    known = [row.summary for row in rows if row.summary.get(name) is not None]
    if not known:
        return Cell(_ABSENT, "", status)
    choose = min if statistic.direction == "at least" else max
    worst = choose(known, key=lambda summary: float(summary[name]))
    interval = worst.get(statistic.interval) if statistic.interval else None
    ends = "" if interval is None else " to ".join(statistic.written(end) for end in interval)
    return Cell(statistic.written(worst[name]), ends, status)


def fullest_row(column: Column) -> Row | None:
    """The comparison of the logits that saw the most images: what rates are best known from."""
    rows = [row for row in column.run.comparisons if row.output == LOGITS]
    return max(rows, key=lambda row: row.images, default=None)
