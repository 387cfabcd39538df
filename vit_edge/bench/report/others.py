"""Runs in which competitors took turns with ours, as Markdown: each against our fastest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vit_edge.bench.compare import alike, compared, digits, measured
from vit_edge.bench.report.cells import NOISY, interval, mb, ms
from vit_edge.bench.report.lines import Line, Run
from vit_edge.bench.report.machines import Machine
from vit_edge.bench.report.markdown import escaped, table_lines
from vit_edge.bench.table import answers

_PEER = "peer:"  # what the backend of a competitor begins with: see vit_edge.bench.peers
_HEADING = ("", "ms (95 %)", "times ours", "95 %", "start s", "own MB", "peak MB", "answers")


def is_other(entry: Mapping[str, Any]) -> bool:
    """Whether an entry of a run is a competitor's."""
    return bool(entry["backend"].startswith(_PEER))


def others_lines(machines: Sequence[Machine]) -> Iterator[str]:
    """Of each machine the newest run with competitors: a table for each kind of query."""
    for machine in machines:
        run = next((run for run in reversed(machine.runs) if any(_queries(run))), None)
        if run is None:
            continue
        yield ""
        yield f"{escaped(machine.title)}; run of {escaped(run['started'])}:"
        doubtful = False
        for ours, lines in _queries(run):
            batch = f"batch {ours.batch}, {escaped(ours.entry['stage'])}"
            yield ""
            yield f"{batch}, against {escaped(ours.way)} with {escaped(ours.bundle)}:"
            yield ""
            numeric = [False] + [True] * (len(_HEADING) - 2) + [False]
            yield from table_lines(_HEADING, (_row(line, ours) for line in lines), numeric)
            doubtful |= any(line.noisy for line in lines)
        yield ""
        for entry in run["configurations"]:
            if entry["failed"] is not None:
                yield f"Not measured: {escaped(entry['name'])}: {escaped(entry['failed'])}"
                yield ""
        if doubtful:
            yield f"{NOISY}: the run warned of it: benchmarks/REPORT.md."
            yield ""


def _queries(run: Run) -> Iterator[tuple[Line, list[Line]]]:
    """Of what answers the same kind of query: ours that is set against, and all by latency.

    Other models count, too: a convolutional network of the same images is what some choose.
    """
    found: dict[tuple[object, ...], list[Line]] = {}
    for entry in run["configurations"]:
        if measured(entry):
            _, *query = alike(entry)
            found.setdefault(tuple(query), []).append(Line(run, entry))
    for lines in found.values():
        lines.sort(key=lambda line: line.latency_ms)
        ours = next((line for line in lines if not (is_other(line.entry) or line.wrong)), None)
        if ours is not None and any(is_other(line.entry) for line in lines):
            yield ours, lines


def _row(line: Line, ours: Line) -> list[str]:
    value, low, high = line.numbers["latency_ms"]["p50"]
    memory = line.numbers["memory_bytes"]
    times = compared(line.entry, ours.entry, line.run, ours.run).ratio
    return [
        escaped(line.bundle if is_other(line.entry) else f"{line.bundle}, {line.way}"),
        f"{ms(value)} ({interval(low, high)}){f' {NOISY}' if line.noisy else ''}",
        "1" if line is ours else digits(times.value),
        "" if line is ours else f"{digits(times.low)} to {digits(times.high)}",
        ms(sum(line.numbers["cold_s"].values())),
        mb(memory["anonymous"]), mb(memory["peak"]),
        escaped(answers(line.entry["parity"])),
    ]  # fmt: skip
