"""The measurements of a search, kept on disk: a stopped search goes on where it was."""

from __future__ import annotations

import json
import logging
from pathlib import Path

_LOG = logging.getLogger(__name__)


class Journal:
    """Named measurements, one JSON object a line; a line that was cut off is measured again.

    Where the file cannot be written, as in a home directory that is not the user's, the search
    keeps nothing and goes on.
    """

    def __init__(self, path: Path | None) -> None:
        """Read what is there; None keeps nothing."""
        self._path = path
        self.values: dict[str, float] = {}
        try:
            self._read()
        except OSError as error:
            self._give_up(error)

    def _read(self) -> None:
        path = self._path
        if path is None or not path.is_file():
            return
        text = path.read_text(encoding="utf-8")
        for line in text.splitlines():
            try:
                entry = json.loads(line)
                self.values[str(entry["name"])] = float(entry["value"])
            except (ValueError, KeyError, TypeError):
                continue
        if text and not text.endswith("\n"):
            with path.open("a", encoding="utf-8") as file:
                file.write("\n")  # what comes next must not end up on the line that was cut off

    def add(self, name: str, value: float) -> None:
        """Keep one measurement; it is on disk when this returns."""
        self.values[name] = value
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"name": name, "value": value}) + "\n")
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        _LOG.warning(
            "%s cannot be used (%s): a search that is stopped starts anew; set XDG_CACHE_HOME to a "
            "writable directory",
            self._path,
            error.strerror,
        )
        self._path = None

    def finish(self) -> None:
        """Forget everything: the search has ended."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
