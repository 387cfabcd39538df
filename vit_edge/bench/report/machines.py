"""Runs put in order for a report: by machine, then by what may stand in one table."""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from vit_edge.bench.report.lines import Group, Line, run_warnings
from vit_edge.bench.results.compare import MACHINE, SOFTWARE, differences
from vit_edge.bench.results.runs import Entry, Facts, Run

# As tables list them: from the most exact to the smallest; others after them, by name.
PRECISIONS = ("fp32", "bf16", "fp16", "fp8", "int8", "int8-dynamic", "int8-weights", "int4")
_FACT = 40  # characters of a fact in a title


class Machine(NamedTuple):
    """What was measured on one machine."""

    title: str
    runs: list[Run]
    groups: list[Group]
    failed: list[Line]  # with their reasons

    @property
    def lines(self) -> list[Line]:
        """All that was measured, group by group."""
        return [line for group in self.groups for line in group.lines]

    @property
    def warnings(self) -> tuple[list[tuple[Run, str]], list[str]]:
        """What speaks against runs as a whole, and against single configurations that are shown."""
        whole = [(run, text) for run in self.runs for text in run_warnings(run)]
        single = [text for line in self.lines for text in line.warnings]
        return whole, list(dict.fromkeys(single))


def machines(runs: Sequence[Run]) -> list[Machine]:
    """Put runs in order.

    Of a configuration that several runs of one machine measured, the newest counts; that of an
    interrupted run only where no complete one measured it.

    Args:
        runs: As `results.read_runs` returns them, the oldest first.
    """
    by_machine: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        by_machine.setdefault(tuple(run.facts.get(key) for key in MACHINE), []).append(run)
    ordered = sorted(by_machine.values(), key=lambda of_one: _title(of_one[-1]))
    titles = _told_apart([of_one[-1] for of_one in ordered])
    letters = string.ascii_uppercase if len(ordered) > 1 else ""
    return [
        _machine(of_one, f"{letters[place]}: {title}" if place < len(letters) else title)
        for place, (title, of_one) in enumerate(zip(titles, ordered, strict=True))
    ]


def run_facts(run: Run) -> dict[str, str]:
    """When, how and on what a run was made."""
    found = {
        "title": run.title,
        "started": run.started,
        "state": "complete" if run.complete else "INCOMPLETE",
    }
    if run.sampling is not None:
        found["sampling"] = ", ".join(f"{key} {value}" for key, value in run.sampling.items())
    found["command"] = " ".join(run.command)
    return found | {key: str(value) for key, value in run.facts.items()}


def backend_facts(run: Run) -> dict[str, dict[str, str]]:
    """Backend -> what it said of itself; of what differs between configurations, every value."""
    values: dict[str, dict[str, list[str]]] = {}
    for entry in run.configurations:
        for key, value in entry.facts.items():
            values.setdefault(entry.backend, {}).setdefault(key, []).append(str(value))
    return {
        backend: {key: "; ".join(dict.fromkeys(found)) for key, found in facts.items()}
        for backend, facts in sorted(values.items())
    }


def apart(machine: Machine) -> list[str]:
    """What the runs of one machine differ in, so that their numbers are not quite comparable."""
    found = []
    for key in SOFTWARE:
        of_entries = {
            (line.entry.backend, str(line.entry.facts.get(key))) for line in machine.lines
        }
        for backend in sorted({backend for backend, _ in of_entries}):
            versions = sorted(value for name, value in of_entries if name == backend)
            if len(versions) > 1:
                found.append(f"{key} of {backend}: {', '.join(versions)}")
        of_runs = sorted({str(run.facts.get(key)) for run in machine.runs})
        if len(of_runs) > 1:
            found.append(f"{key}: {', '.join(of_runs)}")
    return found


def _machine(runs: list[Run], title: str) -> Machine:
    newest: dict[str, Line] = {}
    for run in sorted(runs, key=lambda run: run.complete):  # what comes later counts
        for entry in run.configurations:
            if entry.measured or entry.failed is not None:
                last = newest.get(entry.name)
                again = last is not None and _same(last, run, entry)
                newest[entry.name] = Line(run, entry, last if again else None)
    groups: dict[str, list[Line]] = {}
    found = [line for line in newest.values() if line.entry.measured]
    for line in sorted(found, key=_order):
        groups.setdefault(_group(line.entry), []).append(line)
    return Machine(
        title,
        runs,
        [Group(title, lines) for title, lines in groups.items()],
        [line for line in newest.values() if not line.entry.measured],
    )


def _same(last: Line, run: Run, entry: Entry) -> bool:
    """Whether two lines of a name measured the same: model, software, samples of both."""
    if not (entry.measured and last.entry.measured):
        return False
    same_model = entry.model.model_sha256 == last.entry.model.model_sha256
    return same_model and not differences(run, last.run, entry, last.entry)


def _told_apart(runs: Sequence[Run]) -> list[str]:
    """The titles of machines; where two are alike, with the facts in which they differ."""
    found = []
    for run in runs:
        facts, title = run.facts, _title(run)
        others = [other.facts for other in runs if _title(other) == title]
        differing = [
            f"{key} {str(facts.get(key, 'unknown'))[:_FACT]}"
            for key in MACHINE
            if any(other.get(key) != facts.get(key) for other in others)
        ]
        found.append(", ".join([title, *differing]))
    return found


def _title(run: Run) -> str:
    return ", ".join(_words(run.facts)) or "a machine of which nothing is known"


def _words(facts: Facts) -> Iterator[str]:
    if "cpu" in facts:
        yield str(facts["cpu"])
    if "cpus" in facts:
        yield f"{facts['cpus']} CPUs" if str(facts["cpus"]) != "1" else "1 CPU"
    yield from (str(facts[key]) for key in ("gpu", "memory", "power") if facts.get(key))


def _group(entry: Entry) -> str:
    height, width = entry.model.image_hw
    size = f"{width} px" if height == width else f"{height}x{width} px"
    rate = entry.queries_per_second
    often = "" if rate is None else f", {rate:g} queries/s"
    stage = "" if entry.stage == "model" else f", {entry.stage}"
    return f"{entry.model.variant}, {size}, {entry.scenario}{often}{stage}"


def _order(line: Line) -> tuple[Any, ...]:
    entry, precision = line.entry, line.precision
    known = PRECISIONS.index(precision) if precision in PRECISIONS else len(PRECISIONS)
    return (
        entry.model.variant, entry.stage != "model", entry.scenario,
        entry.queries_per_second or 0, not line.at_its_size, entry.model.image_hw,
        known, precision, line.bundle, line.setup, line.batch,
    )  # fmt: skip
