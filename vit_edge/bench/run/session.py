"""One process of a benchmark: open a bundle, answer once, warm up, sample; the child's side.

What it takes until the first answer is told in three parts, counted from the moment the parent
started the process: the interpreter and imports, the runtime's too; the load; the first answer. To
read the images that it answers belongs to none of them.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import itertools
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_edge.backends import Backend, auto
from vit_edge.bench.run.plan import Configuration, Sampling
from vit_edge.bundle import Bundle
from vit_edge.machine import processes
from vit_edge.strict import json_from_record

if TYPE_CHECKING:  # it is imported after what is measured
    from vit_edge.bench.results.runs import Answers

_RUNTIMES = {"ort": "onnxruntime", "openvino": "openvino", "eager": "torch", "trt": "tensorrt"}
_MOST_IMAGES = 256  # encoded ones that are held in memory


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
        latencies_ms, seconds, images, warmup_runs, stable, enough (see scenarios.Sampled); cold:
        seconds of import, load and first answer; memory: bytes of this process at its end, the
        peak too; sensors: see sensors.Watch.told; facts: the backend's; parity: see runs.Answers,
        None if not asked for.
    """
    import numpy as np

    from vit_edge.bench.device import sensors
    from vit_edge.bench.run import scenarios

    _import_runtime(configuration.backend)
    imported = time.monotonic()
    bundle = Bundle.read(configuration.bundle)
    backend = _opened(bundle, configuration)
    loaded = time.monotonic()
    query = _query(bundle, backend, configuration, sampling.images)
    ready = time.monotonic()
    query()
    answered = time.monotonic()
    limits = scenarios.Limits(samples, sampling.at_least_s, sampling.most_s)
    watch = sensors.Watch()
    found = scenarios.one_after_another(query, configuration.batch, limits, watch)
    memory = memory_bytes()
    facts = {key: str(value) for key, value in backend.facts.items()}
    judged = parity(bundle, backend, configuration.batch) if check else None
    backend.close()
    found = dataclasses.replace(
        found, latencies_ms=[round(latency, 4) for latency in found.latencies_ms]
    )
    return dataclasses.asdict(found) | {
        "cold_s": {
            "import": imported - spawned,
            "load": loaded - imported,
            "first_answer": answered - ready,
        },
        "memory_bytes": memory,
        "sensors": watch.told(found.images),
        "parity": None if judged is None else json_from_record(judged),
        "facts": facts | {"numpy": np.__version__},
    }


def judge(configuration: Configuration, images: Path) -> Answers:
    """Compare answers with the reference's to other images, in this process."""
    bundle = Bundle.read(configuration.bundle)
    backend = _opened(bundle, configuration)
    found = parity(bundle, backend, configuration.batch, images)
    backend.close()
    return found


def parity(bundle: Bundle, backend: Any, batch: int, images: Path | None = None) -> Answers:
    """Judge the answers.

    Args:
        bundle: The bundle.
        backend: That runs it.
        batch: Images of one run.
        images: A golden file; the bundle's own by default.
    """
    from vit_edge.bench.results.runs import Answers
    from vit_edge.bench.run.golden import compare_golden

    found = compare_golden(bundle, backend, [batch], images=images)
    logits = next((row.summary for row in found.rows() if row.output == "logits"), {})
    return Answers(tuple(found.problems), kept_of(logits))


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


def _opened(bundle: Bundle, configuration: Configuration) -> Backend:
    choice = auto.Choice(configuration.backend, configuration.options)
    choice = auto.resolve(bundle, choice, configuration.batch)
    return auto.open_choice(bundle, choice, None)


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
