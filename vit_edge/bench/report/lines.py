"""What a report shows: a configuration as one run measured it, and those that share a table."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from vit_edge.backends import name_of
from vit_edge.bench.results.runs import Entry, Run
from vit_edge.bench.results.table import Summary, summary, warnings


def run_warnings(run: Run) -> list[str]:
    """What speaks against a run as a whole; against single configurations: `Line.warnings`."""
    names = tuple(f"{entry.name}: " for entry in run.configurations)
    every = (text.removeprefix("warning: ") for text in warnings(run))
    return [text for text in every if not text.startswith(names)]


@dataclass(frozen=True)
class Line:
    """One configuration of one run."""

    run: Run
    entry: Entry
    before: Line | None = None  # the same, as the run before measured it

    @cached_property
    def numbers(self) -> Summary:
        """What `table.summary` says of it, if it was measured."""
        return summary(self.entry)

    @property
    def latency_ms(self) -> float:
        """The median."""
        return self.numbers.latency_ms["p50"].value

    @property
    def peak_bytes(self) -> float:
        """The most memory that a process of it took."""
        return self.numbers.memory_bytes.peak

    @property
    def worth_db(self) -> float | None:
        """Centred SQNR of the logits; infinite: the same as the reference's; None: not known."""
        parity = self.entry.parity
        if parity is None or parity.statistics.get("relative") is None:
            return None
        return parity.worth_db

    @property
    def bundle(self) -> str:
        """The bundle's name."""
        return self.entry.model.name

    @property
    def precision(self) -> str:
        """The bundle's precision."""
        return self.entry.model.precision

    @property
    def setup(self) -> str:
        """The backend, with its options."""
        return name_of(self.entry.backend, self.entry.options)

    @property
    def batch(self) -> int:
        """Images of one run."""
        return self.entry.batch

    @property
    def at_its_size(self) -> bool:
        """Whether images have the size in the variant's name, or it names none."""
        model = self.entry.model
        sizes = [part for part in model.variant.split("-") if part.isdecimal()]
        return not sizes or str(model.image_hw[1]) in sizes

    @property
    def wrong(self) -> bool:
        """Whether its answers were looked at, and do not hold."""
        return bool(self.entry.parity and self.entry.parity.problems)

    @cached_property
    def moved(self) -> str | None:
        """What speaks against its interval: the run before had another, that shares no value."""
        if self.before is None:
            return None
        value, low, high = self.numbers.latency_ms["p50"]
        was, was_low, was_high = self.before.numbers.latency_ms["p50"]
        if low <= was_high and was_low <= high:
            return None
        return (
            f"{self.entry.name}: {100 * (value / was - 1):+.1f} % against the run of "
            f"{self.before.run.started}, which is beyond the intervals of both: what differs "
            "from hour to hour is in neither"
        )

    @property
    def warnings(self) -> list[str]:
        """What speaks against this configuration: of its run, and that it moved."""
        start = f"{self.entry.name}: "
        found = [text for text in self.run.warnings if text.startswith(start)]
        return found + ([] if self.moved is None else [self.moved])

    @property
    def noisy(self) -> bool:
        """Whether there is a warning of this configuration, or the device slowed down."""
        return bool(self.warnings or self.numbers.throttled)

    @property
    def doubtful(self) -> bool:
        """Whether it is noisy, or its run warned of itself: for rows that stand alone."""
        return self.noisy or bool(run_warnings(self.run))


class Group(NamedTuple):
    """Configurations of one variant that answered the same kind of query."""

    title: str
    lines: list[Line]  # measured

    @property
    def at_its_size(self) -> bool:
        """Whether images have the size that the variant is named after."""
        return self.lines[0].at_its_size

    @property
    def smallest(self) -> list[Line]:
        """Those of the smallest batch, the fastest first: what can be set side by side."""
        batch = min(line.batch for line in self.lines)
        found = [line for line in self.lines if line.batch == batch]
        return sorted(found, key=lambda line: line.latency_ms)
