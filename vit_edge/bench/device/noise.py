"""Whether a machine is quiet enough to be believed, and what to do if not."""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path
from typing import NamedTuple

from vit_edge.bench.results.runs import Entry
from vit_edge.machine import cpus
from vit_edge.machine.cgroups import ROOT, read

# Chosen so that a quiet two-core virtual machine passes.
_BUSY = 0.3  # of one CPU, that others use of ours while we measure
_STOLEN = 0.02  # of the time, taken by other virtual machines
_LOOK_S = 0.5  # 50 ticks of each CPU
_APART = 0.05  # of the median, between processes of one configuration


class Ticks(NamedTuple):
    """Clock ticks of the CPUs that we may use, added up; proc(5), "/proc/stat"."""

    busy: int
    idle: int
    stolen: int
    ours: int  # of this process and its children that have ended
    cpus: int


def ticks(root: Path = ROOT) -> Ticks:
    """Now, since boot; zeros where the system does not tell."""
    names = {f"cpu{index}" for index in cpus.allowed_cpus()}
    lines = [line.split() for line in read(root / "proc/stat").splitlines()]
    rows = [
        [int(field) for field in fields if field.isdecimal()] + [0] * 8
        for name, *fields in filter(None, lines)
        if name in names
    ]
    sums = [sum(row[place] for row in rows) for place in range(8)]
    user, nice, system, idle, iowait, irq, softirq, steal = sums
    own = os.times()
    per_second = os.sysconf("SC_CLK_TCK")
    ours = round(per_second * (own.user + own.system + own.children_user + own.children_system))
    return Ticks(user + nice + system + irq + softirq, idle + iowait, steal, ours, len(rows))


def warnings_now(root: Path = ROOT, *, look_s: float = _LOOK_S) -> list[str]:
    """What disturbs already before a run begins.

    Args:
        root: Where proc/ and sys/ are.
        look_s: How long to look.
    """
    before = ticks(root)
    time.sleep(look_s)
    return machine_warnings(before, ticks(root), root, "before it began")


def machine_warnings(
    before: Ticks, after: Ticks, root: Path = ROOT, when: str = "meanwhile"
) -> list[str]:
    """What of the machine's own doings disturbs a run that took place between two looks.

    Args:
        before: Before the run.
        after: After it.
        root: Where proc/ and sys/ are.
        when: That took place, in words.
    """
    busy, idle, stolen, ours, _ = (now - then for now, then in zip(after, before, strict=True))
    total = busy + idle + stolen
    found = []
    if total > 0 and (others := max(0, busy - ours) / total) * after.cpus > _BUSY:
        found.append(
            f"other processes used {others:.0%} of the CPUs {when}: stop them (top), or bind "
            "this to CPUs of its own (taskset)"
        )
    if total > 0 and stolen / total > _STOLEN:
        found.append(
            f"{stolen / total:.0%} of the time went to other virtual machines {when} (steal): "
            "measure at another hour, or on a machine of its own"
        )
    governors = cpus.governors(root)
    if set(governors) - {"performance"}:
        found.append(
            f"the clock follows the load (governor {', '.join(governors)}): "
            "cpupower frequency-set --governor performance, on a Jetson jetson_clocks"
        )
    return found


def configuration_warnings(entry: Entry) -> list[str]:
    """What of its own samples speaks against a configuration.

    Each child judges its own process and says so in its result: stable, enough, throttled, and
    whether its answers hold. Only the spread needs several processes. So the parent judges that,
    and says of the rest what any of the children found, once for the configuration.
    """
    name, processes = entry.name, entry.processes
    found = []
    medians = [statistics.median(latencies) for latencies in entry.samples if latencies]
    if len(medians) > 1:
        apart = (max(medians) - min(medians)) / statistics.median(medians)
        if apart > _APART:
            found.append(
                f"{name}: its processes differ by {apart:.0%}: more of them (--processes) narrow "
                "the interval"
            )
    if entry.throttled:
        found.append(
            f"{name}: throttled ({'; '.join(entry.throttled)}): cool it, or lower the clocks to "
            "what it can hold (a Jetson: another power mode, nvpmodel), and measure again"
        )
    if not all(process.stable for process in processes):
        found.append(f"{name}: it did not come to rest within the warm-up")
    if not all(process.enough for process in processes):
        found.append(f"{name}: it has fewer samples than its percentile needs (--most-seconds)")
    return found


def usable() -> dict[str, str]:
    """The CPUs we may use, for the facts."""
    return {"cpus": str(cpus.usable_cpus()), "affinity": ",".join(map(str, cpus.allowed_cpus()))}
