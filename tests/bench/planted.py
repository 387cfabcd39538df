"""Entries of a run as `bench` keeps them, and folders as the kernel shows its sensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.report_runs import made_entry, made_run
from vit_edge import backends
from vit_edge.parity.intervals import wilson_interval


def tree(root: Path, files: dict[str, object]) -> Path:
    """Write files below a folder."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


def process(latencies: Any, *, own_mb: float = 50, all_mb: float = 60) -> dict[str, Any]:
    """One process of a configuration."""
    found = [float(value) for value in latencies]
    return {
        "latencies_ms": found, "seconds": sum(found) / 1e3, "images": len(found),
        "warmup_runs": 20, "stable": True, "enough": True,
        "cold_s": {"import": 0.1, "load": 0.2, "first_answer": 0.05},
        "memory_bytes": {"anonymous": own_mb * 1e6, "file": 1e6, "peak": all_mb * 1e6},
    }  # fmt: skip


def parity(right: int, images: int, **others: Any) -> dict[str, Any]:
    """What `session.parity` returns of so many right answers."""
    interval = list(wilson_interval(right, images))
    return {
        "problems": [], "images": images, "non_finite": 0, "reference_margin_median": 0.8,
        "top1_agreement": right / images, "top1_agreement_interval": interval,
        "sqnr_centred_db": 40.0, "relative": 1e-2,
    } | others  # fmt: skip


GOOD = parity(1998, 2000)


def entry(
    model: str, backend: str, level_ms: float, *, judged: Any = GOOD, batch: int = 1,
    spread: float = 0.002, options: Any = None, **memory: float,
) -> dict[str, Any]:  # fmt: skip
    """A configuration that was measured in five processes."""
    random = np.random.default_rng(round(1e3 * level_ms))
    levels = level_ms * np.exp(random.normal(0, spread, 5))
    return {
        "name": f"{model} {backend}", "backend": backend, "options": options or {},
        "batch": batch, "scenario": "single-stream", "stage": "model", "failed": None,
        "bundle": made_entry()["bundle"] | {"model_sha256": model}, "parity": judged,
        "queries_per_second": None,
        "facts": {"backend": backend, "runtime": backends.version(backend)},
        "processes": [process(level + random.exponential(0.01, 60), **memory) for level in levels],
    }  # fmt: skip


def run(*entries: Any, facts: Any, started: str = "2026-01-01") -> Any:
    """A run of these."""
    return made_run(*entries, started=started) | {"facts": facts}
