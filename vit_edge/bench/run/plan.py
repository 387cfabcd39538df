"""What is to be measured: configurations, and how many samples of each. Suites are TOML files."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from vit_edge.backends import Option, name_of
from vit_edge.errors import MissingExtraError, UsageError
from vit_edge.machine import cpus

# Two of MLPerf Inference's scenarios (arXiv:1911.02549, section 4): one query after another; all
# images at once.
Scenario = Literal["single-stream", "offline"]
Stage = Literal["model", "end-to-end"]  # pixels to logits; encoded image to label

OFFLINE_BATCH = 8  # images of one run of offline


def default_batch(scenario: str) -> int:
    """Images of one run, where nobody said how many."""
    return OFFLINE_BATCH if scenario == "offline" else 1


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
    """

    bundle: Path
    backend: str
    options: Mapping[str, Option] = dataclasses.field(default_factory=dict)
    batch: int = 1
    scenario: Scenario = "single-stream"
    stage: Stage = "model"

    @property
    def name(self) -> str:
        """What it is called in tables; different configurations have different names."""
        stage = "" if self.stage == "model" else f" {self.stage}"
        backend = name_of(self.backend, self.options)
        return f"{self.bundle.name} {backend} batch {self.batch} {self.scenario}{stage}"

    def check(self) -> None:
        """Refuse what means nothing.

        Raises:
            UsageError: The value, and what is allowed.
        """
        if type(self.batch) is not int or self.batch < 1:
            raise UsageError(f"a batch has at least one image, not {self.batch!r}")
        for value, allowed in ((self.scenario, Scenario), (self.stage, Stage)):
            if value not in get_args(allowed):
                raise UsageError(f"{value!r} is not one of {', '.join(get_args(allowed))}")


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
        if type(self.processes) is not int or self.processes < 1:
            raise UsageError(f"processes must be at least 1, not {self.processes!r}")
        if not (_is_number(self.percentile) and 0.5 <= self.percentile < 1):
            raise UsageError(f"percentile must lie in 0.5..1, not {self.percentile!r}")
        if type(self.strict) is not bool:
            raise UsageError(f"strict must be true or false, not {self.strict!r}")
        if not (_is_number(self.most_s) and 0 < self.most_s < math.inf):
            raise UsageError(f"most_s must be positive and finite, not {self.most_s!r}")
        if not (_is_number(self.at_least_s) and 0 < self.at_least_s <= self.most_s):
            raise UsageError(f"at_least_s must lie in 0..{self.most_s:g}, not {self.at_least_s!r}")
        if self.images is not None and not self.images.is_dir():
            raise UsageError(f"images: {self.images} is no folder")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass(frozen=True)
class Suite:
    """Configurations that are measured in one run."""

    title: str
    configurations: tuple[Configuration, ...]
    sampling: Sampling = Sampling()

    def check(self, others: int = 0) -> None:
        """Refuse what cannot be measured or told apart.

        Args:
            others: How many peers take turns with it.

        Raises:
            UsageError: What it is.
        """
        if not self.configurations and not others:
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
    backends: Sequence[tuple[str, Mapping[str, Option]]],
    batches: Sequence[int],
    scenario: Scenario,
    stages: Sequence[Stage],
) -> tuple[Configuration, ...]:
    """Every combination."""
    return tuple(
        Configuration(bundle, backend, options, batch, scenario, stage)
        for bundle, (backend, options), batch, stage in itertools.product(
            bundles, backends, batches, stages
        )
    )


def read_suite(path: Path, bundles: Path) -> Suite:
    """Read a suite.

    A suite has a title, a table [sampling], and tables [[measure]] with bundles, backends (names,
    or tables with name and options), batches, threads, scenario and stages. threads is a list, or
    "all": 1, 2, 4, ... and as many as this process may use. Of [sampling], `images` is a folder
    beside the file.

    Args:
        path: The TOML file.
        bundles: Where the bundles are that it names.

    Raises:
        UsageError: It is none, and the first reason why.
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
    measure, asked = data.get("measure", []), data.get("sampling", {})
    if not isinstance(measure, list) or not isinstance(asked, dict):
        raise UsageError(f"{path}: write tables [[measure]], and one table [sampling]")
    for index, table in enumerate(measure):
        try:
            found += _configurations(table, bundles)
        except UsageError as error:
            raise UsageError(f"{path}: measure {index + 1}: {error}") from None
    known = {field.name for field in dataclasses.fields(Sampling)}
    if unknown := sorted(asked.keys() - known):
        raise UsageError(f"{path}: sampling: unknown keys: {', '.join(unknown)}")
    if "images" in asked:
        asked["images"] = path.parent / str(asked["images"])
    suite = Suite(str(data.get("title", path.stem)), tuple(found), Sampling(**asked))
    try:
        suite.check()
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    return suite


def _configurations(table: Mapping[str, Any], bundles: Path) -> Sequence[Configuration]:
    known = {"bundles", "backends", "batches", "threads", "scenario", "stages"}
    if not isinstance(table, dict):
        raise UsageError(f"expected a table, not {table!r}")
    if unknown := sorted(table.keys() - known):
        raise UsageError(f"unknown keys: {', '.join(unknown)}")
    backends = [_backend(entry) for entry in _listed(table, "backends", (str, dict))]
    scenario = table.get("scenario", "single-stream")
    if "threads" in table:
        counts = _thread_counts(table["threads"])
        backends = [(name, {**options, "threads": n}) for name, options in backends for n in counts]
    return product(
        [bundles / name for name in _listed(table, "bundles", (str,))],
        backends,
        _listed(table, "batches", (int,)) if "batches" in table else [default_batch(scenario)],
        scenario,
        _listed(table, "stages", (str,)) if "stages" in table else ["model"],
    )


def _backend(entry: Any) -> tuple[str, Mapping[str, Option]]:
    """A backend by name, or a table with its options."""
    if isinstance(entry, str):
        return entry, {}
    name, options = entry.get("name"), entry.get("options", {})
    if not isinstance(name, str) or not isinstance(options, dict) or len(entry) > 2:
        raise UsageError(f"backends: expected a name, or a table of name and options, not {entry}")
    return name, options


def _listed(table: Mapping[str, Any], key: str, kinds: tuple[type, ...]) -> Any:
    """A list of a table, of which every entry is of some kind."""
    found = table.get(key)
    if not isinstance(found, list) or not found or not all(type(e) in kinds for e in found):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise UsageError(f"{key} must be a list of {names}, not {found!r}")
    return found


def _thread_counts(threads: Any) -> Sequence[int]:
    usable = cpus.usable_cpus()
    if threads == "all":
        powers = [2**power for power in range(usable.bit_length()) if 2**power < usable]
        return [*powers, usable]
    if not isinstance(threads, list) or not all(type(n) is int and n >= 1 for n in threads):
        raise UsageError(f'threads must be "all" or numbers of at least 1, not {threads!r}')
    return threads
