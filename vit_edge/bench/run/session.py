"""One configuration in this process: opened, answered once, then sampled or judged.

Whatever measures a bundle opens it here, in a child: the bench, `build --tune`, recommend and the
doctor. The time to the first answer has three parts: the imports, the runtime's too; the load; the
answer. Reading the images that are answered belongs to none of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vit_edge.backends import Backend, auto
from vit_edge.bench.run.plan import Configuration, Sampling
from vit_edge.bundle import Bundle
from vit_edge.machine import processes
from vit_edge.strict import json_from_record

if TYPE_CHECKING:  # it is imported after what is measured
    from vit_edge.bench.results.runs import Answers

_RUNTIMES = {"ort": "onnxruntime", "openvino": "openvino", "eager": "torch", "trt": "tensorrt"}
_MOST_IMAGES = 256  # encoded ones that are held in memory


class Session(NamedTuple):
    """A bundle that is open in this process, and has answered once.

    Attributes:
        bundle: The bundle.
        backend: It, opened.
        query: Answers once more.
        answer: What it answered first.
        cold_s: What that took: import, load and first_answer.
    """

    bundle: Bundle
    backend: Backend
    query: Callable[[], object]
    answer: Any
    cold_s: Mapping[str, float]


@contextlib.contextmanager
def opened(
    configuration: Configuration,
    started: float,
    *,
    images: Path | None = None,
    engines_dir: Path | None = None,
) -> Iterator[Session]:
    """Open a bundle, and answer once.

    Args:
        configuration: What to run.
        started: time.monotonic() when the imports began.
        images: Encoded images for what is measured end to end; by default the package's.
        engines_dir: Where its engine lies; by default the bundle's place for them.
    """
    with contextlib.suppress(Exception):  # what does not import gets its reason from the load
        _import_runtime(configuration.backend)
    imported = time.monotonic()
    bundle = Bundle.read(configuration.bundle)
    choice = auto.Choice(configuration.backend, configuration.options)
    choice = auto.resolve(bundle, choice, configuration.batch)
    backend = auto.open_choice(bundle, choice, engines_dir)
    loaded = time.monotonic()
    query = _query(bundle, backend, configuration, images)
    ready = time.monotonic()
    answer = query()
    first_answer = time.monotonic() - ready
    try:
        cold_s = {
            "import": imported - started, "load": loaded - imported, "first_answer": first_answer
        }  # fmt: skip
        yield Session(bundle, backend, query, answer, cold_s)
    finally:
        backend.close()


def measure(
    configuration: Configuration,
    sampling: Sampling,
    samples: int,
    spawned: float,
    check: bool,
) -> dict[str, Any]:
    """Measure one configuration in this process.

    Args:
        configuration: What to run.
        sampling: How long.
        samples: How many at least.
        spawned: time.monotonic() of the parent when it started this process: one clock for all.
        check: Compare the answers with the reference's, after everything else.

    Returns:
        The fields of runs.Process, the backend's facts, and parity: runs.Answers, None if not
        asked for.
    """
    import numpy as np

    from vit_edge.bench.device import sensors
    from vit_edge.bench.run import scenarios

    with opened(configuration, spawned, images=sampling.images) as session:
        limits = scenarios.Limits(samples, sampling.at_least_s, sampling.most_s)
        watch = sensors.Watch()
        sampled = scenarios.one_after_another(session.query, configuration.batch, limits, watch)
        memory = memory_bytes()
        answers = parity(session, configuration.batch) if check else None
    sampled = dataclasses.replace(
        sampled, latencies_ms=[round(latency, 4) for latency in sampled.latencies_ms]
    )
    return dataclasses.asdict(sampled) | {
        "cold_s": session.cold_s,
        "memory_bytes": memory,
        "sensors": watch.readings(sampled.images),
        "parity": None if answers is None else json_from_record(answers),
        "facts": _facts(session) | {"numpy": np.__version__},
    }


def answer(configuration: Configuration) -> dict[str, Any]:
    """Answer one golden image in this process.

    Returns:
        first_answer_s: The runtime's import, loading and the first run.
        difference: max |logits - reference| over max |reference|; None: NaN or Inf.
        facts: The backend's.

    Raises:
        VitEdgeError: The backend's reason.
    """
    import numpy as np

    from vit_edge.bundle.golden import Golden

    with (
        opened(configuration, time.monotonic()) as session,
        Golden(session.bundle.golden_path) as golden,
    ):
        expected = golden.answers([0])
    output = next(output for output in expected if output in session.answer)
    reference = expected[output]
    difference = np.abs(session.answer[output] - reference).max() / np.abs(reference).max()
    return {
        "first_answer_s": sum(session.cold_s.values()),
        "difference": float(difference) if np.isfinite(difference) else None,
        "facts": _facts(session),
    }


def judge(configuration: Configuration, images: Path) -> Answers:
    """Compare answers with the reference's to other images, in this process."""
    with opened(configuration, time.monotonic()) as session:
        return parity(session, configuration.batch, images)


def parity(session: Session, batch: int, images: Path | None = None) -> Answers:
    """Judge the answers.

    Args:
        session: The open bundle.
        batch: Images of one run.
        images: A golden file; the bundle's own by default.
    """
    from vit_edge.bench.results.runs import Answers
    from vit_edge.bench.run.golden import compare_golden

    comparison = compare_golden(session.bundle, session.backend, [batch], images=images)
    logits = next((row.summary for row in comparison.rows() if row.output == "logits"), {})
    return Answers(tuple(comparison.problems), kept_of(logits))


def kept_of(logits: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a comparison's summary: Answers.statistics."""
    from vit_edge.parity.targets import STATISTICS

    judged_by = ("images", "labelled", "non_finite", "reference_margin_median")
    intervals = [entry.interval for entry in STATISTICS.values() if entry.interval]
    kept = (*judged_by, *STATISTICS, *intervals)
    numbers = {name: logits[name] for name in kept if name in logits}
    # the same to the bit: no noise, and no number that JSON knows
    return {name: None if value == math.inf else value for name, value in numbers.items()}


def memory_bytes() -> dict[str, int]:
    """This process's memory now: anonymous, of files, and the peak of both together."""
    import os

    status = processes.status_bytes(os.getpid())
    return {
        "anonymous": status.get("RssAnon", 0),
        "file": status.get("RssFile", 0),
        "peak": status.get("VmHWM", 0),
    }


def _import_runtime(backend: str) -> None:
    """Import what a backend will need, if that is installed; its load would, else."""
    name = _RUNTIMES.get(backend)
    if name is not None and importlib.util.find_spec(name) is not None:
        importlib.import_module(name)


def _facts(session: Session) -> dict[str, str]:
    return {key: str(value) for key, value in session.backend.facts.items()}


def _query(
    bundle: Bundle, backend: Any, configuration: Configuration, images: Path | None
) -> Callable[[], object]:
    """What one query does: pixels to logits, or encoded images to labels."""
    batch = configuration.batch
    if configuration.stage == "model":
        from vit_edge.bench.run.golden import golden_pixels

        pixels = golden_pixels(bundle, batch)
        return lambda: backend.run(pixels)
    from vit_edge.images.folders import PHOTOS, image_files
    from vit_edge.predictor import Predictor

    encoded = [path.read_bytes() for path in image_files(images or PHOTOS)[:_MOST_IMAGES]]
    turn = itertools.cycle(
        [encoded[(at + offset) % len(encoded)] for offset in range(batch)]
        for at in range(len(encoded))
    )
    predictor = Predictor(bundle, backend)
    return lambda: predictor.predict_batch(next(turn))
