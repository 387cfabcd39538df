"""Comparing what was measured: how much faster, with its interval, or that it cannot be told."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vit_edge.bench.percentiles import Estimate, student
from vit_edge.bench.results import samples

# Facts that make numbers of two runs incomparable where they differ, and are said.
MACHINE = (
    "cpu", "cpus", "affinity", "cpu_quota", "smt", "features", "clock_max", "governor", "memory",
    "memory_limit", "system", "gpu", "power",
)  # fmt: skip
SOFTWARE = ("python", "numpy", "runtime", "driver", "container")


class Comparison(NamedTuple):
    """One configuration against another."""

    name: str
    against: str
    ratio: Estimate  # of the median latencies: over 1 is slower
    paired: bool  # whether they took turns in one run
    differences: tuple[str, ...]  # of facts

    @property
    def decided(self) -> bool:
        """Whether the interval leaves 1 out."""
        return not self.ratio.low <= 1 <= self.ratio.high

    def __str__(self) -> str:
        value, low, high = self.ratio
        if not self.decided:
            return (
                f"{self.name} against {self.against}: cannot tell, {value:.3f}x the time, "
                f"95 % {low:.3f}-{high:.3f}"
            )
        if value < 1:
            value, low, high = 1 / value, 1 / high, 1 / low
        word = "faster" if self.ratio.value < 1 else "slower"
        return f"{self.name} is {value:.3g}x {word} than {self.against}, 95 % {low:.3g}-{high:.3g}"


def compared(
    entry: Mapping[str, Any],
    other: Mapping[str, Any],
    run: Mapping[str, Any],
    base: Mapping[str, Any],
) -> Comparison:
    """Compare two configurations, of one run or of two.

    In one run their processes took turns: the ratio is taken of each turn, so that what changed in
    the machine between turns cancels out. Otherwise the two runs' processes are two samples
    (Welch's t on the logarithms).

    Args:
        entry: Of `run`.
        other: Of `base`: what it is compared with.
        run: A run.
        base: A run, perhaps the same.
    """
    ours, theirs = _log_medians(entry), _log_medians(other)
    paired = run is base and len(ours) == len(theirs)
    ratio = _paired(ours - theirs) if paired else _welch(ours, theirs)
    return Comparison(
        entry["name"], other["name"], ratio, paired,
        () if run is base else differences(run, base, entry, other),
    )  # fmt: skip


def differences(
    run: Mapping[str, Any],
    base: Mapping[str, Any],
    entry: Mapping[str, Any],
    other: Mapping[str, Any],
) -> tuple[str, ...]:
    """Facts in which two runs differ, as text."""
    found = [
        (key, run["facts"].get(key), base["facts"].get(key)) for key in (*MACHINE, *SOFTWARE)
    ] + [(key, entry["facts"].get(key), other["facts"].get(key)) for key in SOFTWARE]
    told = (f"{key}: {ours} against {theirs}" for key, ours, theirs in found if ours != theirs)
    return tuple(dict.fromkeys(told))


def same_machine(run: Mapping[str, Any], base: Mapping[str, Any]) -> bool:
    """Whether two runs may be compared at all."""
    return all(run["facts"].get(key) == base["facts"].get(key) for key in MACHINE)


def matching(
    run: Mapping[str, Any], base: Mapping[str, Any]
) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """The configurations that both runs have measured, by name."""
    by_name = {entry["name"]: entry for entry in base["configurations"]}
    return [
        (entry, by_name[entry["name"]])
        for entry in run["configurations"]
        if entry["name"] in by_name and measured(entry) and measured(by_name[entry["name"]])
    ]


def measured(entry: Mapping[str, Any]) -> bool:
    """Whether there is anything to compare."""
    return entry["failed"] is None and any(samples(entry))


def _log_medians(entry: Mapping[str, Any]) -> Any:
    return np.log([np.median(latencies) for latencies in samples(entry) if len(latencies)])


def _paired(logs: Any) -> Estimate:
    return _around(float(np.mean(logs)), _spread(logs) / math.sqrt(len(logs)), len(logs) - 1)


def _welch(ours: Any, theirs: Any) -> Estimate:
    """Welch (1947): unequal variances, with Satterthwaite's degrees of freedom."""
    centre = float(np.mean(ours) - np.mean(theirs))
    counts: Sequence[int] = [len(ours), len(theirs)]
    if min(counts) < 2:
        return _around(centre, math.inf, 0)
    shares = [_spread(logs) ** 2 / len(logs) for logs in (ours, theirs)]
    below = sum(share**2 / (count - 1) for share, count in zip(shares, counts, strict=True))
    degrees = max(1, int(sum(shares) ** 2 / below)) if below else sum(counts) - 2
    return _around(centre, math.sqrt(sum(shares)), degrees)


def _spread(logs: Any) -> float:
    return float(np.std(logs, ddof=1)) if len(logs) > 1 else math.inf


def _around(centre: float, error: float, degrees: int) -> Estimate:
    """The interval of a ratio, from that of its logarithm; unbounded without two of each."""
    if degrees < 1 or not math.isfinite(error):
        return Estimate(math.exp(centre), 0.0, math.inf)
    half = student(degrees) * error
    return Estimate(math.exp(centre), math.exp(centre - half), math.exp(centre + half))
