"""The measurements of a search, kept on disk: a stopped search goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path


class Journal:
    """Named measurements, one JSON object a line; a line that was cut off is measured again."""

    def __init__(self, path: Path | None) -> None:
        """Read what is there; None keeps nothing."""
        self._path = path
        self.values: dict[str, float] = {}
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
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"name": name, "value": value}) + "\n")

    def finish(self) -> None:
        """Forget everything: the search has ended."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
