"""What is to be measured: configurations, and how many samples of each. Suites are TOML files."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from vit_edge import cpus
from vit_edge.choose import Option, name_of
from vit_edge.errors import MissingExtraError, UsageError

# MLPerf Inference's scenarios (arXiv:1911.02549, section 4): one query after another; queries of
# several images; all images at once; queries that arrive at random.
Scenario = Literal["single-stream", "multi-stream", "offline", "server"]
Stage = Literal["model", "end-to-end"]  # pixels to logits; encoded image to label

STREAMS = 8  # images of one query of multi-stream, as in MLPerf


@dataclass(frozen=True)
class Configuration:
    """One thing to measure.

    Attributes:
        bundle: Its directory.
        backend: A backend's name.
        options: Of its `load`.
        batch: Images of one run.
        scenario: How queries come.
        stage: What a query covers.
        queries_per_second: Of the server scenario: the mean rate at which they come.
    """

    bundle: Path
    backend: str
    options: Mapping[str, Option] = dataclasses.field(default_factory=dict)
    batch: int = 1
    scenario: Scenario = "single-stream"
    stage: Stage = "model"
    queries_per_second: float | None = None

    @property
    def name(self) -> str:
        """What it is called in tables; different configurations have different names."""
        rate = "" if self.queries_per_second is None else f" {self.queries_per_second:g}/s"
        stage = "" if self.stage == "model" else f" {self.stage}"
        way = name_of(self.backend, self.options)
        return f"{self.bundle.name} {way} batch {self.batch} {self.scenario}{rate}{stage}"

    def check(self) -> None:
        """Refuse what means nothing.

        Raises:
            UsageError: The value, and what is allowed.
        """
        if self.batch < 1:
            raise UsageError(f"a batch has at least one image, not {self.batch}")
        for value, allowed in ((self.scenario, Scenario), (self.stage, Stage)):
            if value not in get_args(allowed):
                raise UsageError(f"{value!r} is not one of {', '.join(get_args(allowed))}")
        if (self.scenario == "server") != (self.queries_per_second is not None):
            raise UsageError("the server scenario, and no other, needs queries_per_second")
        if self.queries_per_second is not None and not self.queries_per_second > 0:
            raise UsageError(f"queries_per_second must be positive, not {self.queries_per_second}")


@dataclass(frozen=True)
class Sampling:
    """How much is measured of each configuration.

    Attributes:
        processes: Fresh processes, in turns with those of the other configurations.
        percentile: The highest percentile that shall be told.
        strict: As many samples as MLPerf asks for.
        at_least_s: Of timed queries in each process.
        most_s: Of one process; what it has by then is kept, and marked.
        images: A folder of encoded images for what is measured end to end; by default the package's
            photographs, 320 pixels wide.
    """

    processes: int = 5
    percentile: float = 0.9
    strict: bool = False
    at_least_s: float = 2.0
    most_s: float = 600.0
    images: Path | None = None

    def check(self) -> None:
        """Refuse what means nothing.

        Raises:
            UsageError: The value, and what is allowed.
        """
        if self.processes < 1:
            raise UsageError(f"processes must be at least 1, not {self.processes}")
        if not 0.5 <= self.percentile < 1:
            raise UsageError(f"percentile must lie in 0.5..1, not {self.percentile}")
        if not 0 < self.at_least_s <= self.most_s:
            raise UsageError(f"at_least_s must lie in 0..{self.most_s:g}, not {self.at_least_s}")


@dataclass(frozen=True)
class Suite:
    """Configurations that are measured in one run."""

    title: str
    configurations: tuple[Configuration, ...]
    sampling: Sampling = Sampling()

    def check(self) -> None:
        """Refuse what cannot be measured or told apart.

        Raises:
            UsageError: What it is.
        """
        if not self.configurations:
            raise UsageError(f"{self.title}: nothing to measure")
        self.sampling.check()
        for configuration in self.configurations:
            configuration.check()
        names = [configuration.name for configuration in self.configurations]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UsageError(f"measured twice: {', '.join(twice)}")


def product(
    bundles: Sequence[Path],
    ways: Sequence[tuple[str, Mapping[str, Option]]],
    batches: Sequence[int],
    scenario: Scenario,
    stages: Sequence[Stage],
    queries_per_second: float | None = None,
) -> tuple[Configuration, ...]:
    """Every combination."""
    return tuple(
        Configuration(bundle, backend, options, batch, scenario, stage, queries_per_second)
        for bundle, (backend, options), batch, stage in itertools.product(
            bundles, ways, batches, stages
        )
    )


def read_suite(path: Path, bundles: Path) -> Suite:
    """Read a suite.

    A suite has a title, a table [sampling], and tables [[measure]] with bundles, backends (names,
    or tables with name and options), batches, threads, scenario and stages. threads is a list, or
    "all": 1, 2, 4, ... and as many as this process may use.

    Args:
        path: The TOML file.
        bundles: Where the bundles are that it names.

    Raises:
        UsageError: It is none; every problem is told.
    """
    try:  # in the standard library since Python 3.11
        tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    except ImportError:
        raise MissingExtraError("suites need tomli: pip install tomli") from None
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: not a suite: {error}") from None
    unknown = sorted(data.keys() - {"title", "sampling", "measure"})
    if unknown:
        raise UsageError(f"{path}: unknown keys: {', '.join(unknown)}")
    found: list[Configuration] = []
    for index, table in enumerate(data.get("measure", [])):
        try:
            found += _configurations(table, bundles)
        except (TypeError, KeyError, ValueError) as error:
            raise UsageError(f"{path}: measure {index + 1}: {error}") from None
    try:
        sampling = Sampling(**data.get("sampling", {}))
    except TypeError as error:
        raise UsageError(f"{path}: sampling: {error}") from None
    suite = Suite(str(data.get("title", path.stem)), tuple(found), sampling)
    suite.check()
    return suite


def _configurations(table: Mapping[str, Any], bundles: Path) -> Sequence[Configuration]:
    known = {
        "bundles", "backends", "batches", "threads", "scenario", "stages", "queries_per_second"
    }  # fmt: skip
    if unknown := sorted(table.keys() - known):
        raise ValueError(f"unknown keys: {', '.join(unknown)}")
    ways = [
        (entry, {}) if isinstance(entry, str) else (entry["name"], entry.get("options", {}))
        for entry in table["backends"]
    ]
    if "threads" in table:
        counts = _thread_counts(table["threads"])
        ways = [(name, {**options, "threads": n}) for name, options in ways for n in counts]
    return product(
        [bundles / name for name in table["bundles"]],
        ways,
        table.get("batches", [1]),
        table.get("scenario", "single-stream"),
        table.get("stages", ["model"]),
        table.get("queries_per_second"),
    )


def _thread_counts(threads: Any) -> Sequence[int]:
    usable = cpus.usable_cpus()
    if threads == "all":
        powers = [2**power for power in range(usable.bit_length()) if 2**power < usable]
        return [*powers, usable]
    if not isinstance(threads, list) or not all(type(n) is int and n >= 1 for n in threads):
        raise ValueError(f'threads must be "all" or numbers of at least 1, not {threads!r}')
    return threads
