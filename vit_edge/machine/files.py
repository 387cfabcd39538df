"""Files that are there whole or not at all; files and folders that one process holds."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_STREAMS = ("/dev/stdout", "/dev/stderr", "/dev/fd/", "/proc/")


@contextlib.contextmanager
def aside(path: Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Give a file that becomes `path` when the block ends well, and is removed otherwise.

    Behind a link is what it points to. Devices, pipes and this process's streams are written to:
    a file in place of /dev/null would be the end of it.

    Args:
        path: The file.
        mode: Its permissions, before the umask takes some.

    Raises:
        OSError: It cannot be written.
    """
    if str(path.absolute()).startswith(_STREAMS) or (path.exists() and not path.is_file()):
        with path.open("ab") as stream:
            yield stream
        return
    path = Path(os.path.realpath(path))
    partial = path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")
    try:
        handle = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def lock(handle: int) -> bool:
    """Lock an open file or folder, until it is closed or the process ends.

    Returns:
        Whether it is locked; file systems of some networks know no locks.

    Raises:
        BlockingIOError: Another process holds it.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True
