"""The resources of a process and those it started, from Linux's /proc."""

from __future__ import annotations

from pathlib import Path

from vit_edge.machine.cgroups import read

_KERNEL_LISTS_CHILDREN = Path("/proc/thread-self/children").exists()


def process_tree(pid: int) -> list[int]:
    """List a process and its descendants; one that became a daemon has left the tree."""
    children = _children_of_all() if not _KERNEL_LISTS_CHILDREN else None
    pids = [pid]
    for member in pids:  # grows while it is walked
        pids += _children(member) if children is None else children.get(member, [])
    return pids


def tree_memory_bytes(pid: int) -> tuple[int, int, int]:
    """Measure a process tree: resident now, highest of any one process, anonymous now; in bytes.

    Processes that share pages (after a fork) are summed by their proportional share, so that no
    page counts twice. Where /proc lacks that share, all that is resident counts.
    """
    tree = [(member, status_bytes(member)) for member in process_tree(pid)]
    mark_bytes = max(status.get("VmHWM", 0) for _, status in tree)
    if len(tree) == 1:
        status = tree[0][1]
        return status.get("VmRSS", 0), mark_bytes, status.get("RssAnon", 0)
    total_bytes = anonymous_bytes = 0
    for member, _ in tree:
        share = _kilobyte_lines(Path(f"/proc/{member}/smaps_rollup"))
        share = share or status_bytes(member)  # read again: one that has ended since has nothing
        total_bytes += share.get("Pss", share.get("VmRSS", 0))
        anonymous_bytes += share.get("Pss_Anon", share.get("RssAnon", 0))
    return total_bytes, mark_bytes, anonymous_bytes


def status_bytes(pid: int) -> dict[str, int]:
    """The memory lines of /proc/PID/status in bytes, such as VmRSS; empty once it is gone."""
    return _kilobyte_lines(Path(f"/proc/{pid}/status"))


def _kilobyte_lines(path: Path) -> dict[str, int]:
    """The lines "name: number kB" of a file in /proc, in bytes; empty once the process is gone."""
    fields = (line.split() for line in read(path).splitlines())
    return {f[0].rstrip(":"): 1024 * int(f[1]) for f in fields if len(f) == 3 and f[2] == "kB"}


def _children(pid: int) -> list[int]:
    tasks = _entries(Path(f"/proc/{pid}/task"))
    return [int(child) for task in tasks for child in read(task / "children").split()]


def _children_of_all() -> dict[int, list[int]]:
    """Every process's children, for kernels built without CONFIG_PROC_CHILDREN."""
    children: dict[int, list[int]] = {}
    for entry in _entries(Path("/proc")):
        # "pid (name) state ppid ...", where the name may hold spaces and brackets
        fields = read(entry / "stat").rpartition(")")[2].split() if entry.name.isdigit() else []
        if len(fields) > 1:
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    return children


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []
