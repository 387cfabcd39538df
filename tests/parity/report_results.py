"""Results for the tests of the reports: without a backend, with the harness's own statistics."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_edge.parity.limits import limit_for
from vit_edge.parity.logits import LogitComparison
from vit_edge.parity.report.read import result_from_json
from vit_edge.parity.result import Result
from vit_edge.parity.statistics import Difference, Repeats
from vit_edge.parity.witness import Witness
from vit_edge.strict import json_from_record

IMAGES, CLASSES = 16, 10
LABELS = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
GOLDEN_SHA256 = "9" * 64


def made_run(
    name: str = "ort", *, noise: float = 0.01, precision: str = "int8", verdict: str = "pass"
) -> dict[str, Any]:
    """What one backend found, whose logits are off by so much noise."""
    random = np.random.default_rng(0)
    reference = random.normal(scale=3, size=(IMAGES, CLASSES))
    candidate = reference + noise * random.normal(size=reference.shape)
    witness = Witness(IMAGES)
    indices = np.arange(IMAGES)
    witness.add(indices, candidate, reference)
    rows, logits, repeats = [], LogitComparison(), Repeats()
    for batch in (1, 4):
        logits = LogitComparison(repeats=repeats)
        logits.add(indices, candidate, reference)
        rows.append({"output": "logits", "batch": batch, **logits.summary()})
    features = Difference()
    features.add(indices, candidate, reference)
    rows.append({"output": "features", "batch": 4, **features.summary()})
    limit = limit_for(precision)
    return {
        "name": name, "verdict": verdict, "problems": [], "open_questions": [], "death": None,
        "facts": {"runtime": f"{name} 1.0", "device": "AMD EPYC", "engine": "none"},
        "simulated": None, "limit": limit.as_dict(), "limit_reason": limit.reason, "target": None,
        "proofs": [], "comparisons": rows,
        "checks": [
            {"name": "preprocessing", "passed": True, "detail": "9 probe files"},
            {"name": "repeatability", "passed": True, "detail": "the same batch twice: by 0"},
        ],
        "images": json_from_record(witness.images([f"photo-{i}.jpg" for i in indices], logits)),
        "scatter": json_from_record(witness.scatter()), "blocks": None, "localized": None,
        "memory": {"limit_bytes": None, "limited_by": None, "peak_rss_bytes": 150_000_000,
                   "peak_anonymous_bytes": 90_000_000},
        "seconds": {"total": 1.5, "running": 0.5},
    }  # fmt: skip


def failed_run(name: str = "ort") -> dict[str, Any]:
    """A run with more noise than INT8 may have."""
    run = made_run(name, noise=3.0, verdict="fail")
    run["problems"] = ["logits, batch 1, 4: centred SQNR is 0.1 dB, allowed at least 20.0 dB"]
    return run


def open_run(name: str = "ort") -> dict[str, Any]:
    """A run that 16 images do not decide."""
    run = made_run(name, verdict="inconclusive")
    run["target"] = {"top1_agreement": 0.99}
    run["open_questions"] = ["logits, batch 1, 4: top-1 agreement at least 99.00% is not proven"]
    return run


def dead_run(name: str = "ort") -> dict[str, Any]:
    """A run that ended before it compared anything."""
    run = made_run(name, verdict="died")
    run |= {
        "death": "it needed more than its limit of 100 MiB", "facts": {}, "limit": {},
        "limit_reason": "", "comparisons": [], "checks": [], "images": [],
        "scatter": {"reference": [], "candidate": []}, "memory": {"limit_bytes": 104857600},
    }  # fmt: skip
    return run


def made_result(*runs: dict[str, Any], cpu: str = "AMD EPYC", model: str = "1") -> dict[str, Any]:
    """The result of one machine."""
    return copy.deepcopy(
        {
            "schema_version": 3,
            "tool": "vit_edge 0.1.0",
            "created": "2026-11-21T12:00:00+00:00",
            "machine": {"cpu": cpu, "cpus": "2", "system": "Linux", "python": "3.11.7"},
            "bundle": {
                "name": f"base-{model}", "variant": "base-patch16-224", "precision": "int8",
                "model_sha256": model * 64, "model_bytes": 97_266_107,
            },
            "against": None,
            "golden": {
                "name": "golden.npz", "sha256": GOLDEN_SHA256, "images": IMAGES,
                "reference_dtype": "float64",
            },
            "runs": list(runs or [made_run()]),
        }
    )  # fmt: skip


def typed(value: dict[str, Any]) -> Result:
    """A result as its file is read."""
    result, problems = result_from_json(json.loads(json.dumps(value)))
    assert problems == []
    return result


def made_pictures() -> dict[tuple[str, int], NDArray[np.uint8]]:
    """Noise in place of every image."""
    random = np.random.default_rng(1)
    return {
        (GOLDEN_SHA256, index): random.integers(0, 256, (224, 224, 3), np.uint8)
        for index in range(IMAGES)
    }


def full_result() -> dict[str, Any]:
    """A result with everything that a page can show."""
    run = failed_run()
    run["blocks"] = [{"tap": f"blocks.{place}", "sqnr_db": 40.0 - place} for place in range(12)]
    run["blocks"][3]["sqnr_db"] = None
    run["localized"] = "block 3, fc2: SQNR falls from 41 dB to 7 dB"
    run["memory"] |= {"limit_bytes": 400_000_000, "limited_by": "cgroup"}
    return made_result(run, made_run("openvino"), open_run("eager"), dead_run("trt"))
