"""Probes: the board, its JetPack, and how its clocks are set. None of them needs root."""

from __future__ import annotations

import re
from pathlib import Path

from vit_edge.doctor.findings import Finding
from vit_edge.doctor.packages import apt_packages
from vit_edge.machine import cpus, jetson
from vit_edge.machine.cgroups import read

# Major versions, as NVIDIA's archives of Jetson Linux and JetPack pair them.
_JETPACK_OF_L4T = {"32": "4", "35": "5", "36": "6", "38": "7"}


def board(root: Path) -> Finding:
    """The board by its device tree; absent on a PC, which has none."""
    name = read(root / "proc/device-tree/model").strip("\0 \n")
    if not name:
        return Finding("absent", "no device tree: not a board", {"jetson": False})
    return Finding("ok", name, {"model": name, "jetson": jetson.is_jetson(root)})


def jetpack(root: Path) -> Finding:
    """The versions of Jetson Linux (L4T) and JetPack."""
    packages = apt_packages(root)
    l4t = _l4t_release(root) or packages.get("nvidia-l4t-core", "").partition("-")[0]
    version = packages.get("nvidia-jetpack", "").partition("+")[0]
    if not l4t and not version:
        if jetson.is_jetson(root):
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
    mode = jetson.power_mode(root)
    if mode is None:
        return Finding("absent", "no nvpmodel: not a Jetson", {})
    if mode.current is None:
        return Finding("trouble", mode.text, {"modes": mode.names})
    return Finding("ok", mode.text, {"mode": mode.current, "modes": mode.names})


def clocks(root: Path) -> Finding:
    """The CPU's frequency governors: timings are steady under "performance" only."""
    governors = cpus.governors(root)
    if not governors:
        return Finding("absent", "no frequency governor to be seen, as in a virtual machine")
    steady = "" if governors == ["performance"] else ": clocks follow the load, and so do timings"
    return Finding("ok", f"governor {', '.join(governors)}{steady}", {"governors": governors})


def _l4t_release(root: Path) -> str:
    """36.4.3 of "# R36 (release), REVISION: 4.3, GCID: ..."."""
    line = read(root / "etc/nv_tegra_release")
    match = re.search(r"R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)", line)
    return f"{match[1]}.{match[2]}" if match else ""
