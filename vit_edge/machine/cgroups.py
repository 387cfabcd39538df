"""Control groups, both versions: which ones we are in, and a group of our own with a limit.

https://docs.kernel.org/admin-guide/cgroup-v1/ and https://docs.kernel.org/admin-guide/cgroup-v2.html
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

ROOT = Path("/")

# Moves a shell into the group "$0", which then becomes the command. Done by the child itself, so
# that not a page of the command is counted elsewhere.
ENTER = ("/bin/sh", "-c", 'echo $$ >"$0/cgroup.procs" && { [ $# = 0 ] || exec "$@"; }')

_serial = itertools.count()


def own_groups(controller: str, root: Path = ROOT) -> Iterator[Path]:
    """Find the groups this process is in, the innermost first, up to the mounted root.

    In a container /proc/self/cgroup may name a path of the host that is not mounted here; our
    limits are then at the mount itself, which ends every path.

    Args:
        controller: "cpu" or "memory".
        root: Where proc/ and sys/ are.
    """
    for line in read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if not names:  # version 2, alone or beside version 1
            mounts = ["", "unified"]
        elif controller in names.split(","):
            mounts = [controller, names]
        else:
            continue
        for mount in mounts:
            top = root / "sys/fs/cgroup" / mount
            here = top / path.lstrip("/")
            yield from (folder for folder in (here, *here.parents) if folder.is_relative_to(top))


def in_container(root: Path = ROOT) -> bool:
    """True if Docker or Podman left their mark."""
    return (root / ".dockerenv").exists() or (root / "run/.containerenv").exists()


def evict(folder: Path) -> None:
    """Drop a folder's files from the page cache, so that whoever reads them next is charged."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)  # pages that wait to be written stay otherwise
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def oom_kills(group: Path) -> int:
    """Count the processes the kernel killed in a memory group, and below, for lack of memory."""
    text = read(group / "memory.events") or read(group / "memory.oom_control")
    counts = [line.split()[1] for line in text.splitlines() if line.startswith("oom_kill ")]
    return int(counts[0]) if counts else 0


class MemoryGroup(NamedTuple):
    """A memory group with a limit, made by us and removed by close()."""

    path: Path

    def command(self, argv: list[str]) -> list[str]:
        """The command that enters the group and then becomes `argv`."""
        return [*ENTER, str(self.path), *argv]

    def kill(self) -> None:
        """End every process in the group."""
        import signal

        for pid in read(self.path / "cgroup.procs").split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def close(self) -> None:
        """Remove the group; its processes are ended first."""
        for _ in range(100):  # a killed process needs a moment to leave
            self.kill()
            try:
                self.path.rmdir()
            except FileNotFoundError:
                return
            except OSError:
                time.sleep(0.01)
            else:
                return


def memory_group(limit_bytes: int, root: Path = ROOT) -> MemoryGroup | None:
    """Make a memory group with a limit, swap excluded; None where we may not, or cannot.

    Version 2 allows it only where the group we are in delegates its memory controller.
    """
    for parent in itertools.islice(own_groups("memory", root), 1):
        group = MemoryGroup(parent / f"vit_edge-{os.getpid()}-{next(_serial)}")
        try:
            group.path.mkdir()
        except OSError:
            return None
        if _limit(group.path, limit_bytes) and _can_enter(group):
            return group
        group.close()
    return None


def _limit(path: Path, limit_bytes: int) -> bool:
    version1 = (path / "memory.limit_in_bytes").exists()
    limit, swap = (
        ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
        if version1
        else ("memory.max", "memory.swap.max")
    )
    try:
        _write(path / limit, limit_bytes)
        if (path / swap).exists():  # absent where the kernel does not count swap
            _write(path / swap, limit_bytes if version1 else 0)
    except OSError:
        return False
    return True


def _can_enter(group: MemoryGroup) -> bool:
    import subprocess  # a predictor reads limits only

    return subprocess.run(group.command([]), check=False, capture_output=True).returncode == 0


def _write(path: Path, value: int) -> None:
    with path.open("r+") as stream:  # never creates a file: the kernel makes them
        stream.write(str(value))


def read_number(path: Path) -> int | None:
    """The whole number in a file of the system; None where there is none."""
    text = read(path).strip()
    return int(text) if text.lstrip("-").isdecimal() else None


def read(path: Path) -> str:
    """The text of a file of the system; empty where it is not there."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
