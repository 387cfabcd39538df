"""What the device tells while a process is measured: energy, temperature, clocks, throttling.

A thread of the measured process looks at the meters ten times a second, and is not started where
there are none. It sleeps nearly all the time: benchmarks/bench_overhead.py measures what it costs.
What is absent costs nothing and is no error.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

from vit_edge.bench.device import power, thermal
from vit_edge.machine import nvml
from vit_edge.machine.cgroups import ROOT, read

_TICK_S = 0.1  # the INA3221 of a Jetson averages over less; RAPL wraps after minutes
_TICKS_OF_HEAT = 10  # what changes slowly is looked at each second


class Watch:
    """Looks at every sensor from `with` on until its end; then tells."""

    def __init__(self, root: Path = ROOT, library: Any = None) -> None:
        """Find the sensors.

        Args:
            root: Where proc/ and sys/ are.
            library: In place of NVIDIA's NVML, for tests.
        """
        self._root = root
        self._meters, self._absent = power.meters(root)
        self._files = thermal.thermometers(root)
        self._gpu = self._opened_gpu(library)
        if self._gpu is not None and self._gpu.energy_j() is not None:
            self._meters.append(power.Counter("GPU", self._gpu.energy_j))
        self._temperature_c: dict[str, list[float]] = {}  # start, max
        self._clocks: list[dict[str, float]] = []  # start, end
        self._throttled: dict[str, None] = {}  # in the order seen
        self._counts: dict[str, int] = {}
        self._gpu_bytes: int | None = None
        self._started_s = self._seconds = 0.0
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Watch:
        self._clocks.append(self._clocks_mhz())
        self._counts = thermal.throttle_counts(self._root)
        self._look_at_heat()
        if self._meters or self._files or self._gpu is not None:
            self._thread = threading.Thread(target=self._sample, daemon=True)
        self._started_s = time.perf_counter()
        self.look(heat=False)
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._clocks.append(self._clocks_mhz())  # first, before they fall
        self._done.set()
        if self._thread is not None:
            self._thread.join()
        self.look(heat=True)
        self._seconds = time.perf_counter() - self._started_s
        for what, count in thermal.throttle_counts(self._root).items():
            if count > self._counts.get(what, 0):
                self._throttled[what] = None

    def look(self, *, heat: bool) -> None:
        """Look at the meters once, and at what changes more slowly if asked to."""
        for meter in self._meters:
            meter.look(time.perf_counter())
        if heat:
            self._look_at_heat()

    def readings(self, images: int) -> dict[str, Any]:
        """Tell what was seen, ready for JSON.

        Args:
            images: That were answered meanwhile.

        Returns:
            The fields of runs.Sensors: energy_j_per_image and power_w are of all meters together,
            None without any; gpu_memory_bytes is of this process.
        """
        energy_j = {meter.name: meter.joules for meter in self._meters if not meter.failed}
        failed = {meter.name: "it failed meanwhile" for meter in self._meters if meter.failed}
        total_j = sum(energy_j.values()) if energy_j and not failed else None
        start, end = self._clocks
        return {
            "energy_j_per_image": None if total_j is None or not images else total_j / images,
            "power_w": None if total_j is None else total_j / self._seconds,
            "energy_j": energy_j,
            "temperature_c": self._temperature_c,
            "clocks_mhz": {name: [start[name], end[name]] for name in start if name in end},
            "throttled": list(self._throttled),
            "gpu_memory_bytes": self._gpu_bytes,
            "absent": self._absent | failed,
        }

    def _opened_gpu(self, library: Any) -> nvml.Device | None:
        """The GPU, if this process computes on one: NVML itself takes memory and time."""
        if library is None and "libcuda.so" not in read(self._root / "proc/self/maps"):
            return None
        found, reason = nvml.opened(library)
        if found is None:
            self._absent["GPU"] = reason
        return found

    def _sample(self) -> None:
        ticks = 0
        while not self._done.wait(_TICK_S):
            ticks += 1
            self.look(heat=ticks % _TICKS_OF_HEAT == 0)

    def _look_at_heat(self) -> None:
        now_c = {name: thermal.celsius(file) for name, file in self._files.items()}
        reasons = thermal.slowed(self._root)
        if self._gpu is not None:
            now_c["GPU"] = self._gpu.temperature_c()
            reasons += self._gpu.throttled()
            used = self._gpu.memory_bytes()
            self._gpu_bytes = max(used or 0, self._gpu_bytes or 0) or None
        for name, value in now_c.items():
            if value is not None:
                seen = self._temperature_c.setdefault(name, [value, value])
                seen[1] = max(seen[1], value)
        self._throttled.update(dict.fromkeys(reasons))

    def _clocks_mhz(self) -> dict[str, float]:
        found = thermal.clocks_mhz(self._root)
        clock = None if self._gpu is None else self._gpu.clock_mhz()
        return found if clock is None else found | {"gpu": clock}
