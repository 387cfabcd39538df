"""Results of several machines, sorted by what can be compared: same model, same images."""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from vit_edge.parity.result import (
    DIED,
    FAIL,
    INCONCLUSIVE,
    PASS,
    BundleFacts,
    GoldenFacts,
    Result,
    Run,
)

_WORST_FIRST = (DIED, FAIL, INCONCLUSIVE, PASS)


class Column(NamedTuple):
    """One backend on one machine."""

    label: str  # "ort", or "A ort" where there are several results
    device: str  # "" or "A": which machine of the legend
    result: Result
    run: Run


class Section(NamedTuple):
    """Runs that may stand side by side."""

    first: Result
    columns: list[Column]

    @property
    def bundle(self) -> BundleFacts:
        """Which bundle all of them are of."""
        return self.first.bundle

    @property
    def golden(self) -> GoldenFacts:
        """Which images and answers all were compared with."""
        return self.first.golden

    @property
    def title(self) -> str:
        """The bundle's name and what it is."""
        return f"{self.bundle.name} ({self.bundle.variant}, {self.bundle.precision})"

    @property
    def question(self) -> str:
        """What was compared with what."""
        golden = self.golden
        return f"{golden.images} images of {golden.name} against {self.first.reference}"


def merged(results: Sequence[Result]) -> list[Section]:
    """Put results of the same model and golden file side by side, others apart.

    Args:
        results: Complete, as `read_result` checks them.

    Returns:
        One section per pair of model and golden file, in the order of the results.
    """
    sections: dict[tuple[str, str], Section] = {}
    for device, result in zip(devices(len(results)), results, strict=True):
        key = (result.bundle.model_sha256, result.golden.sha256)
        section = sections.setdefault(key, Section(result, []))
        for run in result.runs:
            label = f"{device} {run.name}".strip()
            section.columns.append(Column(label, device, result, run))
    return list(sections.values())


def devices(results: int) -> Iterator[str]:
    """A short name for the machine of each result: A, B, ..., Z, A1, ...; "" for a single one."""
    for place in range(results):
        round_, letter = divmod(place, len(string.ascii_uppercase))
        name = f"{string.ascii_uppercase[letter]}{round_ or ''}"
        yield name if results > 1 else ""


def device_words(result: Result) -> str:
    """The machine of a result in a line."""
    machine = result.machine
    parts = (machine.get("cpu"), f"{machine.get('cpus', '?')} CPUs", machine.get("system"))
    return ", ".join(part for part in parts if part)


def separate_note(sections: Sequence[Section]) -> str:
    """What to say where results cannot stand in one table; empty where they can."""
    if len(sections) < 2:
        return ""
    models = len({section.bundle.model_sha256 for section in sections})
    answers = len({section.golden.sha256 for section in sections})
    return (
        f"These results are of {models} model{'s' * (models > 1)} and {answers} golden "
        f"file{'s' * (answers > 1)}: their numbers are kept apart, because they do not answer the "
        "same question."
    )


def overall(results: Sequence[Result]) -> str:
    """The worst verdict of all runs; without any run nothing was shown, which is a failure."""
    verdicts = {run.verdict for result in results for run in result.runs}
    return next((verdict for verdict in _WORST_FIRST if verdict in verdicts), FAIL)
