"""One process of a benchmark: open a bundle, answer once, warm up, sample; the child's side.

What it takes until the first answer is told in three parts, counted from the moment the parent
started the process: the interpreter and imports, the load, the first answer.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vit_edge import processes, tuned
from vit_edge.bench.plan import Configuration, Sampling
from vit_edge.bundle import Bundle
from vit_edge.errors import UsageError

_MOST_IMAGES = 256  # encoded ones that are held in memory
_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})


def measure(
    configuration: Configuration,
    sampling: Sampling,
    samples: int,
    spawned: float,
    seed: int,
    check: bool,
) -> dict[str, Any]:
    """Measure one configuration in this process.

    Args:
        configuration: What to run.
        sampling: How long.
        samples: How many at least.
        spawned: time.time() of the parent when it started this process.
        seed: Of what is random: arrivals.
        check: Compare the answers with the reference's, after everything else.

    Returns:
        latencies_ms, seconds, images, warmup_runs, stable, enough (see scenarios.Sampled); cold:
        seconds of import, load and first answer; memory: bytes of this process at its end, the
        peak too; facts: the backend's; parity: see `parity`, None if not asked for.
    """
    import numpy as np

    from vit_edge.bench import scenarios

    bundle = Bundle.read(configuration.bundle)
    imported = time.time()
    choice = tuned.Choice(configuration.backend, configuration.options)
    if configuration.backend == tuned.AUTO:
        choice = tuned.chosen(bundle, tuned.AUTO, configuration.batch)
    backend = tuned.open_choice(bundle, choice, None)
    loaded = time.time()
    query = _query(bundle, backend, configuration, sampling.images)
    query()
    answered = time.time()
    limits = scenarios.Limits(samples, sampling.at_least_s, sampling.most_s)
    if configuration.queries_per_second is not None:
        found = scenarios.at_random(
            query, configuration.batch, configuration.queries_per_second, limits, seed
        )
    else:
        found = scenarios.one_after_another(query, configuration.batch, limits)
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
            "first_answer": answered - loaded,
        },
        "memory_bytes": memory,
        "parity": judged,
        "facts": facts | {"numpy": np.__version__},
    }


def parity(bundle: Bundle, backend: Any, batch: int) -> dict[str, Any]:
    """What the answers are worth on the golden images.

    Returns:
        problems: what exceeds the precision's limit; images; and of the logits: top1_agreement,
        sqnr_centred_db, relative (max |difference| over max |reference|).
    """
    from vit_edge.parity.compare import check_golden, compare_answers
    from vit_edge.parity.golden import Golden
    from vit_edge.parity.limits import limit_for

    with Golden(bundle.golden_path) as golden:
        check_golden(golden, bundle.manifest)
        limit = limit_for(bundle.manifest.precision)
        found = compare_answers(backend, golden, bundle.manifest, batches=[batch], limit=limit)
    logits = next((row for row in found.summary() if row["output"] == "logits"), {})
    kept = ("images", "top1_agreement", "sqnr_centred_db", "relative")
    numbers = {name: logits.get(name) for name in kept}
    # the same to the bit: no noise, and no number that JSON knows
    finite = {name: None if value == math.inf else value for name, value in numbers.items()}
    return {"problems": found.problems} | finite


def memory_bytes() -> dict[str, int]:
    """This process's memory now: anonymous, of files, and the peak of both together."""
    import os

    status = processes.status_bytes(os.getpid())
    return {
        "anonymous": status.get("RssAnon", 0),
        "file": status.get("RssFile", 0),
        "peak": status.get("VmHWM", 0),
    }


def _query(
    bundle: Bundle, backend: Any, configuration: Configuration, images: Path | None
) -> Callable[[], object]:
    """What one query does: pixels to logits, or encoded images to labels."""
    from vit_edge.parity.golden import Golden
    from vit_edge.preprocess import input_from_resized

    batch = configuration.batch
    if configuration.stage == "model":
        with Golden(bundle.golden_path) as golden:
            which = [index % len(golden) for index in range(batch)]
            pixels = input_from_resized(golden.images(which), bundle.manifest)
        return lambda: backend.run(pixels)
    from vit_edge.predictor import Predictor

    encoded = [path.read_bytes() for path in _image_files(images)[:_MOST_IMAGES]]
    turn = itertools.cycle(
        [encoded[(at + offset) % len(encoded)] for offset in range(batch)]
        for at in range(len(encoded))
    )
    predictor = Predictor(bundle, backend)
    return lambda: predictor.predict_batch(next(turn))


def _image_files(folder: Path | None) -> list[Path]:
    """What is decoded end to end.

    Raises:
        UsageError: There is no image in the folder.
    """
    if folder is None:
        return sorted((Path(__file__).resolve().parents[1] / "data" / "photos").glob("*.jpg"))
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not found:
        raise UsageError(f"{folder}: no image in it ({', '.join(sorted(_SUFFIXES))})")
    return found
