"""Runs as Markdown: benchmarks/REPORT.md, and the rows of the README."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from vit_edge import cli
from vit_edge.bench.report.cells import NOISY, Cell, interval, limits, mb, ms, table
from vit_edge.bench.report.machines import (
    Group,
    Line,
    Machine,
    Run,
    apart,
    backend_facts,
    run_facts,
    told,
)
from vit_edge.bench.table import answers
from vit_edge.errors import InputError

COMMAND = "python -m vit_edge.bench report benchmarks/results/*.json"
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
_PEER = "peer:"  # what the backend of a competitor begins with: see vit_edge.bench.peers
_FOLDED = 4  # warnings of configurations that are shown open; more are folded
_INCOMPLETE = "INCOMPLETE: "  # what table.warnings writes

EXPLANATION = (
    "p50 is the median of all samples, behind it its 95 % interval from how processes differ; p90 "
    "and p99 stand where ten samples lie beyond them. Cold start: from starting Python to the "
    "first answer. Own memory is anonymous, the peak includes mapped files that the system can "
    "take back. Answers are compared with those of the float64 reference that the bundle carries: "
    "signal over noise of the logits, and how often the first class is the same. The share of the "
    "limit is that of the largest rate which the runtimes' own kernels reached on the machine, of "
    "the products or of reading the weights, whichever is nearer. Configurations of one run took "
    "turns on a machine; how much faster one is than another, with its interval, is what `python "
    "-m vit_edge.bench compare` says. Numbers of different machines are not compared. "
    f"{NOISY}: there is a warning of it."
)


def markdown(machines: Sequence[Machine]) -> str:
    """The whole report; the same runs make the same text."""
    lines = [
        "# Benchmarks",
        "",
        f"Made from the raw results by `{COMMAND} --markdown benchmarks/REPORT.md`; not to be "
        "edited.",
        "",
        EXPLANATION,
    ]
    for machine in machines:
        lines += ["", *_section(machine)]
    if not machines:
        lines += ["", "Nothing was measured."]
    return "\n".join(lines) + "\n"


def with_rows(readme: str, machines: Sequence[Machine]) -> str:
    """A README with the numbers between its two markers made anew.

    Args:
        readme: Its text.
        machines: What was measured.

    Raises:
        InputError: The markers are missing, come twice or the wrong way round.
    """
    if (
        readme.count(BEGIN) != 1
        or readme.count(END) != 1
        or readme.index(BEGIN) > readme.index(END)
    ):
        raise InputError(
            "the README has no single place for the numbers: write these two lines where they "
            f"belong\n{BEGIN}\n{END}"
        )
    before, _, rest = readme.partition(BEGIN)
    return "\n".join([before + BEGIN, *_readme_rows(machines), END + rest.partition(END)[2]])


def escaped(text: object) -> str:
    """Text of others such that Markdown shows it as it is, in a table too."""
    plain = html.escape(cli.printable(" ".join(str(text).split())), quote=False)
    return re.sub(r"([\\|*`\[\]~])", r"\\\1", plain)


def _section(machine: Machine) -> Iterator[str]:
    yield f"## {escaped(machine.title)}"
    yield ""
    yield from _warnings(machine)
    for group in machine.groups:
        yield f"### {escaped(group.title)}"
        yield ""
        heading, rows = table(group.lines)
        numeric = [cell.number for cell in rows[0]]
        yield from _table(heading, [_written(row) for row in rows], numeric)
        yield ""
    if machine.roofline is not None:
        yield "### Limits of the machine"
        yield ""
        heading, rows = limits(machine.roofline)
        yield from _table(heading, [_written(row) for row in rows], [False, False, True, False])
        yield ""
    if machine.failed:
        yield "### Not measured"
        yield ""
        reasons = [
            (escaped(line.entry["name"]), escaped(line.entry["failed"])) for line in machine.failed
        ]
        yield from _table(("configuration", "reason"), reasons)
        yield ""
    for run in machine.runs:
        yield from _folded(f"Run of {escaped(run['started'])}: its facts", _facts(run))


def _warnings(machine: Machine) -> Iterator[str]:
    """What speaks against the numbers, before them."""
    of_runs, single = [], []
    for run in machine.runs:
        whole, few = told(run)
        of_runs += [f"{escaped(text)} (run of {escaped(run['started'])})" for text in whole]
        single += [escaped(text) for text in few]
    single += [escaped(line.moved) for line in machine.lines if line.moved is not None]
    of_runs += [f"the runs differ in {escaped(text)}" for text in apart(machine)]
    shown = of_runs + (single if len(single) <= _FOLDED else [])
    for text in dict.fromkeys(shown):
        incomplete = text.startswith(_INCOMPLETE)
        word = "INCOMPLETE" if incomplete else "Warning"
        yield f"> - **{word}:** {text.removeprefix(_INCOMPLETE)}"
    if shown:
        yield ""
    if len(single) > _FOLDED:
        yield from _folded(
            f"{NOISY} {len(single)} warnings of single configurations",
            [f"- {text}" for text in dict.fromkeys(single)],
        )


def _facts(run: Run) -> Iterator[str]:
    yield from _table(("fact", "value"), _pairs(run_facts(run)))
    yield ""
    rows = [
        (escaped(backend), escaped(key), escaped(value))
        for backend, facts in backend_facts(run).items()
        for key, value in facts.items()
    ]
    if rows:
        yield from _table(("backend", "fact", "value"), rows)


def _pairs(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(escaped(key), escaped(value)) for key, value in facts.items()]


def _folded(title: str, lines: Iterator[str] | Sequence[str]) -> Iterator[str]:
    yield f"<details><summary>{title}</summary>"
    yield ""
    yield from lines
    yield ""
    yield "</details>"
    yield ""


def _table(
    heading: Sequence[str], rows: Iterable[Sequence[str]], numeric: Sequence[bool] | None = None
) -> Iterator[str]:
    """A table; numbers stand on the right."""
    right = numeric or [False] * len(heading)
    yield f"| {' | '.join(heading)} |"
    yield f"|{'|'.join('--:' if each else '---' for each in right)}|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _written(row: Sequence[Cell]) -> list[str]:
    return [escaped(cell.text) + (f" ({cell.note})" if cell.note else "") for cell in row]


def _readme_rows(machines: Sequence[Machine]) -> Iterator[str]:
    """For each machine, variant and precision: our fastest whose answers hold, an image a time.

    At the image sizes that variants are named after; others are in the report.
    """
    heading = (
        "variant",
        "precision",
        "fastest backend",
        "ms (95 %)",
        "own MB",
        "file MB",
        "answers",
    )
    for machine in machines:
        lines = [line for group in machine.groups for line in _best(group)]
        if lines:
            yield ""
            yield f"{escaped(machine.title)}; one image at a time:"
            yield ""
            yield from _table(heading, map(_row, lines), [False] * 3 + [True] * 3 + [False])
            yield ""
        if any(map(_doubtful, lines)):
            yield f"{NOISY}: the run warned of it: benchmarks/REPORT.md."
            yield ""


def _best(group: Group) -> Iterator[Line]:
    lines = [
        line
        for line in group.smallest
        if line.batch == 1
        and not line.entry["backend"].startswith(_PEER)
        and line.entry["parity"] is not None
        and not line.wrong
        and line.entry["scenario"] == "single-stream"
        and line.at_its_size
    ]
    for precision in dict.fromkeys(line.precision for line in group.lines):
        fastest = next((line for line in lines if line.precision == precision), None)
        if fastest is not None:
            yield fastest


def _doubtful(line: Line) -> bool:
    """Whether the run warned of this configuration, or of itself: a row stands alone here."""
    return line.noisy or bool(told(line.run)[0])


def _row(line: Line) -> list[str]:
    value, low, high = line.numbers["latency_ms"]["p50"]
    bundle = line.entry["bundle"]
    return [
        escaped(bundle["variant"]), escaped(line.precision), escaped(line.way),
        f"{ms(value)} ({interval(low, high)}){f' {NOISY}' if _doubtful(line) else ''}",
        mb(line.numbers["memory_bytes"]["anonymous"]), mb(bundle["model_bytes"]),
        escaped(answers(line.entry["parity"])),
    ]  # fmt: skip
