"""Runs as Markdown."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from vit_edge import cli
from vit_edge.bench.report.cells import NOISY, Cell, table
from vit_edge.bench.report.machines import Machine, apart, backend_facts, run_facts
from vit_edge.bench.results.runs import Run

_INCOMPLETE = "INCOMPLETE: "  # what table.warnings writes

EXPLANATION = (
    "p50 is the median of all samples. Its 95 % interval stands behind it and comes from how "
    "processes differ. p90 and p99 stand where ten samples lie beyond them. Cold start is the time "
    "from starting Python to the first answer. Own memory is anonymous; the peak includes mapped "
    "files, which the system can take back. Answers are compared with those of the float64 "
    "reference that the bundle carries: signal over noise of the logits, and how often the first "
    "class is the same. Configurations of one run took turns on a machine. "
    "`vit-edge bench compare` says how much faster one is than another, with an interval. "
    "Numbers of different machines are not compared."
)


def markdown(machines: Sequence[Machine]) -> str:
    """The whole report; the same runs make the same text."""
    lines = [
        "# Benchmarks",
        "",
        "Made from the raw results by `vit-edge bench report`; not to be edited.",
        "",
        EXPLANATION,
    ]
    for machine in machines:
        lines += ["", *_section(machine)]
    if not machines:
        lines += ["", "Nothing was measured."]
    return "\n".join(lines) + "\n"


def escaped(text: object) -> str:
    """Text of others such that Markdown shows it as it is, in a table too."""
    plain = html.escape(cli.printable(" ".join(str(text).split())), quote=False)
    return re.sub(r"([\\|*`\[\]~])", r"\\\1", plain)


def table_lines(
    heading: Sequence[str], rows: Iterable[Sequence[str]], numeric: Sequence[bool] | None = None
) -> Iterator[str]:
    """A table; numbers stand on the right."""
    right = numeric or [False] * len(heading)
    yield f"| {' | '.join(heading)} |"
    yield f"|{'|'.join('--:' if each else '---' for each in right)}|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _section(machine: Machine) -> Iterator[str]:
    yield f"## {escaped(machine.title)}"
    yield ""
    yield from _warnings(machine)
    for group in machine.groups:
        yield f"### {escaped(group.title)}"
        yield ""
        yield from _cells(*table(group.lines))
    if machine.failed:
        yield "### Not measured"
        yield ""
        reasons = [
            (escaped(line.entry.name), escaped(line.entry.failed)) for line in machine.failed
        ]
        yield from table_lines(("configuration", "reason"), reasons)
        yield ""
    yield from _reasons(machine)
    for run in machine.runs:
        yield from _folded(f"Run of {escaped(run.started)}: its facts", _facts(run))


def noise_sentence(machine: Machine) -> str:
    """Say once what the mark of noisy rows means, and where their warnings are; "" without any."""
    marked = sum(line.noisy for line in machine.lines)
    if not marked:
        return ""
    return (
        f"{NOISY} marks {marked} of {len(machine.lines)} rows, which something disturbed: read "
        "their intervals, not their medians. Each reason is listed at the end of this section."
    )


def _warnings(machine: Machine) -> Iterator[str]:
    """What speaks against whole runs, and how to read noisy rows."""
    whole, _ = machine.warnings
    of_runs = [f"{escaped(text)} (run of {escaped(run.started)})" for run, text in whole]
    of_runs += [f"the runs differ in {escaped(text)}" for text in apart(machine)]
    for text in dict.fromkeys(of_runs):
        incomplete = text.startswith(_INCOMPLETE)
        word = "INCOMPLETE" if incomplete else "Warning"
        yield f"> - **{word}:** {text.removeprefix(_INCOMPLETE)}"
    if of_runs:
        yield ""
    if sentence := noise_sentence(machine):
        yield sentence
        yield ""


def _reasons(machine: Machine) -> Iterator[str]:
    """The warnings of single configurations, folded."""
    _, single = machine.warnings
    if single:
        count = "1 warning" if len(single) == 1 else f"{len(single)} warnings"
        title = f"{NOISY} {count} of single configurations"
        yield from _folded(title, [f"- {escaped(text)}" for text in single])


def _facts(run: Run) -> Iterator[str]:
    yield from table_lines(("fact", "value"), _pairs(run_facts(run)))
    yield ""
    rows = [
        (escaped(backend), escaped(key), escaped(value))
        for backend, facts in backend_facts(run).items()
        for key, value in facts.items()
    ]
    if rows:
        yield from table_lines(("backend", "fact", "value"), rows)


def _pairs(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(escaped(key), escaped(value)) for key, value in facts.items()]


def _folded(title: str, lines: Iterator[str] | Sequence[str]) -> Iterator[str]:
    yield f"<details><summary>{title}</summary>"
    yield ""
    yield from lines
    yield ""
    yield "</details>"
    yield ""


def _cells(heading: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Iterator[str]:
    numeric = [cell.number for cell in rows[0]] if rows else None
    yield from table_lines(heading, [_written(row) for row in rows], numeric)
    yield ""


def _written(row: Sequence[Cell]) -> list[str]:
    return [escaped(cell.text) + (f" ({cell.note})" if cell.note else "") for cell in row]
