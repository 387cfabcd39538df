"""Comparing what was measured: how much faster, with its interval, or that it cannot be told."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from vit_edge.bench.results.percentiles import Estimate, student
from vit_edge.bench.results.runs import Entry, Facts, Run

# Facts that make numbers of two runs incomparable where they differ, and are said.
MACHINE = (
    "cpu", "cpus", "affinity", "cpu_quota", "smt", "features", "clock_max", "governor", "memory",
    "memory_limit", "system", "gpu", "power",
)  # fmt: skip
SOFTWARE = ("vit_edge", "python", "numpy", "runtime", "driver", "container")
_WAY = ("threads", "execution_precision", "provider")  # how an entry was run
_LARGEST_LOG = math.log(sys.float_info.max)


class Comparison(NamedTuple):
    """One configuration against another."""

    name: str
    against: str
    ratio: Estimate  # of the latencies at the percentile: over 1 is slower
    percentile: float
    paired: bool  # whether they took turns in one run
    differences: tuple[str, ...]  # of facts

    @property
    def decided(self) -> bool:
        """Whether the interval leaves 1 out."""
        return not self.ratio.low <= 1 <= self.ratio.high

    def __str__(self) -> str:
        """As two configurations of one run."""
        return self._text(f"{self.name} against {self.against}", self.name, f"than {self.against}")

    def of_files(self, ours: object, theirs: object) -> str:
        """As one configuration in two files."""
        both = f"{self.name}, {ours} against {theirs}"
        return self._text(both, self.name, f"in {ours} than in {theirs}")

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON, which knows no infinity: null."""
        ends = [end if math.isfinite(end) else None for end in self.ratio]
        return self._asdict() | {"ratio": ends, "decided": self.decided}

    def _text(self, both: str, one: str, than: str) -> str:
        value, low, high = self.ratio
        word = "slower"
        if self.decided and value < 1:
            value, low, high, word = 1 / value, 1 / high, 1 / low, "faster"
        times, interval = f"{digits(value)}x", f"95 % {digits(low)}-{digits(high)}"
        at = "" if self.percentile == 0.5 else f" at p{100 * self.percentile:g}"
        if not self.decided:
            return f"{both}: cannot tell{at}, {times} the time, {interval}"
        return f"{one} is {times} {word}{at} {than}, {interval}"


class Unpaired(NamedTuple):
    """A configuration that one of two runs has not measured."""

    name: str
    ours: str | None  # what is wrong with it in the first run; None: nothing
    theirs: str | None  # and in the second


def compared(
    entry: Entry, other: Entry, run: Run, base: Run, percentile: float = 0.5
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
        percentile: Of each process, between 0 and 1.
    """
    ours, theirs = _logs(entry, percentile), _logs(other, percentile)
    paired = run is base and len(ours) == len(theirs)
    ratio = _paired(ours - theirs) if paired else _welch(ours, theirs)
    return Comparison(
        entry.name, other.name, ratio, percentile, paired,
        () if run is base else differences(run, base, entry, other),
    )  # fmt: skip


def differences(run: Run, base: Run, entry: Entry, other: Entry) -> tuple[str, ...]:
    """What two runs, and a configuration of each, differ in, as text."""
    values = _both((*SOFTWARE, *_WAY), entry.facts, other.facts)
    values.append(("images", run.images, base.images))
    values.append(("another model", _model(entry), _model(other)))
    found = (*machine_differences(run.facts, base.facts), *_differing(values))
    return tuple(dict.fromkeys(found))


def machine_differences(ours: Facts, theirs: Facts) -> tuple[str, ...]:
    """What the facts of two runs differ in, as text."""
    return _differing(_both((*MACHINE, *SOFTWARE), ours, theirs))


def same_machine(ours: Facts, theirs: Facts) -> bool:
    """Whether runs with these facts may be compared at all."""
    return all(ours.get(key) == theirs.get(key) for key in MACHINE)


def matched(run: Run, base: Run) -> tuple[list[tuple[Entry, Entry]], list[Unpaired]]:
    """The configurations that both runs have measured, by name; and the others of both."""
    ours, theirs = ({entry.name: entry for entry in one.configurations} for one in (run, base))
    pairs, others = [], []
    for name in dict.fromkeys((*ours, *theirs)):
        unpaired = Unpaired(name, _fault(ours.get(name)), _fault(theirs.get(name)))
        if unpaired.ours is None and unpaired.theirs is None:
            pairs.append((ours[name], theirs[name]))
        else:
            others.append(unpaired)
    return pairs, others


def alike(entry: Entry) -> tuple[object, ...]:
    """What two configurations of one run must have in common to be compared."""
    query = (entry.batch, entry.scenario, entry.queries_per_second, entry.stage)
    return (entry.model.variant, *entry.model.image_hw, *query)


def _both(keys: Sequence[str], ours: Facts, theirs: Facts) -> list[tuple[str, Any, Any]]:
    return [(key, ours.get(key), theirs.get(key)) for key in keys]


def _differing(values: Sequence[tuple[str, Any, Any]]) -> tuple[str, ...]:
    lines = (f"{key}: {ours} against {theirs}" for key, ours, theirs in values if ours != theirs)
    return tuple(dict.fromkeys(lines))


def _fault(entry: Entry | None) -> str | None:
    """Why there is nothing to compare; None if there is."""
    if entry is None:
        return "it is absent"
    if entry.failed is not None:
        return f"it failed: {entry.failed}"
    return None if entry.measured else "nothing was measured"


def _model(entry: Entry) -> str | None:
    """The beginning of its hash; None where a model has none."""
    sha256 = None if entry.bundle is None else entry.bundle.model_sha256
    return None if sha256 is None else sha256[:12]


def _logs(entry: Entry, percentile: float) -> Any:
    """float64[processes]: the logarithms of a percentile of each."""
    return np.log([np.quantile(taken, percentile) for taken in entry.samples if taken])


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
        return Estimate(_exp(centre), 0.0, math.inf)
    half = student(degrees) * error
    return Estimate(_exp(centre), _exp(centre - half), _exp(centre + half))


def _exp(log: float) -> float:
    return math.exp(log) if log < _LARGEST_LOG else math.inf


def digits(number: float) -> str:
    """Four that are significant, zeros at the end too."""
    return f"{number:#.4g}".rstrip(".")
