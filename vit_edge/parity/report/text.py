"""Results of several devices as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vit_edge import cli
from vit_edge.parity.report.numbers import tables
from vit_edge.parity.report.sections import (
    Section,
    device_words,
    devices,
    merged,
    separate_note,
)
from vit_edge.parity.result import FAIL, INCONCLUSIVE, Result

_MARKS = {FAIL: " FAILED", INCONCLUSIVE: " open"}


def text_of(results: Sequence[Result]) -> Iterator[str]:
    """The sections as tables for the terminal, which no text in a result can steer."""
    yield from map(cli.printable, _lines(results))


def _lines(results: Sequence[Result]) -> Iterator[str]:
    for device, result in zip(devices(len(results)), results, strict=True):
        when = f"{device_words(result)}, {result.created}, {result.tool}"
        yield f"{device}: {when}" if device else when
    sections = merged(results)
    note = separate_note(sections)
    if note:
        yield f"\n{note}"
    for section in sections:
        yield f"\n{section.title}\n{section.question}"
        if section.columns:
            yield cli.table(list(_table(section)))
        for column in section.columns:
            yield from (f"{column.label} FAILED: {reason}" for reason in column.run.failures)
            yield from (f"{column.label} OPEN: {asked}" for asked in column.run.open_questions)


def _table(section: Section) -> Iterator[list[str]]:
    columns = section.columns
    yield ["", *(column.label for column in columns), ""]
    yield ["verdict", *(column.run.verdict for column in columns), ""]
    for table in tables(section):
        yield [table.output, *("" for _ in columns), "allowed"]
        for line in table.lines:
            cells = (cell.text + _MARKS.get(cell.status, "") for cell in line.cells)
            yield [f"  {line.words}", *cells, line.allowed]
    yield ["peak memory", *(_mb(column.run.memory.peak_rss_bytes) for column in columns), ""]
    own = (_mb(column.run.memory.peak_anonymous_bytes) for column in columns)
    yield ["of it its own", *own, ""]
    yield ["time", *(f"{column.run.seconds.total:.1f} s" for column in columns), ""]


def _mb(peak_bytes: int | None) -> str:
    return f"{peak_bytes / 1e6:.0f} MB" if peak_bytes else "-"
