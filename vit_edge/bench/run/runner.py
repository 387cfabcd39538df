"""Running a suite: each configuration in fresh processes that take turns, saved as they come."""

from __future__ import annotations

import datetime
import logging
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType
from typing import Any

from vit_edge.bench.device import facts, noise
from vit_edge.bench.results.percentiles import samples_needed
from vit_edge.bench.run import built
from vit_edge.bench.run.operations import multiply_adds
from vit_edge.bench.run.peers import Measure, Peer
from vit_edge.bench.run.plan import Configuration, Sampling, Suite
from vit_edge.bundle import Bundle
from vit_edge.errors import ResourceError, VitEdgeError
from vit_edge.machine import child

_LOG = logging.getLogger(__name__)

SCHEMA_VERSION = 1
POLL_S = 0.25  # of a child that measures itself: looking at it takes time from it
SPARE_S = 120.0  # to load a model, beside the time that sampling may take

Save = Callable[[Mapping[str, Any]], None]


class Terminated(BaseException):
    """SIGTERM, told like Ctrl-C."""


def run(
    suite: Suite,
    save: Save,
    command: Sequence[str] = (),
    builds: Mapping[str, built.Built] = MappingProxyType({}),
    peers: Sequence[Peer] = (),
) -> dict[str, Any]:
    """Measure every configuration of a suite.

    Configurations take turns, in another order in each round: what changes in the machine meanwhile
    changes all of them. A configuration that fails or dies is kept with its reason.

    Args:
        suite: What to measure.
        save: Called with the whole run after each process, so that nothing is lost.
        command: The command line, for the facts.
        builds: What building took, by configuration; see built.builds. Without it what was built
            before is used, and `facts.engine` of an entry says what.
        peers: Others that take turns with the suite's configurations.

    Returns:
        The run: see docs/bench.md for its fields. Interrupted ones have `complete` false.
    """
    suite.check(len(peers))
    sampling = suite.sampling
    entries = [
        _entry(configuration, builds.get(configuration.name))
        for configuration in suite.configurations
    ] + [peer.entry() for peer in peers]
    measures: list[Measure] = [
        *(partial(_measured, configuration) for configuration in suite.configurations),
        *(peer.measure for peer in peers),
    ]
    early = noise.warnings_now()
    for warning in early:
        _LOG.warning("warning: %s", warning)
    found: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "title": suite.title,
        "started": _now(),
        "ended": None,
        "complete": False,
        "command": list(command),
        "sampling": {
            "processes": sampling.processes,
            "percentile": sampling.percentile,
            "strict": sampling.strict,
            "at_least_s": sampling.at_least_s,
            "images": None if sampling.images is None else str(sampling.images),
        },
        "facts": facts.run_facts(),
        "warnings": early,
        "configurations": entries,
    }
    save(found)
    before = noise.ticks()
    order = random.Random(0)
    with terminable():
        try:
            for turn in range(sampling.processes):
                indices = list(range(len(entries)))
                order.shuffle(indices)
                for index in indices:
                    if entries[index]["failed"] is not None:
                        continue
                    _LOG.info("%d of %d: %s", turn + 1, sampling.processes, entries[index]["name"])
                    _turn(measures[index], entries[index], sampling, turn)
                    save(found)
            found["complete"] = True
        except (KeyboardInterrupt, Terminated):
            found["interrupted"] = f"after {_processes(entries)} processes"
            _LOG.warning("interrupted: what was measured is kept, and marked")
    late = noise.machine_warnings(before, noise.ticks()) + [
        warning
        for entry in entries
        for warning in noise.configuration_warnings(entry["name"], entry["processes"])
    ]
    found["warnings"] = list(dict.fromkeys(early + late))
    found["ended"] = _now()
    save(found)
    return found


def _turn(measure: Measure, entry: dict[str, Any], sampling: Sampling, turn: int) -> None:
    """One process of one entry; whatever it fails of is its own, and the others go on."""
    needed = samples_needed(sampling.percentile, strict=sampling.strict)
    try:
        value = measure(sampling, -(-needed // sampling.processes), turn)
    except Exception as error:  # a typed one says what it is; of others the type tells more
        kind = "" if isinstance(error, VitEdgeError) else f"{type(error).__name__}: "
        entry["failed"] = kind + str(error).partition("\n")[0]
        _LOG.warning("%s: %s", entry["name"], entry["failed"])
        return
    entry["facts"] = value.pop("facts")
    entry["parity"] = value.pop("parity") or entry["parity"]
    if "engine_bytes" in value:
        entry["built"]["engine_bytes"] = value.pop("engine_bytes")
    entry["processes"].append(value)


def _measured(
    configuration: Configuration, sampling: Sampling, samples: int, turn: int
) -> dict[str, Any]:
    """One process of one configuration of ours; as of a Peer, with engine_bytes.

    Raises:
        ResourceError: It died.
        Exception: What it raised.
    """
    call = child.attempted_call(
        "vit_edge.bench.run.session:measure",
        configuration,
        sampling,
        samples,
        time.monotonic(),
        turn == 0 and configuration.stage == "model",
        timeout_s=sampling.most_s + SPARE_S,
        poll_s=POLL_S,
    )
    if call.value is None:
        raise ResourceError(call.child.death or f"it ended with code {call.child.returncode}")
    found: dict[str, Any] = call.value
    engine = found["facts"].get("engine", "")
    return found | {"engine_bytes": built.engine_bytes(Bundle.read(configuration.bundle), engine)}


def _entry(configuration: Configuration, build: built.Built | None) -> dict[str, Any]:
    """A configuration as it is kept."""
    found: dict[str, Any] = {
        "name": configuration.name,
        "backend": configuration.backend,
        "options": dict(configuration.options),
        "batch": configuration.batch,
        "scenario": configuration.scenario,
        "stage": configuration.stage,
        "queries_per_second": None,  # of a scenario that is no more; readers ask for it
        "bundle": None,
        "built": None,
        "facts": {},
        "parity": None,
        "failed": None,
        "processes": [],
    }
    try:
        bundle = Bundle.read(configuration.bundle)
    except VitEdgeError as error:
        found["failed"] = str(error).partition("\n")[0]
        return found
    manifest = bundle.manifest
    found["built"] = built.unbuilt(bundle)
    if build is not None:
        found["failed"] = build["failed"]
        found["built"] |= {key: build[key] for key in ("build_s", "build_memory_bytes")}
    if configuration.batch > manifest.max_batch:
        found["failed"] = f"batch {configuration.batch} is over the bundle's {manifest.max_batch}"
    found["bundle"] = {
        "name": configuration.bundle.name,
        "variant": manifest.variant,
        "precision": manifest.precision,
        "model_sha256": bundle.model_sha256,
        "model_bytes": bundle.model_bytes,
        "image_hw": list(manifest.preprocessing.crop_hw),
        "multiply_adds": None
        if manifest.architecture is None
        else multiply_adds(manifest.architecture),
    }
    return found


@contextmanager
def terminable() -> Iterator[None]:
    """Have SIGTERM end what is inside as Ctrl-C does: children are stopped.

    Raises:
        Terminated: It came.
    """

    def interrupt(number: int, frame: object) -> None:
        raise Terminated

    try:
        previous = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread: signals are somebody else's
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _processes(entries: Sequence[Mapping[str, Any]]) -> int:
    return sum(len(entry["processes"]) for entry in entries)


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def command_line() -> list[str]:
    """How this was started: as a module, or as a verb of another program."""
    words = sys.argv[2:] if sys.argv[1:2] == ["bench"] else sys.argv[1:]
    return ["python", "-m", "vit_edge.bench", *words]
