"""What a run must hold to be read; files come from other machines, and from other people."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from vit_edge.parity.targets import STATISTICS

_MOST = 1e18  # beyond any time, size or count
_Kinds = tuple[type, ...]
_NUMBER: _Kinds = (int, float)
_TEXT_OR_NULL: _Kinds = (str, type(None))
_RUN: dict[str, _Kinds] = {
    "title": (str,), "started": (str,), "complete": (bool,), "command": (list,),
    "warnings": (list,), "facts": (dict,), "configurations": (list,),
}  # fmt: skip
_ENTRY: dict[str, _Kinds] = {
    "name": (str,), "backend": (str,), "options": (dict,), "batch": (int,), "scenario": (str,),
    "stage": (str,), "queries_per_second": (int, float, type(None)), "bundle": (dict, type(None)),
    "facts": (dict,), "parity": (dict, type(None)), "failed": (str, type(None)),
    "processes": (list,),
}  # fmt: skip
_BUNDLE: dict[str, _Kinds] = {
    "name": (str,), "variant": (str,), "precision": (str,), "model_bytes": (int,),
    "model_sha256": _TEXT_OR_NULL, "image_hw": (list,),
}  # fmt: skip
_PROCESS: dict[str, _Kinds] = {
    "latencies_ms": (list,), "seconds": _NUMBER, "images": (int,), "cold_s": (dict,),
    "memory_bytes": (dict,),
}  # fmt: skip
_COLD = dict.fromkeys(("import", "load", "first_answer"), _NUMBER)
_MEMORY = dict.fromkeys(("anonymous", "file", "peak"), _NUMBER)
# What not every run, device or backend tells: of these kinds, or not there.
_PERHAPS: _Kinds = (int, float, type(None))
_PARITY: dict[str, _Kinds] = dict.fromkeys(  # nothing of logits where the model has no head
    ("images", "labelled", "non_finite", "reference_margin_median", *STATISTICS), _PERHAPS
)
_BUILT: dict[str, _Kinds] = dict.fromkeys(
    ("build_s", "engine_bytes", "download_bytes"), _PERHAPS
) | {"build_memory_bytes": (dict, type(None))}
_BUILD_MEMORY: dict[str, _Kinds] = {"peak": _PERHAPS}
_PEAK: dict[str, _Kinds] = {
    "backend": (str,), "kind": (str,), "per_second": _NUMBER, "size": (list,),
}  # fmt: skip
_SENSORS: dict[str, _Kinds] = {
    "energy_j_per_image": _PERHAPS, "temperature_c": (dict,), "throttled": (list,),
    "gpu_memory_bytes": _PERHAPS,
}  # fmt: skip


def problems(run: object) -> Iterator[str]:
    """What a run lacks, or holds as another kind than `bench` writes, each with its place."""
    if not isinstance(run, dict):
        yield f"is {_short(run)}, expected an object"
        return
    wrong = list(_of(run, _RUN, ""))
    yield from wrong
    if wrong:
        return
    yield from _of_facts(run["facts"], "facts: ")
    for key in ("command", "warnings"):
        yield from (f"{key} holds {v!r}" for v in run[key] if not isinstance(v, str))
    yield from _of_optional(run.get("sampling"), {"images": _TEXT_OR_NULL}, "sampling: ")
    yield from _of_roofline(run.get("roofline"), "roofline: ")
    for place, entry in enumerate(run["configurations"]):
        where = f"configuration {place + 1}: "
        wrong = [where + "is no object"] if not isinstance(entry, dict) else []
        wrong = wrong or list(_of(entry, _ENTRY, where))
        yield from wrong or _of_entry(entry, where)


def _of_facts(facts: Mapping[str, Any], where: str) -> Iterator[str]:
    """Facts and options are words or numbers."""
    for key, value in facts.items():
        if isinstance(value, (dict, list)):
            yield f"{where}{key} is {_short(value)}, expected text or a number"


def _of_roofline(roofline: Any, where: str) -> Iterator[str]:
    if roofline is None:
        return
    wrong = [] if isinstance(roofline, dict) else [f"{where}is no object"]
    wrong = wrong or list(_of(roofline, {"peaks": (list,), "limits": (dict,)}, where))
    yield from wrong
    if wrong:
        return
    limits = roofline["limits"]
    yield from _of(limits, dict.fromkeys(limits, _PERHAPS), f"{where}limits: ")
    yield from (f"{where}limits: {k} is {v!r}" for k, v in limits.items() if v == 0)
    for place, peak in enumerate(roofline["peaks"]):
        here = f"{where}peak {place + 1}: "
        yield from _of(peak, _PEAK, here) if isinstance(peak, dict) else [here + "is no object"]


def _of_entry(entry: Mapping[str, Any], where: str) -> Iterator[str]:
    if entry["bundle"] is None and entry["failed"] is None:
        yield f"{where}has no bundle, and did not fail"
    for key in ("facts", "options"):
        yield from _of_facts(entry[key], f"{where}{key}: ")
    if entry["bundle"] is not None:
        wrong = list(_of(entry["bundle"], _BUNDLE, f"{where}bundle: "))
        wrong += _of_optional(entry["bundle"], {"multiply_adds": _PERHAPS}, f"{where}bundle: ")
        yield from wrong
        size = [] if wrong else entry["bundle"]["image_hw"]
        if not wrong and not (
            len(size) == 2 and all(isinstance(side, int) and 0 < side < 1e6 for side in size)
        ):
            yield f"{where}bundle: image_hw is {size!r}, expected height and width in pixels"
    if entry["parity"] is not None:
        yield from _of_parity(entry["parity"], f"{where}parity: ")
    built = entry.get("built")
    wrong = list(_of_optional(built, _BUILT, f"{where}built: "))
    yield from wrong
    if built is not None and not wrong:
        memory = built.get("build_memory_bytes")
        yield from _of_optional(memory, _BUILD_MEMORY, f"{where}build_memory_bytes: ")
    for place, process in enumerate(entry["processes"]):
        yield from _of_process(process, f"{where}process {place + 1}: ")


def _of_parity(parity: Mapping[str, Any], where: str) -> Iterator[str]:
    """What targets are judged by, too: of each rate its interval and what it was counted on."""
    wrong = [*_of(parity, {"problems": (list,)}, where), *_of_optional(parity, _PARITY, where)]
    yield from wrong
    if wrong:
        return
    yield from (f"{where}problems holds {v!r}" for v in parity["problems"] if type(v) is not str)
    for name, statistic in STATISTICS.items():
        if statistic.interval is None or parity.get(name) is None:
            continue
        if not _is_pair(ends := parity.get(statistic.interval)):
            yield f"{where}{statistic.interval} is {_short(ends)}, expected two numbers"
        yield from _of(parity, {statistic.trials: _NUMBER}, where)


def _of_process(process: Any, where: str) -> Iterator[str]:
    wrong = [f"{where}is no object"] if not isinstance(process, dict) else []
    wrong = wrong or list(_of(process, _PROCESS, where))
    wrong = wrong or [
        *_of(process["cold_s"], _COLD, f"{where}cold_s: "),
        *_of(process["memory_bytes"], _MEMORY, f"{where}memory_bytes: "),
    ]
    wrong = wrong or list(_of_sensors(process.get("sensors"), f"{where}sensors: "))
    yield from wrong
    if wrong:
        return
    try:
        latencies = np.asarray(process["latencies_ms"], dtype=float)
    except (TypeError, ValueError, OverflowError):
        latencies = np.array([math.nan])
    if latencies.ndim != 1 or not np.all((latencies > 0) & (latencies < _MOST)):
        yield f"{where}latencies_ms holds what is no positive number"
    if latencies.size and not process["seconds"] > 0:
        yield f"{where}seconds is {process['seconds']!r} although there are latencies"


def _of_sensors(sensors: Any, where: str) -> Iterator[str]:
    wrong = list(_of_optional(sensors, _SENSORS, where))
    yield from wrong
    if wrong or sensors is None:
        return
    for name, ends in sensors.get("temperature_c", {}).items():
        if not _is_pair(ends):
            yield f"{where}temperature_c of {name} is {_short(ends)}, expected two numbers"
    if not all(isinstance(reason, str) for reason in sensors.get("throttled", [])):
        yield f"{where}throttled is {_short(sensors['throttled'])}, expected reasons"


def _of_optional(value: Any, kinds: Mapping[str, _Kinds], where: str) -> Iterator[str]:
    """What of a value that need not be there, nor need any key of it, is of another kind."""
    if isinstance(value, dict):
        yield from _of(value, {key: kind for key, kind in kinds.items() if key in value}, where)
    elif value is not None:
        yield f"{where}is {_short(value)}, expected an object"


def _of(value: Mapping[str, Any], kinds: Mapping[str, _Kinds], where: str) -> Iterator[str]:
    """What a value lacks, or holds as another kind or out of any measure."""
    for key, expected in kinds.items():
        found = value.get(key)
        if key not in value:
            yield f"{where}lacks {key!r}"
        elif not isinstance(found, expected) or (type(found) is bool and bool not in expected):
            names = " or ".join(
                "null" if kind is type(None) else kind.__name__ for kind in expected
            )
            yield f"{where}{key} is {_short(found)}, expected {names}"
        elif isinstance(found, (int, float)) and not abs(found) < _MOST:  # NaN is not, either
            yield f"{where}{key} is {_short(found)}"


def _is_pair(ends: Any) -> bool:
    numbers = isinstance(ends, list) and all(type(end) in _NUMBER for end in ends)
    return numbers and len(ends) == 2 and all(abs(end) < 1e4 for end in ends)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
