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
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

from vit_edge.bench.device import facts, noise
from vit_edge.bench.results.percentiles import samples_needed
from vit_edge.bench.results.runs import RULES, Answers, Built, Entry, Model, Process, Run
from vit_edge.bench.run import built
from vit_edge.bench.run.operations import multiply_adds
from vit_edge.bench.run.peers import Measure, Peer
from vit_edge.bench.run.plan import Configuration, Sampling, Suite
from vit_edge.bundle import Bundle
from vit_edge.errors import InputError, ResourceError, VitEdgeError
from vit_edge.machine import child
from vit_edge.strict import record_from_json

_LOG = logging.getLogger(__name__)
T = TypeVar("T")

POLL_S = 0.25  # of a child that measures itself: looking at it takes time from it
SPARE_S = 120.0  # to load a model, beside the time that sampling may take

Save = Callable[[Run], None]


class Terminated(BaseException):
    """SIGTERM, told like Ctrl-C."""


def run(
    suite: Suite,
    save: Save,
    command: Sequence[str] = (),
    builds: Mapping[str, built.Built] = MappingProxyType({}),
    peers: Sequence[Peer] = (),
) -> Run:
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
    ] + [_decoded(Entry, peer.entry()) for peer in peers]
    measures: list[Measure] = [
        *(partial(_measured, configuration) for configuration in suite.configurations),
        *(peer.measure for peer in peers),
    ]
    early = noise.warnings_now()
    for warning in early:
        _LOG.warning("warning: %s", warning)
    run = Run(
        title=suite.title,
        started=_now(),
        complete=False,
        command=tuple(command),
        sampling={
            "processes": sampling.processes,
            "percentile": sampling.percentile,
            "strict": sampling.strict,
            "at_least_s": sampling.at_least_s,
            "images": None if sampling.images is None else str(sampling.images),
        },
        facts=facts.run_facts(),
        warnings=tuple(early),
        configurations=tuple(entries),
    )
    save(run)
    before = noise.ticks()
    with terminable():
        try:
            for turn, index in _order(len(entries), sampling.processes):
                if entries[index].failed is not None:
                    continue
                _LOG.info("%d of %d: %s", turn + 1, sampling.processes, entries[index].name)
                entries[index] = _turn(measures[index], entries[index], sampling, turn)
                run = replace(run, configurations=tuple(entries))
                save(run)
            run = replace(run, complete=True)
        except (KeyboardInterrupt, Terminated):
            count = sum(len(entry.processes) for entry in entries)
            run = replace(run, interrupted=f"after {count} processes")
            _LOG.warning("interrupted: what was measured is kept, and marked")
    late = noise.machine_warnings(before, noise.ticks()) + [
        warning for entry in entries for warning in noise.configuration_warnings(entry)
    ]
    run = replace(run, warnings=tuple(dict.fromkeys(early + late)), ended=_now())
    save(run)
    return run


def _order(entries: int, turns: int) -> Iterator[tuple[int, int]]:
    """Which entry comes next in which turn: in each turn all of them, shuffled."""
    shuffled = random.Random(0)
    for turn in range(turns):
        indices = list(range(entries))
        shuffled.shuffle(indices)
        yield from ((turn, index) for index in indices)


def _turn(measure: Measure, entry: Entry, sampling: Sampling, turn: int) -> Entry:
    """Run one process of an entry. If it fails, this entry has failed, and the others go on."""
    needed = samples_needed(sampling.percentile, strict=sampling.strict)
    try:
        value = measure(sampling, -(-needed // sampling.processes), turn)
        process = _decoded(Process, value)
        parity = None if value["parity"] is None else _decoded(Answers, value["parity"])
    except Exception as error:  # a typed one says what it is; of others the type tells more
        kind = "" if isinstance(error, VitEdgeError) else f"{type(error).__name__}: "
        entry = replace(entry, failed=kind + str(error).partition("\n")[0])
        _LOG.warning("%s: %s", entry.name, entry.failed)
        return entry
    if entry.built is not None and "engine_bytes" in value:
        entry = replace(entry, built=replace(entry.built, engine_bytes=value["engine_bytes"]))
    if entry.bundle is not None and "model_bytes" in value:
        entry = replace(entry, bundle=replace(entry.bundle, model_bytes=value["model_bytes"]))
    return replace(
        entry,
        facts=value["facts"],
        parity=parity or entry.parity,
        processes=(*entry.processes, process),
    )


def _decoded(kind: type[T], value: Mapping[str, Any]) -> T:
    """Read what another process said.

    Raises:
        InputError: It is not what it should be.
    """
    record, problems = record_from_json(kind, dict(value), "it", RULES)
    if problems:
        raise InputError(f"its process said what cannot be read: {'; '.join(problems)}")
    return record


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


def _entry(configuration: Configuration, build: built.Built | None) -> Entry:
    """A configuration as it is kept, nothing measured yet."""
    entry = Entry(
        name=configuration.name,
        backend=configuration.backend,
        options=dict(configuration.options),
        batch=configuration.batch,
        scenario=configuration.scenario,
        stage=configuration.stage,
        queries_per_second=None,
        bundle=None,
        facts={},
        parity=None,
        failed=None,
        processes=(),
    )
    try:
        bundle = Bundle.read(configuration.bundle)
    except VitEdgeError as error:
        return replace(entry, failed=str(error).partition("\n")[0])
    manifest = bundle.manifest
    failed = None if build is None else build["failed"]
    if configuration.batch > manifest.max_batch:
        failed = f"batch {configuration.batch} is over the bundle's {manifest.max_batch}"
    height, width = manifest.preprocessing.crop_hw
    architecture = manifest.architecture
    return replace(
        entry,
        failed=failed,
        built=_decoded(Built, built.unbuilt(bundle) | (build or {})),
        bundle=Model(
            name=configuration.bundle.name,
            variant=manifest.variant,
            precision=manifest.precision,
            model_sha256=bundle.model_sha256,
            model_bytes=bundle.model_bytes,
            image_hw=(height, width),
            multiply_adds=None if architecture is None else multiply_adds(architecture),
        ),
    )


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


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def command_line() -> list[str]:
    """How this was started: as a module, or as a verb of another program."""
    words = sys.argv[2:] if sys.argv[1:2] == ["bench"] else sys.argv[1:]
    return ["vit-edge", "bench", *words]
