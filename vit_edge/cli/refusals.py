"""What a machine refuses us, as an error with a remedy: memory, disk, open files, permission."""

from __future__ import annotations

import errno
import os
import tempfile

from vit_edge.errors import ResourceError

_SPACE = "make room, or name a larger folder for temporary files with TMPDIR"
_OPEN_FILES = "allow more of them: ulimit -n 1024"
# What is no fault of ours: of the machine, of the user's rights in it, of the paths that we got.
_REMEDIES = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: "allow larger files (ulimit -f), or use another file system",
    errno.EMFILE: _OPEN_FILES,
    errno.ENFILE: _OPEN_FILES,
    errno.ENOMEM: "free some memory, or allow more of it",
    errno.EACCES: "give this user the right to, or choose another place",
    errno.EPERM: "give this user the right to, or choose another place",
    errno.EROFS: "choose a place that can be written",
    errno.EIO: "look at the disk's health",
    errno.ESTALE: "mount the file system again",
    errno.ENAMETOOLONG: "shorten the path",
    errno.ELOOP: "look at its symbolic links",
    errno.ENOTDIR: "look at the path: a part of it is a file",
}


def refusal_of_machine(error: OSError | MemoryError) -> ResourceError | None:
    """Say what the machine refused; None for what may be a fault of ours."""
    if isinstance(error, MemoryError):
        return ResourceError(f"out of memory: {str(error) or 'none is left'}; free some of it")
    where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
    if error.errno == errno.ENOENT and not where:  # tempfile; or the working directory is gone
        return ResourceError(f"{error.strerror}; go to a directory that is there, and set TMPDIR")
    remedy = _REMEDIES.get(error.errno or 0)
    if remedy is None:
        return None
    if remedy is _SPACE and not where:
        remedy += f", which is {_temporary()} now"
    return ResourceError(f"{where}{error.strerror}; {remedy}")


def _temporary() -> str:
    try:
        return tempfile.gettempdir()
    except OSError:
        return "nowhere"
