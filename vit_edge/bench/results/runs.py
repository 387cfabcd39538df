"""What is kept of a run; docs/bench.md says what its fields mean."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np

from vit_edge.parity.targets import STATISTICS
from vit_edge.strict import Check, Rest, Rules, shown

SCHEMA_VERSION = 1
PEER_PREFIX = "peer:"  # what the backend of an entry begins with that is not ours
RULES = Rules(numbers_below=1e18)  # beyond any time, size or count
_MOST_PIXELS = 1e6
_MOST_OF_PAIR = 1e4  # a pair is an interval of a rate, or two temperatures


def _are_times(value: Any) -> bool:
    """Whether they are numbers over 0, of which there are too many to look at each by itself."""
    try:
        times = np.asarray(value, dtype=float) if isinstance(value, list) else np.array(0.0)
    except (TypeError, ValueError, OverflowError):
        return False
    return times.ndim == 1 and bool(np.all((times > 0) & (times < RULES.numbers_below)))


def _is_pair(value: Any) -> bool:
    numbers = isinstance(value, list) and all(type(one) in (int, float) for one in value)
    return numbers and len(value) == 2 and all(abs(one) < _MOST_OF_PAIR for one in value)


Times = Annotated[Sequence[float], Check("a list of positive numbers", _are_times)]
Pair = Annotated[tuple[float, float], Check("two numbers", _is_pair, tuple)]
Word = Annotated[  # of facts and options
    str | int | float | bool | None,
    Check("text or a number", lambda value: not isinstance(value, (dict, list))),
]
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
            yield f"image_hw is {shown([*sides])}, expected height and width in pixels"


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


_JUDGED_BY = ("images", "labelled", "non_finite", "reference_margin_median")
_STATISTICS = Rest(
    {},
    dict.fromkeys((*_JUDGED_BY, *STATISTICS), float | None)
    | {one.interval: Pair | None for one in STATISTICS.values() if one.interval},
)


@dataclass(frozen=True)
class Answers:
    """What the answers are worth, as the child that measured judged them.

    Attributes:
        problems: What exceeds the limit of the precision; empty if they hold.
        statistics: Of the logits, what a target may be about (parity.targets.STATISTICS) and what
            else it is judged by; empty where the model has no head.
    """

    problems: tuple[str, ...]
    statistics: Annotated[Mapping[str, Any], _STATISTICS]

    @property
    def worth_db(self) -> float | None:
        """Centred SQNR of the logits; infinite: the same as the reference's; None: not known."""
        noise = self.statistics.get("sqnr_centred_db")
        if noise is None:
            return math.inf if self.statistics.get("relative") == 0 else None
        return float(noise)

    def faults(self) -> Iterator[str]:
        """Rates without what they are judged by."""
        for name, statistic in STATISTICS.items():
            if statistic.interval is None or self.statistics.get(name) is None:
                continue
            for key in (statistic.interval, statistic.trials):
                if self.statistics.get(key) is None:
                    yield f"has {name}, but no {key}"


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
    processes: tuple[Process, ...]

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
    def throttled(self) -> tuple[str, ...]:
        """The reasons that its processes tell, each once."""
        reasons = [process.sensors.throttled for process in self.processes if process.sensors]
        return tuple(dict.fromkeys(itertools.chain(*reasons)))

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

    peaks: tuple[Peak, ...]
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
    configurations: tuple[Entry, ...]
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
