"""Facts of the machine that a number or a verdict belongs to."""

from __future__ import annotations

import os
import platform

from vit_edge.machine import cpus


def machine_facts() -> dict[str, str]:
    """Describe this machine, ready to be shown."""
    return {
        "cpu": cpus.cpu_model(),
        "cpus": str(cpus.usable_cpus()),
        "features": " ".join(cpus.cpu_features()),
        "memory": f"{_memory_bytes() / 1e9:.1f} GB",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
    }


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
