"""NVIDIA's management library: what a GPU uses, how warm it is, and what slows it down.

Calls, structures and bits: nvml.h, NVML API Reference (docs.nvidia.com/deploy/nvml-api). Jetsons
have no such library, or (JetPack 7) one that answers "not supported" to all of this.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

LIBRARY = "libnvidia-ml.so.1"  # comes with the driver

_TEMPERATURE_GPU, _CLOCK_SM = 0, 1  # nvmlTemperatureSensors_t, nvmlClockType_t
_UNKNOWN_BYTES = 2**64 - 1  # NVML_VALUE_NOT_AVAILABLE
_MOST_PROCESSES = 256
# nvmlClocksEventReasons; idling and clocks that somebody asked for are none.
_REASONS = {
    0x04: "power limit",
    0x08: "hardware slowdown",
    0x20: "too warm (driver)",
    0x40: "too warm (hardware)",
    0x80: "power brake",
}


class _Process(ctypes.Structure):
    """nvmlProcessInfo_t, as ..._v3 fills it."""

    _fields_ = (
        ("pid", ctypes.c_uint),
        ("used_bytes", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )


class Device:
    """The GPU that this process computes on. What it does not tell is None."""

    def __init__(self, library: Any, handle: Any) -> None:
        """Use `opened`."""
        self._library = library
        self._handle = handle

    def energy_j(self) -> float | None:
        """Joules since the driver was loaded; from Volta on."""
        value = ctypes.c_ulonglong()
        known = self._get("nvmlDeviceGetTotalEnergyConsumption", ctypes.byref(value))
        return value.value / 1e3 if known else None

    def temperature_c(self) -> float | None:
        """Of the chip."""
        value = ctypes.c_uint()
        known = self._get("nvmlDeviceGetTemperature", _TEMPERATURE_GPU, ctypes.byref(value))
        return float(value.value) if known else None

    def clock_mhz(self) -> float | None:
        """Of the multiprocessors."""
        value = ctypes.c_uint()
        known = self._get("nvmlDeviceGetClockInfo", _CLOCK_SM, ctypes.byref(value))
        return float(value.value) if known else None

    def throttled(self) -> list[str]:
        """List what holds its clocks down now."""
        bits = ctypes.c_ulonglong()
        # the first name is the older one, which newer drivers still have
        if not self._get("nvmlDeviceGetCurrentClocksThrottleReasons", ctypes.byref(bits)):
            return []
        return [f"GPU: {text}" for bit, text in _REASONS.items() if bits.value & bit]

    def memory_bytes(self) -> int | None:
        """Return this process's share of its memory; None in a container, whose pids are others."""
        return next(
            (
                process.used_bytes
                for process in self._processes()
                if process.pid == os.getpid() and process.used_bytes != _UNKNOWN_BYTES
            ),
            None,
        )

    def ours(self) -> bool:
        """True if this process computes on it."""
        return any(process.pid == os.getpid() for process in self._processes())

    def _processes(self) -> list[_Process]:
        table, count = (_Process * _MOST_PROCESSES)(), ctypes.c_uint(_MOST_PROCESSES)
        call = "nvmlDeviceGetComputeRunningProcesses_v3"
        return list(table[: count.value]) if self._get(call, ctypes.byref(count), table) else []

    def _get(self, call: str, *arguments: Any) -> bool:
        """True if a call is there, and ended well."""
        function = getattr(self._library, call, None)
        return function is not None and function(self._handle, *arguments) == 0


def opened(library: Any = None) -> tuple[Device | None, str]:
    """Find the GPU that this process computes on.

    Args:
        library: In place of NVIDIA's, for tests.

    Returns:
        The GPU, or None with the reason.
    """
    if library is None:
        try:
            library = ctypes.CDLL(LIBRARY)
        except OSError as error:
            return None, f"no NVML: {error}"
    count = ctypes.c_uint()
    if (code := library.nvmlInit_v2()) != 0:
        return None, f"NVML does not start: error {code}"
    if library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0 or not count.value:
        return None, "NVML shows no GPU"
    devices = []
    for index in range(count.value):
        handle = ctypes.c_void_p()
        if library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) == 0:
            devices.append(Device(library, handle))
    used = [device for device in devices if device.ours()]
    if len(used) == 1 or len(devices) == 1:
        return (used or devices)[0], ""
    return None, f"NVML shows {len(devices)} GPUs, and {len(used)} of them as used by this process"
