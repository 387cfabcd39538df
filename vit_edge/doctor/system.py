"""Probes: the machine, its memory and disks, Python, and vit_edge itself."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
from pathlib import Path

import vit_edge
from vit_edge.doctor.findings import Finding
from vit_edge.doctor.packages import pip_packages
from vit_edge.machine import cpus
from vit_edge.machine.cgroups import in_container, read
from vit_edge.machine.memory import memory, readable_size
from vit_edge.machine.userdirs import cache_dir, state_dir

LITTLE_DISK_BYTES = 1 << 30  # an engine of base is 90 to 350 MB, and is written beside the old one
LITTLE_MEMORY_BYTES = 128 << 20  # the smallest board served; base INT8 answers within it


def cpu(root: Path) -> Finding:
    """The processor and what it can do."""
    features = cpus.cpu_features(root)
    usable, there = cpus.usable_cpus(root), os.cpu_count() or 1
    share = f"{usable} CPUs" if usable == there else f"{usable} of {there} CPUs may be used"
    text = f"{cpus.cpu_model(root)}, {platform.machine()}, {share}"
    facts = {"model": cpus.cpu_model(root), "usable": usable, "architecture": platform.machine()}
    return Finding("ok", text, {**facts, "features": list(features)})


def features(root: Path) -> Finding:
    """The instruction sets that fast kernels need."""
    known = cpus.cpu_features(root)
    if not known:
        return Finding("trouble", "/proc/cpuinfo names none that is known")
    return Finding("ok", " ".join(known), {"features": list(known)})


def free_memory(root: Path) -> Finding:
    """Memory of the machine, and what is left within the cgroup's limit."""
    ram = memory(root)
    if ram.total_bytes is None or ram.available_bytes is None:
        return Finding("trouble", "/proc/meminfo does not say")
    words = [f"{readable_size(ram.available_bytes)} available of {readable_size(ram.total_bytes)}"]
    if ram.limit_bytes is not None:
        words.append(f"the cgroup allows {readable_size(ram.limit_bytes)}")
    if ram.swap_bytes:
        words.append(f"swap {readable_size(ram.swap_bytes)}")
    little = ram.available_bytes < LITTLE_MEMORY_BYTES
    if little:
        words.append("which is too little for most models")
    return Finding("trouble" if little else "ok", ", ".join(words), ram._asdict())


def disk(root: Path) -> Finding:
    """Free space where bundles, engines and our records go."""
    places = {"here": Path.cwd(), "engines of read-only bundles": cache_dir(), "state": state_dir()}
    facts: dict[str, int] = {}
    words, trouble, disks = [], False, set()
    for what, place in places.items():
        if place is None:
            words.append(f"{what}: no home directory, set HOME or XDG_CACHE_HOME, XDG_STATE_HOME")
            continue
        there = next(folder for folder in (place, *place.parents) if folder.exists())
        free = shutil.disk_usage(there).free
        writable = os.access(there, os.W_OK)
        trouble = trouble or free < LITTLE_DISK_BYTES
        if (there.stat().st_dev, writable) not in disks:  # the same disk is named once
            words.append(
                f"{what}: {readable_size(free)} free{'' if writable else ', not writable'}"
            )
        disks.add((there.stat().st_dev, writable))
        facts[what] = free
    return Finding("trouble" if trouble else "ok", "; ".join(words), {"free_bytes": facts})


def operating_system(root: Path) -> Finding:
    """The system, as /etc/os-release names it, and the kernel."""
    lines = read(root / "etc/os-release").splitlines()
    fields = dict(line.partition("=")[::2] for line in lines)
    name = fields.get("PRETTY_NAME", "").strip('"') or platform.system()
    text = f"{name}, kernel {platform.release()}{', in a container' if in_container(root) else ''}"
    return Finding("ok", text, {"name": name, "kernel": platform.release()})


def python(root: Path) -> Finding:
    """The interpreter, and whether an environment of its own."""
    version, venv = platform.python_version(), sys.prefix != sys.base_prefix
    text = f"{version}, {sys.executable or 'embedded'}, {'venv' if venv else 'no venv'}"
    return Finding("ok", text, {"version": version, "executable": sys.executable, "venv": venv})


def ourselves(root: Path) -> Finding:
    """vit_edge: which one is this."""
    where = Path(vit_edge.__file__).parent
    installed = pip_packages().get("vit-edge")
    text = f"{vit_edge.__version__}, {where}"
    if installed is None:
        text += ", not installed: run from a checkout"
    return Finding("ok", text, {"version": vit_edge.__version__, "path": str(where)})


def foundation(root: Path) -> Finding:
    """NumPy and Pillow, which everything needs: whether they import."""
    versions, broken = {}, []
    for name in ("numpy", "PIL"):
        try:
            versions[name] = str(importlib.import_module(name).__version__)
        except Exception as error:  # a build for another NumPy or CPU raises all sorts of things
            broken.append(f"{name} does not import ({error})")
    words = [f"{name} {version}" for name, version in versions.items()]
    return Finding("trouble" if broken else "ok", ", ".join(words + broken), versions)
