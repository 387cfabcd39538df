"""Picking the setup of a bundle, from what was measured of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vit_edge.backends import Option, name_of
from vit_edge.errors import ParityError, ResourceError


@dataclass(frozen=True)
class Measured:
    """A setup, which is a backend with its options, and what was found of it here."""

    backend: str
    options: Mapping[str, Option]
    refused: str | None = None  # why it cannot run here
    parity: tuple[str, ...] = ()  # what its answers miss; empty if they hold
    over_limit: str | None = None  # why it does not fit the memory limit
    too_slow: str | None = None  # why it is not within the latency asked for
    latency_ms: Mapping[int, float] = field(default_factory=dict)  # batch -> median of one call
    runs: Mapping[int, int] = field(default_factory=dict)  # batch -> calls timed
    first_answer_s: float = 0.0  # from opening the bundle to the first answer
    peak_rss_bytes: int = 0  # of the process, the mapped part of files included
    peak_anonymous_bytes: int = 0  # the part the kernel cannot take back
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The backend and its options, as one would type them."""
        return name_of(self.backend, self.options)

    @property
    def usable(self) -> bool:
        """True if it may be chosen."""
        return not self.faults

    @property
    def faults(self) -> list[str]:
        """List all that speaks against it, in words."""
        reasons = (self.refused, *self.parity[:1], self.over_limit, self.too_slow)
        return [fault for fault in reasons if fault is not None]


def rank(measured: Sequence[Measured], batch: int) -> list[int]:
    """Indices of what may be chosen, the fastest with this batch size first."""
    usable = [index for index, entry in enumerate(measured) if entry.usable]
    return sorted(usable, key=lambda index: measured[index].latency_ms[batch])


def choose(measured: Sequence[Measured], batches: Sequence[int], *, one: bool) -> dict[int, int]:
    """Pick the fastest for each batch size.

    Args:
        measured: Everything that was tried.
        batches: The batch sizes that were timed.
        one: Only one for all of them, since two take the memory of both. It has the least product
            of latencies, each relative to the best of its batch size.

    Returns:
        batch -> index into `measured`.

    Raises:
        ParityError: Nothing gives the right answers; what came closest is said.
        ResourceError: Nothing that does can run here, or within the memory limit.
    """
    usable = [index for index, entry in enumerate(measured) if entry.usable]
    if not usable:
        raise _nothing(measured)

    def slowness(index: int, sizes: Sequence[int]) -> float:
        product = 1.0
        for batch in sizes:
            best = min(measured[other].latency_ms[batch] for other in usable)
            product *= measured[index].latency_ms[batch] / best
        return product

    if one:
        best = min(usable, key=lambda index: slowness(index, batches))
        return dict.fromkeys(batches, best)
    return {batch: rank(measured, batch)[0] for batch in batches}


def _nothing(measured: Sequence[Measured]) -> ParityError | ResourceError:
    """Say why nothing can be chosen, and what came closest."""
    ran = [entry for entry in measured if entry.refused is None]
    if not ran:
        reasons = "\n  ".join(f"{entry.name}: {entry.refused}" for entry in measured)
        return ResourceError(f"nothing runs this bundle here:\n  {reasons or 'no backend'}")
    right = [entry for entry in ran if not entry.parity]
    if right:
        closest = min(right, key=lambda entry: entry.peak_anonymous_bytes)
        return ResourceError(
            f"nothing that answers right fits the memory limit; {closest.name} came closest, with "
            f"{closest.peak_anonymous_bytes / 1e6:.0f} MB of its own and "
            f"{closest.peak_rss_bytes / 1e6:.0f} MB with its files: {closest.over_limit}. Raise "
            "the limit, or export a smaller precision (--precision int8 or int4)"
        )
    closest = min(ran, key=lambda entry: len(entry.parity))
    return ParityError(
        f"nothing answers as well as asked; {closest.name} came closest:\n  "
        + "\n  ".join(closest.parity)
        + "\nAsk for less (--target), or export another precision"
    )
