"""Runs to report, made up: of several machines, precisions, backends and batches."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np

from vit_edge.bench.report import machines as report
from vit_edge.bench.results.runs import RULES, Entry, Run
from vit_edge.parity.intervals import wilson_interval
from vit_edge.strict import record_from_json

# precision -> (share of fp32's time, SQNR in dB, share of its file)
KINDS: dict[str, tuple[float, float | None, float]] = {
    "fp32": (1.0, 128.0, 1.0), "bf16": (0.62, 44.0, 0.5), "int8": (0.33, 25.0, 0.26),
    "int4": (0.8, 14.0, 0.16),
}  # fmt: skip
ROOFLINE: dict[str, Any] = {
    "peaks": [
        {"kind": "fp32", "backend": "ort", "per_second": 1e12, "size": [512, 512, 512]},
        {"kind": "fp32", "backend": "openvino", "per_second": 2e12, "size": [64, 64, 64]},
        {"kind": "read", "backend": "ort", "per_second": 1e10, "size": [4096, 100]},
    ],
    "limits": {"fp32": 2e12, "bf16": None, "read": 1e10},
}
BACKENDS = {"ort": 1.0, "openvino": 0.9}


def typed(run: Any) -> Run:
    """A run as it is read; the tests make and change its JSON."""
    if isinstance(run, Run):
        return run
    record, problems = record_from_json(Run, run, "it", RULES)
    assert not problems
    return record


def typed_entry(entry: dict[str, Any]) -> Entry:
    """A configuration as it is read."""
    return typed(made_run(entry)).configurations[0]


def machines(runs: Sequence[Any]) -> list[report.Machine]:
    """Runs put in order, from their JSON."""
    return report.machines([typed(run) for run in runs])


def made_process(level_ms: float, batch: int, seed: int, count: int = 60) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    level_ms *= float(np.exp(random.normal(0, 0.01)))
    latencies = [
        round(float(ms), 4) for ms in level_ms + random.exponential(0.03 * level_ms, count)
    ]
    return {
        "latencies_ms": latencies, "seconds": sum(latencies) / 1e3, "images": batch * count,
        "warmup_runs": 20, "stable": True, "enough": True,
        "cold_s": {"import": 0.11, "load": 0.2 + level_ms / 1e3, "first_answer": level_ms / 500},
        "memory_bytes": {
            "anonymous": 50 * 10**6 + batch * 10**6, "file": 40 * 10**6, "peak": 120 * 10**6,
        },
    }  # fmt: skip


def made_entry(
    precision: str = "int8",
    backend: str = "ort",
    batch: int = 1,
    *,
    variant: str = "base-patch16-224",
    size: int = 224,
    options: dict[str, Any] | None = None,
    processes: int = 3,
    count: int = 60,
) -> dict[str, Any]:
    share, noise, of_file = KINDS[precision]
    level_ms = 90 * share * BACKENDS[backend] * batch**0.9 * (size / 224) ** 2
    threads = (options or {}).get("threads", 2)
    level_ms /= threads / 2
    way = backend + "".join(f" {key}={value}" for key, value in (options or {}).items())
    name = f"{variant}-{precision} {way} batch {batch} single-stream"
    seed = sum(map(ord, name))
    return {
        "name": name, "backend": backend, "options": options or {}, "batch": batch,
        "scenario": "single-stream", "stage": "model", "queries_per_second": None,
        "bundle": {
            "name": f"{variant}-{precision}", "variant": variant, "precision": precision,
            "model_sha256": "5" * 64, "model_bytes": int(346e6 * of_file),
            "image_hw": [size, size], "multiply_adds": (1 if "tiny" in variant else 17) * 10**9,
        },
        "facts": {"backend": backend, "runtime": f"{backend} 1", "threads": str(threads)},
        "parity": {
            "problems": [], "images": 16, "top1_agreement": 1.0,
            "top1_agreement_interval": list(wilson_interval(16, 16)), "sqnr_centred_db": noise,
            "relative": 1e-3,
        },
        "failed": None,
        "processes": [made_process(level_ms, batch, seed + i, count) for i in range(processes)],
    }  # fmt: skip


def made_run(
    *entries: dict[str, Any], started: str = "2026-01-02T03:04:05+00:00", **facts: str
) -> Any:
    return {
        "schema_version": 1, "title": "made up", "started": started,
        "ended": "2026-01-02T04:04:05+00:00", "complete": True,
        "command": ["python", "-m", "vit_edge.bench", "--suite", "x.toml"],
        "sampling": {"processes": 3, "percentile": 0.9},
        "facts": {"cpu": "AMD EPYC", "cpus": "2", "memory": "25.3 GB", "python": "3.11.7"} | facts,
        "warnings": [], "configurations": copy.deepcopy(list(entries)),
    }  # fmt: skip


def full_run(**facts: str) -> Any:
    """Everything that a page can show."""
    entries = [
        made_entry(precision, backend, batch)
        for precision in KINDS
        for backend in BACKENDS
        for batch in (1, 2, 4, 8)
    ]
    entries += [made_entry(options={"threads": threads}) for threads in (1, 4)]
    entries += [made_entry(variant="tiny-patch16-224", size=side) for side in (224,)]
    entries += [made_entry(variant="tiny-patch16-384", size=side) for side in (384,)]
    wrong = made_entry("int4", "ort", 1, variant="tiny-patch16-224", size=224)
    wrong["parity"] |= {"problems": ["logits: top-1 agreement is 0.2"], "sqnr_centred_db": -1.0}
    same = made_entry("fp32", "ort", 1, variant="tiny-patch16-224", size=224)
    same["parity"] |= {"sqnr_centred_db": None, "relative": 0.0}
    dead = made_entry("fp32", "ort", 32) | {"failed": "killed by signal 9", "processes": []}
    run = made_run(*entries, wrong, same, dead, **facts) | {"roofline": ROOFLINE}
    run["warnings"] = [
        "other processes used 34% of the CPUs meanwhile: stop them (top)",
        f"{entries[0]['name']}: its processes differ by 9%: more of them (--processes)",
    ]
    return run
