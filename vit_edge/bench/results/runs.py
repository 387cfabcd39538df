"""What is kept of a run; docs/bench.md says what its fields mean."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from vit_edge.bench.results.fields import Pair, Times, Word, check_values, decoded, encoded, short
from vit_edge.parity.targets import STATISTICS

SCHEMA_VERSION = 1
PEER_PREFIX = "peer:"  # what the backend of an entry begins with that is not ours
_MOST_PIXELS = 1e6

Facts = Mapping[str, Word]


@dataclass(frozen=True, kw_only=True)
class Cold:
    """Seconds from the start of a process to its first answer, in parts."""

    imports: float = field(metadata={"key": "import"})
    load: float
    first_answer: float

    @property
    def total(self) -> float:
        """All parts together."""
        return self.imports + self.load + self.first_answer


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of a process: at its end, and the peak of both together."""

    anonymous: float
    file: float
    peak: float


@dataclass(frozen=True, kw_only=True)
class Sensors:
    """What the device felt meanwhile; see bench/device/sensors.py."""

    energy_j_per_image: float | None = None
    power_w: float | None = None
    energy_j: Mapping[str, float] = field(default_factory=dict)
    temperature_c: Mapping[str, Pair] = field(default_factory=dict)  # at the start, the highest
    clocks_mhz: Mapping[str, Any] = field(default_factory=dict)  # at the start, at the end
    throttled: tuple[str, ...] = ()  # reasons
    gpu_memory_bytes: float | None = None
    absent: Mapping[str, str] = field(default_factory=dict)  # what could not be read, and why


@dataclass(frozen=True, kw_only=True)
class Process:
    """One process of a configuration."""

    latencies_ms: Times
    seconds: float
    images: int
    warmup_runs: int = 0
    stable: bool = True
    enough: bool = True
    cold_s: Cold
    memory_bytes: Memory
    sensors: Sensors | None = None

    def faults(self) -> Iterator[str]:
        """What is wrong with it as a whole."""
        if self.latencies_ms and not self.seconds > 0:
            yield f"seconds is {self.seconds!r} although there are latencies"


@dataclass(frozen=True, kw_only=True)
class Model:
    """The bundle that was measured."""

    name: str
    variant: str
    precision: str
    model_sha256: str | None
    model_bytes: int
    image_hw: tuple[int, ...]
    multiply_adds: float | None = None  # None: a graph from another exporter

    def faults(self) -> Iterator[str]:
        """What is wrong with it as a whole."""
        sides = self.image_hw
        if len(sides) != 2 or not all(0 < side < _MOST_PIXELS for side in sides):
            yield f"image_hw is {short([*sides])}, expected height and width in pixels"


@dataclass(frozen=True, kw_only=True)
class BuildMemory:
    """Bytes that building an engine took, at its peak."""

    anonymous: float | None = None
    peak: float | None = None


@dataclass(frozen=True, kw_only=True)
class Built:
    """What a bundle takes before it answers."""

    download_bytes: float | None = None
    engine_bytes: float | None = None
    build_s: float | None = None
    build_memory_bytes: BuildMemory | None = None


@dataclass(frozen=True)
class Answers:
    """What the answers are worth, as the child that measured judged them.

    Attributes:
        problems: What exceeds the limit of the precision; empty if they hold.
        statistics: Of the logits, what a target may be about (parity.targets.STATISTICS) and what
            else it is judged by; empty where the model has no head.
    """

    problems: tuple[str, ...]
    statistics: Mapping[str, Any]

    @property
    def worth_db(self) -> float | None:
        """Centred SQNR of the logits; infinite: the same as the reference's; None: not known."""
        noise = self.statistics.get("sqnr_centred_db")
        if noise is None:
            return math.inf if self.statistics.get("relative") == 0 else None
        return float(noise)

    @classmethod
    def decoded(cls, value: Mapping[str, Any], where: str, problems: list[str]) -> Answers | None:
        """Read it: the problems and every statistic stand side by side."""
        before = len(problems)
        listed = decoded(_Problems, value, where, problems)
        known = (*_JUDGED_BY, *STATISTICS)
        numbers = {name: one for name, one in value.items() if name in known}
        check_values(float | None, numbers, where, problems)
        if listed is None or len(problems) > before:
            return None
        for name, statistic in STATISTICS.items():
            if statistic.interval is None or numbers.get(name) is None:
                continue
            check_values(Pair, {statistic.interval: value.get(statistic.interval)}, where, problems)
            check_values(float, {statistic.trials: value.get(statistic.trials)}, where, problems)
        statistics = {name: one for name, one in value.items() if name != "problems"}
        return None if len(problems) > before else cls(listed.problems, statistics)

    def encoded(self) -> dict[str, Any]:
        """As it is written."""
        return {"problems": list(self.problems), **encoded(self.statistics)}


_JUDGED_BY = ("images", "labelled", "non_finite", "reference_margin_median")


@dataclass(frozen=True)
class _Problems:
    problems: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One configuration, as one run measured it."""

    name: str
    backend: str
    options: Facts
    batch: int
    scenario: str
    stage: str
    queries_per_second: float | None  # of a scenario that is no more
    bundle: Model | None
    built: Built | None = None
    facts: Facts  # of the backend
    parity: Answers | None
    failed: str | None  # why there is no more of it
    processes: tuple[Process, ...] = field(metadata={"each": "process"})

    def faults(self) -> Iterator[str]:
        """What is wrong with it as a whole."""
        if self.bundle is None and self.failed is None:
            yield "has no bundle, and did not fail"

    @property
    def model(self) -> Model:
        """The bundle of what did not fail before it was read."""
        assert self.bundle is not None
        return self.bundle

    @property
    def samples(self) -> list[Times]:
        """The latencies in ms, by process."""
        return [process.latencies_ms for process in self.processes]

    @property
    def measured(self) -> bool:
        """Whether there is anything to compare."""
        return self.failed is None and any(self.samples)

    @property
    def is_peer(self) -> bool:
        """Whether it is somebody else's."""
        return self.backend.startswith(PEER_PREFIX)


@dataclass(frozen=True, kw_only=True)
class Peak:
    """The best that one runtime reached of one kind of product, or of reading memory."""

    backend: str
    kind: str
    per_second: float
    size: tuple[int, ...]
    latencies_ms: Any = None


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """What a machine can reach; benchmarks/results has one."""

    peaks: tuple[Peak, ...] = field(metadata={"each": "peak"})
    limits: Mapping[str, float | None]
    runtimes: Mapping[str, Any] = field(default_factory=dict)

    def faults(self) -> Iterator[str]:
        """What is wrong with it as a whole."""
        yield from (f"limits: {kind} is 0" for kind, rate in self.limits.items() if rate == 0)


@dataclass(frozen=True, kw_only=True)
class Run:
    """Configurations that took turns on one machine."""

    schema_version: int = SCHEMA_VERSION
    title: str
    started: str
    ended: str | None = None
    complete: bool
    command: tuple[str, ...]
    sampling: Mapping[str, Any] | None = field(  # see plan.Sampling
        default=None, metadata={"omitted": True}
    )
    facts: Facts
    warnings: tuple[str, ...]
    configurations: tuple[Entry, ...] = field(metadata={"each": "configuration"})
    interrupted: str | None = field(default=None, metadata={"omitted": True})
    roofline: Roofline | None = field(default=None, metadata={"omitted": True})

    def faults(self) -> Iterator[str]:
        """What is wrong with it as a whole."""
        if not isinstance(self.images, (str, type(None))):
            yield f"sampling: images is {self.images!r:.40}, expected text or null"

    @property
    def images(self) -> Any:
        """The folder that was measured end to end; None: the package's images."""
        return (self.sampling or {}).get("images")
