"""Paths for libraries in C++, which take a file's name as UTF-8, whatever the locale."""

from __future__ import annotations

import os
from pathlib import Path

from vit_edge.errors import BackendError


def path_for(library: str, path: Path) -> str:
    """Write a path as a C++ library takes it.

    Where the locale has no UTF-8, Python holds other bytes than ASCII as lone surrogates, which no
    library takes although the name on the disk is sound.

    Args:
        library: What will open it, for the message.
        path: The file.

    Raises:
        BackendError: The bytes of its name are no UTF-8.
    """
    try:
        return os.fsencode(path).decode("utf-8")
    except UnicodeDecodeError:
        raise BackendError(
            f"{str(path)!a}: {library} opens only paths that are UTF-8, and this one is not. "
            "Rename the directory, or reach it by a symbolic link with another name."
        ) from None
