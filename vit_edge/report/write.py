"""Write a report whole or not at all."""

from __future__ import annotations

from pathlib import Path

from vit_edge.errors import ResourceError
from vit_edge.machine.files import aside


def write_report(path: Path, text: str) -> None:
    """Write a text file in place of the one that is there, which an error leaves as it was.

    Raises:
        ResourceError: The folder is missing, full, or cannot be written.
    """
    try:
        with aside(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise ResourceError(
            f"{path}: cannot be written: {error.strerror}; make room, or choose another place"
        ) from error
