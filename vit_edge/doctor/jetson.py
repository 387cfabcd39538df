"""Probes: the board, its JetPack, and how its clocks are set. None of them needs root."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from vit_edge.doctor.findings import Finding
from vit_edge.doctor.packages import apt_packages
from vit_edge.machine.cgroups import ROOT, read

# Major versions, as NVIDIA's archives of Jetson Linux and JetPack pair them.
_JETPACK_OF_L4T = {"32": "4", "35": "5", "36": "6", "38": "7"}
_COMMAND_TIMEOUT_S = 5.0  # nvpmodel answers at once


def board(root: Path) -> Finding:
    """The board by its device tree; absent on a PC, which has none."""
    name = read(root / "proc/device-tree/model").strip("\0 \n")
    if not name:
        return Finding("absent", "no device tree: not a board", {"jetson": False})
    return Finding("ok", name, {"model": name, "jetson": is_jetson(root)})


def is_jetson(root: Path) -> bool:
    """True if this is one of NVIDIA's boards; the file remains in containers on them."""
    compatible = read(root / "proc/device-tree/compatible")
    return "nvidia,tegra" in compatible or (root / "etc/nv_tegra_release").is_file()


def jetpack(root: Path) -> Finding:
    """The versions of Jetson Linux (L4T) and JetPack."""
    packages = apt_packages(root)
    l4t = _l4t_release(root) or packages.get("nvidia-l4t-core", "").partition("-")[0]
    version = packages.get("nvidia-jetpack", "").partition("+")[0]
    if not l4t and not version:
        if is_jetson(root):
            return Finding("trouble", "a Jetson without a word about its Jetson Linux (L4T)")
        return Finding("absent", "not a Jetson")
    facts = {"l4t": l4t or None, "jetpack": version or None}
    if version:
        return Finding(
            "ok", f"JetPack {version}, Jetson Linux {l4t or 'of unknown version'}", facts
        )
    major = _JETPACK_OF_L4T.get(l4t.partition(".")[0])
    text = f"Jetson Linux {l4t}" + (f", which is JetPack {major}" if major else "")
    return Finding("ok", f"{text}; the package nvidia-jetpack is not installed", facts)


def power_mode(root: Path) -> Finding:
    """The board's power mode, by nvpmodel; it decides the clocks, and how many CPUs there are."""
    modes = dict(
        re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", read(root / "etc/nvpmodel.conf"))
    )
    if not modes:
        return Finding("absent", "no nvpmodel: not a Jetson", {})
    current = _query_mode(root) or _read_mode(root)
    if current is None:
        return Finding(
            "trouble", f"could not be read; there are {_listed(modes)}", {"modes": modes}
        )
    text = f"{modes.get(current, 'mode')} ({current}) of {_listed(modes)}"
    return Finding("ok", text, {"mode": current, "modes": modes})


def clocks(root: Path) -> Finding:
    """The CPU's frequency governors: timings are steady under "performance" only."""
    files = root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor")
    governors = sorted({text for file in files if (text := read(file).strip())})
    if not governors:
        return Finding("absent", "no frequency governor to be seen, as in a virtual machine")
    steady = "" if governors == ["performance"] else ": clocks follow the load, and so do timings"
    return Finding("ok", f"governor {', '.join(governors)}{steady}", {"governors": governors})


def _l4t_release(root: Path) -> str:
    """36.4.3 of "# R36 (release), REVISION: 4.3, GCID: ..."."""
    line = read(root / "etc/nv_tegra_release")
    match = re.search(r"R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)", line)
    return f"{match[1]}.{match[2]}" if match else ""


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


def _listed(modes: dict[str, str]) -> str:
    return ", ".join(f"{name} ({number})" for number, name in modes.items())
