"""A run as a table: what a configuration takes, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vit_edge.bench.results.compare import measured
from vit_edge.bench.results.percentiles import Estimate, percentiles, samples_needed
from vit_edge.bench.results.results import samples

_HEADING = ("", "p50 ms", "95 % interval", "p90", "p95", "p99", "images/s", "start s", "own MB",
            "all MB", "answers")  # fmt: skip


def summary(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of one configuration that was measured.

    Returns:
        latency_ms: by percentile, [value, low, high]; mean_ms, deviation_ms, images_per_s,
        cold_s (import, load, first_answer; the middle of the processes), memory_bytes (the
        largest), samples, and enough: the percentiles that have enough samples; where the device
        tells, else None or empty: energy_j_per_image, gpu_memory_bytes (the largest),
        temperature_c (the highest), throttled.
    """
    processes = samples(entry)
    every = np.concatenate([np.asarray(latencies, float) for latencies in processes])
    rates = [
        process["images"] / process["seconds"]
        for process in entry["processes"]
        if process["seconds"]
    ]
    kept = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
    return {
        "latency_ms": {
            name: list(found)
            for name, found in zip(kept, percentiles(processes, [*kept.values()]), strict=True)
        },
        "mean_ms": float(np.mean(every)),
        "deviation_ms": float(np.std(every, ddof=1)) if len(every) > 1 else 0.0,
        "images_per_s": float(np.median(rates)),
        "cold_s": {
            part: float(np.median([process["cold_s"][part] for process in entry["processes"]]))
            for part in ("import", "load", "first_answer")
        },
        "memory_bytes": {
            kind: max(process["memory_bytes"][kind] for process in entry["processes"])
            for kind in ("anonymous", "file", "peak")
        },
        "samples": len(every),
        "enough": [name for name, q in kept.items() if len(every) >= samples_needed(q)],
    } | _sensed([process.get("sensors") or {} for process in entry["processes"]])


def _sensed(sensors: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the sensors of a configuration's processes say together."""
    energy_j = [one["energy_j_per_image"] for one in sensors if one.get("energy_j_per_image")]
    gpu_bytes = [one["gpu_memory_bytes"] for one in sensors if one.get("gpu_memory_bytes")]
    warmest_c = [end for one in sensors for _, end in one.get("temperature_c", {}).values()]
    throttled = [reason for one in sensors for reason in one.get("throttled", [])]
    return {
        "energy_j_per_image": float(np.median(energy_j)) if energy_j else None,
        "gpu_memory_bytes": max(gpu_bytes, default=None),
        "temperature_c": max(warmest_c, default=None),
        "throttled": list(dict.fromkeys(throttled)),
    }


def rows(run: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A run as a table with its heading; percentiles with too few samples are left out."""
    return [_HEADING, *(_row(entry) for entry in run["configurations"])]


def _row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    if not measured(entry):
        return (entry["name"], *("-" for _ in _HEADING[2:]), entry["failed"] or "not measured")
    found = summary(entry)
    value, low, high = Estimate(*found["latency_ms"]["p50"])
    tails = (
        f"{found['latency_ms'][name][0]:.2f}" if name in found["enough"] else "-"
        for name in ("p90", "p95", "p99")
    )
    memory = found["memory_bytes"]
    return (
        entry["name"], f"{value:.2f}", f"{low:.2f} to {high:.2f}", *tails,
        f"{found['images_per_s']:.1f}", f"{sum(found['cold_s'].values()):.2f}",
        f"{memory['anonymous'] / 1e6:.0f}", f"{memory['peak'] / 1e6:.0f}",
        answers(entry["parity"]),
    )  # fmt: skip


def answers(parity: Mapping[str, Any] | None) -> str:
    """What the answers are worth, in a word; empty where that was not looked at."""
    if parity is None:
        return ""
    if parity["problems"]:
        return f"WRONG: {parity['problems'][0]}"
    if "sqnr_centred_db" not in parity:  # a model without a head: its features were compared
        return "hold"
    noise = parity["sqnr_centred_db"]
    if noise is None:  # without noise; or there are no logits to look at
        return "exact" if parity["relative"] == 0 else "hold"
    return f"hold, {noise:.0f} dB"


def warnings(run: Mapping[str, Any]) -> Sequence[str]:
    """What speaks against believing a run."""
    told = [f"warning: {text}" for text in run["warnings"]]
    if not run["complete"]:
        told.append(f"INCOMPLETE: interrupted {run.get('interrupted', 'before it ended')}")
    return told
