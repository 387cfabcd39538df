"""Write benchmarks/REPORT.md and the tables of README.md and docs/ from benchmarks/results.

    python benchmarks/documents.py

A table stands between two markers, such as `<!-- bench: begin -->` and `<!-- bench: end -->`; the
rest of a document is left alone. All documents are written, or none. Tests compare them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import script

from vit_edge.bench.report.cells import NOISY, mb, ms, p50
from vit_edge.bench.report.lines import Group, Line
from vit_edge.bench.report.machines import Machine, machines
from vit_edge.bench.report.markdown import escaped, markdown, table_lines
from vit_edge.bench.results.compare import alike, compared, digits
from vit_edge.bench.results.results import read_runs
from vit_edge.bench.results.runs import Run
from vit_edge.bench.results.table import answers
from vit_edge.errors import InputError
from vit_edge.report.write import write_report

COMMAND = "python benchmarks/documents.py"
RESULTS, REPORT = "benchmarks/results", "benchmarks/REPORT.md"
WITH_TABLES = ("README.md", "docs/bench.md", "docs/measured.md")
_HEADING = ("variant", "precision", "fastest backend", "ms (95 %)", "own MB", "file MB", "answers")
_NUMERIC = [False, False, False, True, True, True, False]
_PEERS_HEADING = ("", "ms (95 %)", "times ours", "95 %", "start s", "own MB", "peak MB", "answers")
_PEERS_NUMERIC = [False, *[True] * 6, False]
_TOOLS_HEADING = ("", "ms (95 %)", "start s", "own MB", "answers", "faster, with wrong answers")
_TOOLS_NUMERIC = [False, *[True] * 3, False, False]


def main(argv: list[str] | None = None) -> int:
    return script.run(script.parser(__doc__), lambda _: run(script.REPOSITORY), argv)


def run(repository: Path) -> int:
    """Write every document whose text is not current."""
    for name, text in documents(repository).items():
        write_report(repository / name, text)
    return 0


def documents(repository: Path) -> dict[str, str]:
    """The text that each document should have, by its path in the repository.

    Raises:
        InputError: A document cannot be read, or has no place for a table; or no results.
    """
    measured_here = machines(read_runs(sorted((repository / RESULTS).glob("*.json"))))
    texts = {
        name: with_tables((repository / name).read_text(encoding="utf-8"), measured_here)
        for name in WITH_TABLES
    }
    return texts | {REPORT: markdown(measured_here)}


def markers(name: str) -> tuple[str, str]:
    """The lines that a table stands between."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def with_tables(text: str, machines: Sequence[Machine]) -> str:
    """A document with the tables between its markers made anew.

    Args:
        text: The document; it has the markers of one of `TABLES` or of several.
        machines: What was measured.

    Raises:
        InputError: There are no markers, or they come twice or the wrong way round.
    """
    has_place = False
    for name, lines in TABLES.items():
        begin, end = markers(name)
        if not (begin in text or end in text):
            continue
        if not (text.count(begin) == text.count(end) == 1 and text.index(begin) < text.index(end)):
            raise InputError(
                f"the document has no single place for the table {name!r}: write these two lines "
                f"where it belongs\n{begin}\n{end}"
            )
        before, _, rest = text.partition(begin)
        text = "\n".join([before + begin, *lines(machines), end + rest.partition(end)[2]])
        has_place = True
    if not has_place:
        places = "\n".join("\n".join(markers(name)) for name in TABLES)
        raise InputError(
            "the document has no place for a table: write two of these lines where it belongs\n"
            + places
        )
    return text


def _fastest_rows(machines: Sequence[Machine]) -> Iterator[str]:
    """For each machine, variant and precision: our fastest whose answers hold, an image a time.

    At the image sizes that variants are named after; others are in the report.
    """
    for machine in machines:
        lines = [line for group in machine.groups for line in _best(group)]
        if lines:
            yield ""
            yield f"{escaped(machine.title)}; one image at a time:"
            yield ""
            yield from table_lines(_HEADING, map(_row, lines), _NUMERIC)
            yield ""
        yield from _mark_explained(lines)


def _best(group: Group) -> Iterator[Line]:
    lines = [
        line
        for line in group.smallest
        if line.batch == 1
        and not line.entry.is_peer
        and line.entry.parity is not None
        and not line.wrong
        and line.entry.scenario == "single-stream"
        and line.at_its_size
    ]
    for precision in dict.fromkeys(line.precision for line in group.lines):
        fastest = next((line for line in lines if line.precision == precision), None)
        if fastest is not None:
            yield fastest


def _row(line: Line) -> list[str]:
    model = line.entry.model
    return [
        escaped(model.variant), escaped(line.precision), escaped(line.setup),
        p50(line), mb(line.numbers.memory_bytes.anonymous), mb(model.model_bytes),
        escaped(answers(line.entry.parity)),
    ]  # fmt: skip


def _peer_tables(machines: Sequence[Machine]) -> Iterator[str]:
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
            yield f"{batch}, against {escaped(ours.setup)} with {escaped(ours.bundle)}:"
            yield ""
            rows = (_peer_row(line, ours) for line in lines)
            yield from table_lines(_PEERS_HEADING, rows, _PEERS_NUMERIC)
        yield ""
        for entry in run.configurations:
            if entry.failed is not None:
                yield f"Not measured: {escaped(entry.name)}: {escaped(entry.failed)}"
                yield ""
        yield from _mark_explained(line for _, lines in queries for line in lines)


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


def _peer_row(line: Line, ours: Line) -> list[str]:
    memory = line.numbers.memory_bytes
    times = compared(line.entry, ours.entry, line.run, ours.run).ratio
    return [
        escaped(line.bundle if line.entry.is_peer else f"{line.bundle}, {line.setup}"),
        p50(line),
        "1" if line is ours else digits(times.value),
        "" if line is ours else f"{digits(times.low)} to {digits(times.high)}",
        ms(line.numbers.cold_s.total),
        mb(memory.anonymous), mb(memory.peak),
        escaped(answers(line.entry.parity)),
    ]  # fmt: skip


def _tool_rows(machines: Sequence[Machine]) -> Iterator[str]:
    """Of each machine's newest run with competitors: each tool's fastest whose answers hold.

    Beside it stands what the tool does faster, with answers that do not hold. All ran our model,
    one image at a time. Of ours the fastest of each precision is shown.
    """
    for machine in machines:
        queries = next(filter(None, map(_queries, reversed(machine.runs))), [])
        if not queries:
            continue
        ours, lines = queries[0]
        tools: dict[str, list[Line]] = {}
        for line in lines:
            if line.entry.model.variant == ours.entry.model.variant:
                tools.setdefault(_tool(line), []).append(line)
        shown = [pair for of_tool in tools.values() if (pair := _sound_and_faster(of_tool))]
        yield ""
        yield (
            f"{escaped(ours.entry.model.variant)}, one image at a time, {escaped(machine.title)}; "
            f"run of {escaped(ours.run.started[:10])}:"
        )
        yield ""
        shown.sort(key=lambda pair: pair[0].latency_ms)
        yield from table_lines(_TOOLS_HEADING, [_tool_row(*pair) for pair in shown], _TOOLS_NUMERIC)
        yield ""
        yield from _mark_explained(line for pair in shown for line in pair if line is not None)


def _tool(line: Line) -> str:
    return line.bundle.partition(" ")[0] if line.entry.is_peer else f"vit_edge {line.precision}"


def _sound_and_faster(lines: Sequence[Line]) -> tuple[Line, Line | None] | None:
    """A tool's fastest whose answers hold, and its fastest of all if that is another one."""
    sound = next((line for line in lines if not line.wrong), None)
    if sound is None:
        return None
    return sound, None if lines[0] is sound else lines[0]


def _tool_row(sound: Line, faster: Line | None) -> list[str]:
    name, _, how = sound.bundle.partition(" ")
    if not sound.entry.is_peer:
        name, how = "vit_edge", f"{sound.precision}, {sound.setup}"
    return [
        f"**{escaped(name)}** {escaped(how)}",
        p50(sound),
        ms(sound.numbers.cold_s.total),
        mb(sound.numbers.memory_bytes.anonymous),
        escaped(answers(sound.entry.parity)),
        "" if faster is None else f"{escaped(faster.bundle.partition(' ')[2])}: {p50(faster)}"
        + ("" if faster.worth_db is None else f", {faster.worth_db:.0f} dB"),
    ]  # fmt: skip


def _mark_explained(lines: Iterable[Line]) -> Iterator[str]:
    """Under a table of rows that stand alone: what the mark means, if one has it."""
    if any(line.doubtful for line in lines):
        yield f"{NOISY}: the run warned of it: {REPORT}."
        yield ""


TABLES: Mapping[str, Callable[[Sequence[Machine]], Iterator[str]]] = {
    "bench": _fastest_rows,
    "bench others": _peer_tables,
    "bench tools": _tool_rows,
}


if __name__ == "__main__":
    sys.exit(main())
