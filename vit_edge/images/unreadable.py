"""Images of a long run that could not be read: all are counted, the first are named."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vit_edge.errors import ImageError

LISTED = 100  # enough to see a pattern; a folder of a million broken files stays a short message


@dataclass
class Unreadable:
    """What was left out, and why."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, error: ImageError) -> None:
        """Count one image."""
        self.count += 1
        if len(self.first) < LISTED:
            self.first.append(str(error))

    def text(self) -> str:
        """What is named, one a line and indented."""
        return "".join(f"\n  {problem}" for problem in self.first)

    def as_dict(self) -> dict[str, Any]:
        """How many, and what is named, ready for JSON."""
        return {"count": self.count, "first": self.first}
