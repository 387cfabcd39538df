"""Temperatures, clocks, and what the kernel or the hardware does to a machine that is too warm."""

from __future__ import annotations

from pathlib import Path

from vit_edge.machine.cgroups import ROOT, read, read_number
from vit_edge.machine.cpus import allowed_cpus

_CPUS = "sys/devices/system/cpu"
_ZONES = "sys/class/thermal"
_OFF_C = -40.0  # zones that are switched off show as less (Jetson: -256)
_HWMON_CHIPS = ("coretemp", "k10temp", "zenpower")
_WHOLE_CHIP = ("Package id", "Tctl", "Tdie")  # labels; coretemp has one for each core besides
_SLOW = 0.95  # of the clock that is allowed: less, when it is hot, is throttling
# Cooling devices that cool by making things slower; fans are not among them.
_SLOWING = ("cpufreq", "devfreq", "processor", "gpu", "intel_powerclamp")


def thermometers(root: Path = ROOT) -> dict[str, Path]:
    """Find what tells temperatures: name -> a file, in thousandths of a degree Celsius."""
    found: dict[str, Path] = {}
    for zone in sorted((root / _ZONES).glob("thermal_zone*")):
        _add(found, read(zone / "type").strip() or zone.name, zone / "temp")
    for chip in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        name = read(chip / "name").strip()
        if name not in _HWMON_CHIPS:
            continue
        for file in sorted(chip.glob("temp*_input")):
            label = read(file.with_name(file.name.replace("_input", "_label"))).strip()
            if not label or label.startswith(_WHOLE_CHIP):
                _add(found, f"{name} {label}".strip(), file)
    return {name: file for name, file in found.items() if celsius(file) is not None}


def celsius(file: Path) -> float | None:
    """Read a temperature; None where it is not to be had now."""
    number = read_number(file)
    found = None if number is None else number / 1e3
    return None if found is None or found < _OFF_C else found


def clocks_mhz(root: Path = ROOT) -> dict[str, float]:
    """The clocks now: of the fastest CPU that we may use, and of the GPU on a Jetson."""
    found = {}
    cpu = max(_frequencies_khz(root, "scaling_cur_freq"), default=0) / 1e3 or _cpuinfo_mhz(root)
    if cpu:
        found["cpu"] = cpu
    for device in sorted((root / "sys/class/devfreq").glob("*gpu*")):
        hertz = read_number(device / "cur_freq")
        if hertz:
            found.setdefault("gpu", hertz / 1e6)
    return found


def throttle_counts(root: Path = ROOT) -> dict[str, int]:
    """Counters of throttling: x86's by temperature, a Jetson's by current (Orin: soctherm_oc)."""
    found: dict[str, int] = {}
    for file in (root / _CPUS).glob("cpu[0-9]*/thermal_throttle/*_throttle_count"):
        name = file.name.partition("_")[0]  # core or package, summed over all CPUs
        key = f"the CPU was too warm ({name})"
        found[key] = found.get(key, 0) + (read_number(file) or 0)
    for file in (root / "sys/class/hwmon").glob("hwmon*/oc*_event_cnt"):
        key = f"over-current ({file.name.partition('_')[0]})"
        found[key] = found.get(key, 0) + (read_number(file) or 0)
    return found


def slowed(root: Path = ROOT) -> list[str]:
    """List what is slowed down now because of heat.

    A cooling device of the kernel's that slows something is on. Or a zone is at the temperature
    where that begins, and the CPU runs below the clock that its governor may use.
    """
    found = []
    for device in sorted((root / _ZONES).glob("cooling_device*")):
        kind = read(device / "type").strip()
        state = read_number(device / "cur_state")
        if state is not None and state > 0 and any(part in kind.lower() for part in _SLOWING):
            found.append(f"the kernel slows {kind} down")
    now = max(_frequencies_khz(root, "scaling_cur_freq"), default=0)
    if now < _SLOW * allowed_khz(root):
        found += [f"the CPU ran below its clock while {name} was hot" for name in _hot(root)]
    return found


def allowed_khz(root: Path = ROOT) -> int:
    """The clock that the governor may use, of the fastest CPU that we may use; 0: untold."""
    return max(_frequencies_khz(root, "scaling_max_freq"), default=0)


def _hot(root: Path) -> list[str]:
    """Zones that reached the temperature where the kernel begins to slow things down."""
    found = []
    for zone in sorted((root / _ZONES).glob("thermal_zone*")):
        temperature = celsius(zone / "temp")
        trips = [
            trip_c
            for kind in zone.glob("trip_point_*_type")
            if read(kind).strip() == "passive"
            and (trip_c := celsius(kind.with_name(kind.name.replace("_type", "_temp"))))
        ]
        if temperature is not None and trips and temperature >= min(trips):
            found.append(read(zone / "type").strip() or zone.name)
    return found


def _frequencies_khz(root: Path, name: str) -> list[int]:
    """One of cpufreq's files, of the CPUs that we may use."""
    files = (root / _CPUS / f"cpu{i}" / "cpufreq" / name for i in allowed_cpus() or [0])
    return [number for file in files if (number := read_number(file)) is not None]


def _cpuinfo_mhz(root: Path) -> float:
    """x86's own word where there is no cpufreq, as in a virtual machine."""
    lines = (line.partition(":") for line in read(root / "proc/cpuinfo").splitlines())
    found = (value.strip() for key, _, value in lines if key.strip() == "cpu MHz")
    return max((float(value) for value in found if _is_float(value)), default=0.0)


def _is_float(text: str) -> bool:
    return text.replace(".", "", 1).isdecimal()


def _add(found: dict[str, Path], name: str, file: Path) -> None:
    """Under its name; with a number where there are several of that name."""
    names = [name, *(f"{name} {number}" for number in range(2, len(found) + 3))]
    found[next(free for free in names if free not in found)] = file
