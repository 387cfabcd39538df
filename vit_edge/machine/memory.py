"""Memory: what this machine has, and what is left of it within our cgroups."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from vit_edge.machine.cgroups import ROOT, own_groups, read


class Memory(NamedTuple):
    """In bytes; None where the system does not tell."""

    total_bytes: int | None
    available_bytes: int | None  # without swapping, within every limit; page cache counts as free
    limit_bytes: int | None  # the least limit of our cgroups; None: no limit
    swap_bytes: int | None


def readable_size(number: int) -> str:
    """Write bytes for people: 23.1 GB, 640 MB."""
    return f"{number / 1e9:.1f} GB" if number >= 10**9 else f"{number / 1e6:.0f} MB"


def memory(root: Path = ROOT) -> Memory:
    """Ask /proc/meminfo and the cgroups, ours and those around it.

    Args:
        root: Where proc/ and sys/ are.
    """
    lines = _numbers(read(root / "proc/meminfo"))
    total, available, swap = (
        None if name not in lines else 1024 * lines[name]  # in kB: proc_meminfo(5)
        for name in ("MemTotal", "MemAvailable", "SwapTotal")
    )
    groups = [usage for group in own_groups("memory", root) if (usage := _group(group))]
    # Version 1 says "no limit" with a number larger than any memory.
    limits = [(limit, left) for limit, left in groups if total is None or limit < total]
    left = [left for _, left in limits] + ([] if available is None else [available])
    return Memory(
        total_bytes=total,
        available_bytes=min(left, default=None),
        limit_bytes=min((limit for limit, _ in limits), default=None),
        swap_bytes=swap,
    )


def _group(folder: Path) -> tuple[int, int] | None:
    """One cgroup's limit and what is left of it: memory.max (version 2), or version 1's files."""
    limit = _number(folder, "memory.max", "memory.limit_in_bytes")
    used = _number(folder, "memory.current", "memory.usage_in_bytes")
    if limit is None or used is None:  # "max", or no such file
        return None
    stat = _numbers(read(folder / "memory.stat"))
    # Page cache not used of late is given back before anything is killed.
    reclaimable = stat.get("total_inactive_file", stat.get("inactive_file", 0))
    return limit, max(0, limit - max(0, used - reclaimable))


def _number(folder: Path, *names: str) -> int | None:
    text = next((text for name in names if (text := read(folder / name).strip())), "")
    return int(text) if text.isdecimal() else None


def _numbers(text: str) -> dict[str, int]:
    """The lines "name number" or "name: number kB"."""
    fields = (line.split() for line in text.splitlines())
    return {f[0].rstrip(":"): int(f[1]) for f in fields if len(f) >= 2 and f[1].isdecimal()}
