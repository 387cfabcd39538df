"""Files that Git LFS keeps elsewhere: a clone without it holds pointers of three lines."""

from __future__ import annotations

from pathlib import Path

from vit_edge.errors import LFS_MAGIC, LFS_POINTER


def is_pointer(path: Path) -> bool:
    """True if a regular file is a Git LFS pointer; false for all that cannot be read."""
    try:
        if not path.is_file():  # a pipe would block
            return False
        with path.open("rb") as file:
            return file.read(len(LFS_MAGIC)) == LFS_MAGIC
    except (OSError, ValueError):
        return False


def another_size(path: Path, recorded_bytes: int) -> str:
    """Say of a file that it is not as long as it was when it was written."""
    if is_pointer(path):
        return f"{LFS_POINTER}, not the file itself"
    return (
        f"{path.stat().st_size} bytes, the manifest says {recorded_bytes}; "
        "copy the bundle again or export it again"
    )
