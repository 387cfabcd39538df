"""Write a report whole or not at all."""

from __future__ import annotations

import contextlib
import secrets
from pathlib import Path

from vit_edge.errors import ResourceError


def write_report(path: Path, text: str) -> None:
    """Write a text file in place of the one that is there, which an error leaves as it was.

    Raises:
        ResourceError: The folder is missing, full, or cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(partial.unlink, missing_ok=True)
        try:
            partial.write_text(text, encoding="utf-8")
            partial.replace(path)
        except OSError as error:
            raise ResourceError(
                f"{path}: cannot be written: {error.strerror}; make room, or choose another place"
            ) from error
