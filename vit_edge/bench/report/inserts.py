"""Tables inside documents that people write, each between two markers, made from results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from vit_edge.bench.report.cells import mb, p50
from vit_edge.bench.report.lines import Group, Line
from vit_edge.bench.report.machines import Machine
from vit_edge.bench.report.markdown import escaped, mark_explained, table_lines
from vit_edge.bench.report.others import others_lines
from vit_edge.bench.results.table import answers
from vit_edge.errors import InputError

_HEADING = ("variant", "precision", "fastest backend", "ms (95 %)", "own MB", "file MB", "answers")
_NUMERIC = [False, False, False, True, True, True, False]


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
    found = False
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
        found = True
    if not found:
        places = "\n".join("\n".join(markers(name)) for name in TABLES)
        raise InputError(
            "the document has no place for a table: write two of these lines where it belongs\n"
            + places
        )
    return text


def _readme_rows(machines: Sequence[Machine]) -> Iterator[str]:
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
        yield from mark_explained(lines)


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
        escaped(model.variant), escaped(line.precision), escaped(line.way),
        p50(line), mb(line.numbers.memory_bytes.anonymous), mb(model.model_bytes),
        escaped(answers(line.entry.parity)),
    ]  # fmt: skip


TABLES: Mapping[str, Callable[[Sequence[Machine]], Iterator[str]]] = {
    "bench": _readme_rows,
    "bench others": others_lines,
}
