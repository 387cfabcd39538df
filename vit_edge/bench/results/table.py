"""A run as a table: what a configuration takes, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vit_edge.bench.results.percentiles import Estimate, percentiles, samples_needed
from vit_edge.bench.results.runs import Answers, Cold, Entry, Memory, Process, Run, Sensors

_HEADING = ("", "p50 ms", "95 % interval", "p90", "p95", "p99", "images/s", "start s", "own MB",
            "all MB", "answers")  # fmt: skip
_PERCENTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True)
class Summary:
    """The numbers of one configuration that was measured.

    Attributes:
        latency_ms: By percentile.
        mean_ms: Of all samples.
        deviation_ms: Of all samples.
        images_per_s: The middle of the processes.
        cold_s: The middle of the processes.
        memory_bytes: The largest.
        samples: How many.
        enough: The percentiles that have enough samples.
        energy_j_per_image: The middle of the processes; None where the device does not tell.
        gpu_memory_bytes: The largest; None where the device does not tell.
        temperature_c: The highest; None where the device does not tell.
        throttled: Reasons.
    """

    latency_ms: Mapping[str, Estimate]
    mean_ms: float
    deviation_ms: float
    images_per_s: float
    cold_s: Cold
    memory_bytes: Memory
    samples: int
    enough: tuple[str, ...]
    energy_j_per_image: float | None
    gpu_memory_bytes: float | None
    temperature_c: float | None
    throttled: tuple[str, ...]


def summary(entry: Entry) -> Summary:
    """Sum up a configuration that was measured."""
    processes = entry.processes
    every = np.concatenate([np.asarray(latencies, float) for latencies in entry.samples])
    rates = [process.images / process.seconds for process in processes if process.seconds]
    estimates = percentiles(entry.samples, [*_PERCENTILES.values()])
    sensors = [process.sensors or Sensors() for process in processes]
    energy_j = [one.energy_j_per_image for one in sensors if one.energy_j_per_image]
    gpu_bytes = [one.gpu_memory_bytes for one in sensors if one.gpu_memory_bytes]
    warmest_c = [end for one in sensors for _, end in one.temperature_c.values()]
    return Summary(
        latency_ms=dict(zip(_PERCENTILES, estimates, strict=True)),
        mean_ms=float(np.mean(every)),
        deviation_ms=float(np.std(every, ddof=1)) if len(every) > 1 else 0.0,
        images_per_s=float(np.median(rates)),
        cold_s=Cold(
            imports=_middle(processes, lambda process: process.cold_s.imports),
            load=_middle(processes, lambda process: process.cold_s.load),
            first_answer=_middle(processes, lambda process: process.cold_s.first_answer),
        ),
        memory_bytes=Memory(
            anonymous=max(process.memory_bytes.anonymous for process in processes),
            file=max(process.memory_bytes.file for process in processes),
            peak=max(process.memory_bytes.peak for process in processes),
        ),
        samples=len(every),
        enough=tuple(name for name, q in _PERCENTILES.items() if len(every) >= samples_needed(q)),
        energy_j_per_image=float(np.median(energy_j)) if energy_j else None,
        gpu_memory_bytes=max(gpu_bytes, default=None),
        temperature_c=max(warmest_c, default=None),
        throttled=entry.throttled,
    )


def _middle(processes: Sequence[Process], of: Callable[[Process], float]) -> float:
    return float(np.median([of(process) for process in processes]))


def rows(run: Run) -> list[tuple[str, ...]]:
    """A run as a table with its heading; percentiles with too few samples are left out."""
    return [_HEADING, *(_row(entry) for entry in run.configurations)]


def _row(entry: Entry) -> tuple[str, ...]:
    if not entry.measured:
        return (entry.name, *("-" for _ in _HEADING[2:]), entry.failed or "not measured")
    numbers = summary(entry)
    value, low, high = numbers.latency_ms["p50"]
    tails = (
        f"{numbers.latency_ms[name].value:.2f}" if name in numbers.enough else "-"
        for name in ("p90", "p95", "p99")
    )
    memory = numbers.memory_bytes
    return (
        entry.name, f"{value:.2f}", f"{low:.2f} to {high:.2f}", *tails,
        f"{numbers.images_per_s:.1f}", f"{numbers.cold_s.total:.2f}",
        f"{memory.anonymous / 1e6:.0f}", f"{memory.peak / 1e6:.0f}", answers(entry.parity),
    )  # fmt: skip


def answers(parity: Answers | None) -> str:
    """What the answers are worth, in a word; empty where that was not looked at."""
    if parity is None:
        return ""
    if parity.problems:
        return f"WRONG: {parity.problems[0]}"
    worth_db = parity.worth_db
    if worth_db is None:  # a model without a head: its features were compared
        return "hold"
    return "exact" if worth_db == math.inf else f"hold, {worth_db:.0f} dB"


def warnings(run: Run) -> Sequence[str]:
    """What speaks against believing a run."""
    lines = [f"warning: {text}" for text in run.warnings]
    if not run.complete:
        lines.append(f"INCOMPLETE: interrupted {run.interrupted or 'before it ended'}")
    return lines
