"""Energy: what the device's own meters count, or what follows from the power that they show."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from vit_edge.machine.cgroups import ROOT, read, read_number


class Meter(Protocol):
    """Adds up joules from its first look on."""

    name: str
    joules: float
    failed: bool  # its last look: what was used since the one before is not among its joules

    def look(self, now_s: float) -> None:
        """Read it. A counter that wraps around, and power, must be looked at now and then."""
        ...


class Counter:
    """A counter of energy, such as RAPL's."""

    def __init__(self, name: str, read_j: Callable[[], float | None], wraps_j: float = 0.0) -> None:
        """Read nothing yet.

        Args:
            name: What it measures.
            read_j: Its joules since some time; None if it cannot be read.
            wraps_j: Where it starts from 0 again, if it does.
        """
        self.name = name
        self.joules = 0.0
        self.failed = False
        self._read_j, self._wraps_j = read_j, wraps_j
        self._last_j: float | None = None

    def look(self, now_s: float) -> None:
        """See Meter."""
        found_j = self._read_j()
        self.failed = found_j is None
        if found_j is None:
            return
        if self._last_j is not None:
            step_j = found_j - self._last_j
            self.joules += step_j if step_j >= 0 else step_j + self._wraps_j
        self._last_j = found_j


class Rails:
    """Power that is looked at now and then; what is between two looks is taken as a line."""

    def __init__(self, name: str, read_w: Callable[[], float | None]) -> None:
        """Read nothing yet.

        Args:
            name: Of the rails.
            read_w: Their watts; None if one cannot be read.
        """
        self.name = name
        self.joules = 0.0
        self.failed = False
        self._read_w = read_w
        self._last: tuple[float, float] | None = None

    def look(self, now_s: float) -> None:
        """See Meter."""
        found_w = self._read_w()
        self.failed = found_w is None
        if found_w is None:
            return
        if self._last is not None:
            last_s, last_w = self._last
            self.joules += (now_s - last_s) * (last_w + found_w) / 2
        self._last = (now_s, found_w)


def meters(root: Path = ROOT) -> tuple[list[Meter], dict[str, str]]:
    """Find the meters of the processor or of the board.

    Args:
        root: Where sys/ is.

    Returns:
        Those that can be read; and what is there but cannot, with its reason.
    """
    rails = _rails(root)
    if rails is not None:  # of the whole board, the processor in it
        return [rails], {}
    return _rapl(root)


def _rapl(root: Path) -> tuple[list[Meter], dict[str, str]]:
    """RAPL's zones of whole packages, and of their memory, which is none of theirs.

    https://docs.kernel.org/power/powercap/powercap.html
    """
    found: list[Meter] = []
    absent = {}
    for zone in sorted((root / "sys/class/powercap").glob("intel-rapl:*")):
        name = read(zone / "name").strip()
        if not name.startswith("package") and name != "dram":
            continue
        if name == "dram":  # each package has one
            name = f"{read(zone.parent / zone.name.rpartition(':')[0] / 'name').strip()} dram"
        file = zone / "energy_uj"
        if read_number(file) is None:
            absent[f"RAPL {name}"] = f"{file} is for root alone: run as root, or chmod a+r it"
            continue
        wraps = read_number(zone / "max_energy_range_uj")
        found.append(
            Counter(
                f"RAPL {name}",
                lambda file=file: _scaled(read_number(file), 1e-6),  # type: ignore[misc]
                _scaled(wraps, 1e-6) or 0.0,
            )
        )
    return found, absent


# Monitors of a Jetson: NVIDIA, Jetson Linux Developer Guide, "Power Monitor"; the INA238 is Thor's.
_MONITORS = ("ina3221", "ina238")
_TOTALS = ("VDD_IN", "VIN", "POM_5V_IN")  # what the whole board draws: the others are parts of it
# a part of VIN_SYS_5V0 on AGX Orin, as is said there
_PARTS = ("NC", "VDDQ_VDD2_1V8AO", "")


def _rails(root: Path) -> Rails | None:
    """A Jetson's rails: the one that feeds the board, or else the sum of all."""
    by_label: dict[str, Callable[[], float | None]] = {}
    for monitor in _MONITORS:
        for folder in sorted(root.glob(f"sys/bus/i2c/drivers/{monitor}*/*/hwmon/hwmon*")):
            for index in range(1, 4):  # channels 1 to 3; a 7th is the sum of shunts
                label = read(folder / f"in{index}_label").strip()
                if label not in _PARTS:
                    by_label[label] = _watts(folder, index)
            if (folder / "power1_input").exists():
                by_label.setdefault("VIN", _watts(folder, 1))
    total = [label for label in _TOTALS if label in by_label][:1]
    taken = total or sorted(by_label)
    if not taken:
        return None

    def read_w() -> float | None:
        watts = [by_label[label]() for label in taken]
        known = [value for value in watts if value is not None]
        return sum(known) if len(known) == len(watts) else None

    return Rails(" + ".join(taken), read_w)


def _watts(folder: Path, index: int) -> Callable[[], float | None]:
    """Power in uW, or volts in mV by amperes in mA: hwmon's units, kernel hwmon/sysfs-interface."""
    power, volts, amperes = (folder / f"{kind}{index}_input" for kind in ("power", "in", "curr"))
    if power.exists():
        return lambda: _scaled(read_number(power), 1e-6)

    def read_w() -> float | None:
        millivolts, milliamperes = read_number(volts), read_number(amperes)
        if millivolts is None or milliamperes is None:
            return None
        return millivolts * milliamperes * 1e-6

    return read_w


def _scaled(value: int | None, by: float) -> float | None:
    return None if value is None else value * by
