"""What a run was measured on: the machine, what of it we may use, and the software.

Only what numbers depend on. Whatever is absent is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vit_edge import __version__
from vit_edge.bench.device import noise, thermal
from vit_edge.errors import ResourceError
from vit_edge.machine import child, cuda, facts, jetson
from vit_edge.machine.cgroups import ROOT, in_container, read
from vit_edge.machine.cpus import allowed_cpus, governors, usable_cpus
from vit_edge.machine.memory import memory

Facts = dict[str, str]

_GPU_TIMEOUT_S = 60.0  # a driver that must first be loaded takes seconds


def run_facts(root: Path = ROOT) -> Facts:
    """Describe this machine, ready to be shown and compared.

    Args:
        root: Where proc/ and sys/ are.

    Returns:
        Always: cpu, cpus, features, memory, system, python, numpy, vit_edge, affinity,
        memory_limit, container. Where the machine tells: smt, clock_max, governor, cpu_quota, load,
        power, driver, gpu.
    """
    import numpy as np

    found = facts.machine_facts() | noise.usable()
    found |= {"numpy": np.__version__, "vit_edge": __version__}
    readers: dict[str, Callable[[Path], str | None]] = {
        "smt": _smt,
        "clock_max": _clock_max,
        "governor": _governor,
        "cpu_quota": _cpu_quota,
        "load": _load,
        "memory_limit": _memory_limit,
        "container": _container,
        "power": _power,
        "driver": _driver,
    }
    known = ((name, reader(root)) for name, reader in readers.items())
    return found | {name: text for name, text in known if text} | _gpu(root)


def _memory_limit(root: Path) -> str:
    """The least one of our cgroups."""
    limit_bytes = memory(root).limit_bytes
    return "none" if limit_bytes is None else f"{limit_bytes / 1e6:.0f} MB"


def _smt(root: Path) -> str | None:
    """Whether two of the CPUs may be one core."""
    return {"0": "off", "1": "on"}.get(read(root / "sys/devices/system/cpu/smt/active").strip())


def _clock_max(root: Path) -> str | None:
    """The clock that the governor may use, of the fastest CPU that we may use."""
    limit_khz = thermal.allowed_khz(root)
    return f"{limit_khz / 1e3:.0f} MHz" if limit_khz else None


def _governor(root: Path) -> str | None:
    return ", ".join(governors(root)) or None


def _cpu_quota(root: Path) -> str | None:
    """Of the cgroups, where it is less than the CPUs that we may use otherwise."""
    allowed = len(allowed_cpus())
    usable = usable_cpus(root)
    return None if not allowed or usable >= allowed else f"{usable} CPUs"


def _load(root: Path) -> str | None:
    """The load average of the last minute."""
    return read(root / "proc/loadavg").partition(" ")[0] or None


def _container(root: Path) -> str:
    return "yes" if in_container(root) else "no"


def _power(root: Path) -> str | None:
    """A Jetson's power mode."""
    mode = jetson.power_mode(root)
    return mode.text if mode is not None and mode.current is not None else None


def _driver(root: Path) -> str | None:
    return cuda.kernel_driver(root) or None


def _gpu(root: Path) -> Facts:
    """The GPUs; asked in a child, for a broken driver takes its caller down."""
    if root != ROOT or not (_driver(root) or jetson.is_jetson(root)):
        return {}
    try:
        gpus: cuda.Gpus = child.call_in_child(
            "vit_edge.machine.cuda:gpus", timeout_s=_GPU_TIMEOUT_S
        )
    except ResourceError as error:
        return {"gpu": f"not to be asked: {str(error).partition(chr(10))[0]}"}
    return {"gpu": gpus.text} if gpus.found else {}
