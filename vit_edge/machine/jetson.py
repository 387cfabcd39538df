"""A Jetson: whether this is one, and the power mode that decides its clocks. No root is needed."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vit_edge.machine.cgroups import ROOT, read

_COMMAND_TIMEOUT_S = 5.0  # nvpmodel answers at once


@dataclass(frozen=True)
class PowerMode:
    """The mode a board is in, and those it knows."""

    current: str | None  # its number; None: it could not be read
    names: Mapping[str, str]  # by number

    @property
    def text(self) -> str:
        """Describe it in a line."""
        known = ", ".join(f"{name} ({number})" for number, name in self.names.items())
        if self.current is None:
            return f"could not be read; there are {known}"
        return f"{self.names.get(self.current, 'mode')} ({self.current}) of {known}"


def is_jetson(root: Path = ROOT) -> bool:
    """True if this is one of NVIDIA's boards; the file remains in containers on them."""
    compatible = read(root / "proc/device-tree/compatible")
    return "nvidia,tegra" in compatible or (root / "etc/nv_tegra_release").is_file()


def power_mode(root: Path = ROOT) -> PowerMode | None:
    """Read the board's power mode, as nvpmodel knows it; None where there is no nvpmodel."""
    modes = dict(
        re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", read(root / "etc/nvpmodel.conf"))
    )
    return PowerMode(_query_mode(root) or _read_mode(root), modes) if modes else None


def _query_mode(root: Path) -> str | None:
    """By the command, whose last line is the number of the mode."""
    command = shutil.which("nvpmodel") or shutil.which("nvpmodel", path="/usr/sbin")
    if command is None or root != ROOT:
        return None
    try:
        done = subprocess.run(
            [command, "-q"], capture_output=True, text=True, errors="replace", check=False,
            stdin=subprocess.DEVNULL, timeout=_COMMAND_TIMEOUT_S,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    last = done.stdout.split()[-1:]
    return last[0] if done.returncode == 0 and last and last[0].isdecimal() else None


def _read_mode(root: Path) -> str | None:
    """By the file that nvpmodel keeps: "pmode:0001 fmode:quiet"."""
    match = re.search(r"pmode:(\d+)", read(root / "var/lib/nvpmodel/status"))
    return str(int(match[1])) if match else None
