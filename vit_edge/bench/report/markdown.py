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

_FOLDED = 4  # warnings of configurations that are shown open; more are folded
_INCOMPLETE = "INCOMPLETE: "  # what table.warnings writes

EXPLANATION = (
    "p50 is the median of all samples, behind it its 95 % interval from how processes differ; p90 "
    "and p99 stand where ten samples lie beyond them. Cold start: from starting Python to the "
    "first answer. Own memory is anonymous, the peak includes mapped files that the system can "
    "take back. Answers are compared with those of the float64 reference that the bundle carries: "
    "signal over noise of the logits, and how often the first class is the same. Configurations of "
    "one run took turns on a machine; how much faster one is than another, with its interval, is "
    "what `vit-edge bench compare` says. Numbers of different machines are not compared. "
    f"{NOISY}: there is a warning of it."
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
    for run in machine.runs:
        yield from _folded(f"Run of {escaped(run.started)}: its facts", _facts(run))


def _warnings(machine: Machine) -> Iterator[str]:
    """What speaks against the numbers, before them."""
    whole, single = machine.warnings
    of_runs = [f"{escaped(text)} (run of {escaped(run.started)})" for run, text in whole]
    of_runs += [f"the runs differ in {escaped(text)}" for text in apart(machine)]
    shown = of_runs + ([*map(escaped, single)] if len(single) <= _FOLDED else [])
    for text in dict.fromkeys(shown):
        incomplete = text.startswith(_INCOMPLETE)
        word = "INCOMPLETE" if incomplete else "Warning"
        yield f"> - **{word}:** {text.removeprefix(_INCOMPLETE)}"
    if shown:
        yield ""
    if len(single) > _FOLDED:
        yield from _folded(
            f"{NOISY} {len(single)} warnings of single configurations",
            [f"- {escaped(text)}" for text in single],
        )


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
