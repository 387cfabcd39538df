"""The largest rates of products and of reading memory that the runtimes' own kernels reach here.

Float32, bfloat16 and int8 products over several sizes, each runtime in a process of its own. The
name is that of Williams, Waterman and Patterson, "Roofline" (doi:10.1145/1498765.1498785).
"""

from __future__ import annotations

import datetime
import math
import os
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from roofline import kernels
from roofline.runtimes import KINDS, RUNTIMES, Kind, Runtime
from vit_edge import backends
from vit_edge.bench.device import facts, noise
from vit_edge.bench.results import runs
from vit_edge.bench.results.runs import Run
from vit_edge.bench.run import scenarios
from vit_edge.errors import UsageError
from vit_edge.machine import cgroups, child

# Rows of x, columns of x, columns of w: squares, and the Linears of ViT-B/16 for 1 and 8 images.
SIZES = (
    (512, 512, 512), (1024, 1024, 1024), (2048, 2048, 2048),
    (197, 768, 3072), (1576, 768, 3072), (1576, 3072, 768),
)  # fmt: skip
_CACHES = 4  # STREAM: four times the last-level caches (www.cs.virginia.edu/stream/ref.html)
_LEAST_READ_BYTES = 64 << 20
_MEMORY_SHARE = 16  # a runtime may hold what is read twice
_ROWS = 4096  # of what is read: enough for every core, and long rows
_MOST_S = 60.0  # of one size
_TIMEOUT_S = 1200.0  # of one runtime


class Peak(NamedTuple):
    """The best that one runtime reached of one kind."""

    backend: str
    kind: Kind
    per_second: float  # multiply-adds; bytes where the kind is "read"
    size: tuple[int, ...]  # of the product, or of what was read
    latencies_ms: tuple[float, ...]  # of this size


class Effort(NamedTuple):
    """How long it is measured."""

    at_least_s: float = 0.5  # of each kind, size and runtime
    samples: int = 10
    sizes: Sequence[tuple[int, int, int]] = SIZES
    read_bytes: int | None = None  # None: by the caches


def measure(names: Sequence[str], effort: Effort, command: Sequence[str] = ()) -> Run:
    """Measure this machine.

    Args:
        names: Of backends: ort, openvino.
        effort: How long.
        command: The command line, for the facts.

    Returns:
        A run of results, without configurations; `roofline` holds `peaks`, one for each backend and
        kind, and `limits`, the best of each kind, None where no runtime has it.

    Raises:
        UsageError: A backend that cannot be measured so.
        BackendError: One that is not installed.
        ResourceError: Its process died.
    """
    for name in names:
        if name not in RUNTIMES:
            raise UsageError(f"no roofline by {name!r}; there is: {', '.join(RUNTIMES)}")
        backends.module(name)  # or the error that says what to install
    started, before = _now(), noise.ticks()
    found: list[Peak] = []
    for name in names:
        found += child.call_in_child("roofline.peaks:peaks", name, effort, timeout_s=_TIMEOUT_S)
    return Run(
        title="roofline",
        started=started,
        ended=_now(),
        complete=True,
        command=tuple(command),
        facts=facts.run_facts(),
        warnings=tuple(noise.machine_warnings(before, noise.ticks())),
        configurations=(),
        roofline=runs.Roofline(
            peaks=tuple(runs.Peak(**peak._asdict()) for peak in found),
            limits={kind: _largest(found, kind) for kind in KINDS},
            runtimes={name: backends.version(name) for name in names},
        ),
    )


def peaks(name: str, effort: Effort) -> list[Peak]:
    """The best of each kind that one runtime has, over the sizes; in this process."""
    runtime = RUNTIMES[name]()
    found = []
    for kind in runtime.kinds:
        sizes: Sequence[tuple[int, ...]] = [_read_size(effort)] if kind == "read" else effort.sizes
        found.append(max((_peak(name, runtime, kind, size, effort) for size in sizes), key=_rate))
    return found


def _peak(name: str, runtime: Runtime, kind: Kind, size: tuple[int, ...], effort: Effort) -> Peak:
    """One size of one kind, by the median."""
    work = 4 * math.prod(size) if kind == "read" else math.prod(size)
    query = runtime.query(_model(kind, size), kind, (size[0], size[1]))
    limits = scenarios.Limits(effort.samples, effort.at_least_s, _MOST_S)
    taken = scenarios.one_after_another(query, 1, limits).latencies_ms
    rounded = tuple(round(latency, 4) for latency in taken)
    return Peak(name, kind, 1e3 * work / statistics.median(taken), size, rounded)


def _model(kind: Kind, size: tuple[int, ...]) -> bytes:
    """The ONNX file of one kind."""
    if kind == "read":
        return kernels.largest(*size)
    return kernels.quantized_product(*size) if kind == "int8" else kernels.product(*size)


def _rate(peak: Peak) -> float:
    return peak.per_second


def _largest(found: Sequence[Peak], kind: Kind) -> float | None:
    return max((peak.per_second for peak in found if peak.kind == kind), default=None)


def _read_size(effort: Effort) -> tuple[int, int]:
    """Rows and columns of float32: beyond every cache, and a small part of the memory."""
    wanted = effort.read_bytes
    if wanted is None:
        folder = cgroups.ROOT / "sys/devices/system/cpu/cpu0/cache"
        caches = [_size_bytes(cgroups.read(path)) for path in folder.glob("index*/size")]
        most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // _MEMORY_SHARE
        wanted = min(most, max(_LEAST_READ_BYTES, _CACHES * max(caches, default=0)))
    return _ROWS, max(1, wanted // (4 * _ROWS))


def _size_bytes(text: str) -> int:
    """Bytes of sysfs's "32768K"."""
    text = text.strip()
    units = {"K": 1 << 10, "M": 1 << 20}
    return int(text[:-1]) * units[text[-1]] if text[-1:] in units else int(text)


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
