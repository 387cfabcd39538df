"""The processor: how many of its CPUs this process may use, what it is and what it can do."""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path

from vit_edge.machine.cgroups import ROOT, own_groups, read

# What kernels are chosen by. x86: /proc/cpuinfo "flags"; ARM: "Features". An engine built where
# one of these is there need not run where it is not.
_RELEVANT = frozenset(
    {
        "amx_bf16", "amx_fp16", "amx_int8", "amx_tile", "avx", "avx2", "avx512_bf16",
        "avx512_fp16", "avx512_vnni", "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl",
        "avx_vnni", "avx_vnni_int8", "f16c", "fma", "sse4_1", "sse4_2",
        "asimd", "asimddp", "asimdhp", "bf16", "i8mm", "neon", "sme", "sve", "sve2",
    }
)  # fmt: skip


def usable_cpus(root: Path = ROOT) -> int:
    """Count the CPUs that affinity and the cgroups, ours and those around it, let us use.

    A quota of 1.5 CPUs counts as 2: threads that wait cost less than a CPU that idles.

    Args:
        root: Where proc/ and sys/ are.

    Returns:
        At least 1.
    """
    allowed = float(len(allowed_cpus()) or os.cpu_count() or 1)
    quotas = (_quota(group) for group in own_groups("cpu", root))
    return max(1, math.ceil(min([allowed, *(q for q in quotas if q is not None)])))


def default_threads(root: Path = ROOT) -> int:
    """Count the threads to compute with where nobody says: the usable CPUs, or OMP_NUM_THREADS.

    Whoever runs several processes on a machine says it by that variable: Ray, Slurm, torchrun. A
    larger number than there are CPUs is not followed, nor what is no number.

    Args:
        root: Where proc/ and sys/ are.
    """
    said = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    usable = usable_cpus(root)
    return min(usable, int(said)) if said.isdecimal() and int(said) > 0 else usable


def allowed_cpus() -> list[int]:
    """The CPUs that this process is bound to, by number; none where the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def governors(root: Path = ROOT) -> list[str]:
    """Name the CPUs' frequency governors, sorted: timings are steady under "performance" only.

    Args:
        root: Where sys/ is. A virtual machine shows none.
    """
    files = root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor")
    return sorted({text for file in files if (text := read(file).strip())})


def cpu_features(root: Path = ROOT) -> tuple[str, ...]:
    """Name the instruction sets that kernels are chosen by, sorted; empty where unknown.

    Args:
        root: Where proc/ is.
    """
    lines = _cpuinfo(root)
    flags = lines.get("flags", lines.get("features", "")).split()
    return tuple(sorted(_RELEVANT.intersection(flags)))


def cpu_model(root: Path = ROOT) -> str:
    """Name the processor, as the system calls it.

    Args:
        root: Where proc/ is. On ARM boards the device tree's model is the better name.
    """
    lines = _cpuinfo(root)
    board = read(root / "proc/device-tree/model").strip("\0 \n")
    name = lines.get("model name") or board or lines.get("hardware") or platform.processor()
    return name or platform.machine() or "unknown"


def _cpuinfo(root: Path) -> dict[str, str]:
    """The first CPU's lines of /proc/cpuinfo, and those at its end; keys in lower case."""
    fields: dict[str, str] = {}
    for line in read(root / "proc/cpuinfo").splitlines():
        key, separator, value = line.partition(":")
        if separator:
            fields.setdefault(key.strip().lower(), value.strip())
    return fields


def _quota(folder: Path) -> float | None:
    """CPUs that one cgroup allows: cpu.max (version 2) or cpu.cfs_quota_us (version 1)."""
    fields = read(folder / "cpu.max").split() or [
        read(folder / "cpu.cfs_quota_us").strip(),
        read(folder / "cpu.cfs_period_us").strip(),
    ]
    try:
        quota, period = int(fields[0]), int(fields[1])
    except (ValueError, IndexError):  # "max 100000", or no such file
        return None
    return quota / period if quota > 0 and period > 0 else None
