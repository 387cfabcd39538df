"""Runs in which competitors took turns with ours, as Markdown: each against our fastest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vit_edge.bench.report.cells import mb, ms, p50
from vit_edge.bench.report.lines import Line
from vit_edge.bench.report.machines import Machine
from vit_edge.bench.report.markdown import escaped, mark_explained, table_lines
from vit_edge.bench.results.compare import alike, compared, digits
from vit_edge.bench.results.runs import Run
from vit_edge.bench.results.table import answers

_HEADING = ("", "ms (95 %)", "times ours", "95 %", "start s", "own MB", "peak MB", "answers")
_NUMERIC = [False, *[True] * 6, False]


def others_lines(machines: Sequence[Machine]) -> Iterator[str]:
    """Of each machine the newest run with competitors: a table for each kind of query."""
    for machine in machines:
        queries = next(filter(None, map(_queries, reversed(machine.runs))), [])
        if not queries:
            continue
        run = queries[0][0].run
        yield ""
        yield f"{escaped(machine.title)}; run of {escaped(run.started)}:"
        for ours, lines in queries:
            batch = f"batch {ours.batch}, {escaped(ours.entry.stage)}"
            yield ""
            yield f"{batch}, against {escaped(ours.way)} with {escaped(ours.bundle)}:"
            yield ""
            yield from table_lines(_HEADING, (_row(line, ours) for line in lines), _NUMERIC)
        yield ""
        for entry in run.configurations:
            if entry.failed is not None:
                yield f"Not measured: {escaped(entry.name)}: {escaped(entry.failed)}"
                yield ""
        yield from mark_explained(line for _, lines in queries for line in lines)


def _queries(run: Run) -> list[tuple[Line, list[Line]]]:
    """Of what answers the same kind of query: ours that is set against, and all by latency.

    Other models count, too: a convolutional network of the same images is what some choose.
    """
    found: dict[tuple[object, ...], list[Line]] = {}
    for entry in run.configurations:
        if entry.measured:
            _, *query = alike(entry)
            found.setdefault(tuple(query), []).append(Line(run, entry))
    queries = []
    for lines in found.values():
        lines.sort(key=lambda line: line.latency_ms)
        ours = next((line for line in lines if not (line.entry.is_peer or line.wrong)), None)
        if ours is not None and any(line.entry.is_peer for line in lines):
            queries.append((ours, lines))
    return queries


def _row(line: Line, ours: Line) -> list[str]:
    memory = line.numbers.memory_bytes
    times = compared(line.entry, ours.entry, line.run, ours.run).ratio
    return [
        escaped(line.bundle if line.entry.is_peer else f"{line.bundle}, {line.way}"),
        p50(line),
        "1" if line is ours else digits(times.value),
        "" if line is ours else f"{digits(times.low)} to {digits(times.high)}",
        ms(line.numbers.cold_s.total),
        mb(memory.anonymous), mb(memory.peak),
        escaped(answers(line.entry.parity)),
    ]  # fmt: skip
