"""Read the typed fields of a JSON object, and gather every problem instead of the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vit_edge.errors import CheckpointError


class Fields:
    """The fields of one file. A bad field adds to `problems` and reads as a harmless value."""

    def __init__(self, data: Mapping[str, Any], where: str) -> None:
        self.data = data
        self.where = where
        self.problems: list[str] = []

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self.data.get(name) is not None

    def problem(self, text: str) -> None:
        """Add a problem; `text` starts with the field's name."""
        self.problems.append(text)

    def positive(self, name: str, default: int | None = None) -> int:
        """A positive integer; without a default the field must be there."""
        value = self.data.get(name, default)
        if type(value) is int and value > 0:
            return value
        missing = name not in self.data
        self.problem(f"{name}: {'missing' if missing else f'{value!r} is no positive integer'}")
        return 1

    def number(self, name: str, default: float) -> float:
        """A finite number."""
        value = self.data.get(name, default)
        if type(value) in (int, float) and abs(value) < float("inf"):
            return float(value)
        self.problem(f"{name}: {value!r} is no number")
        return default

    def truth(self, name: str, default: bool) -> bool:
        """True or false; null reads as the default."""
        value = default if self.data.get(name) is None else self.data[name]
        if type(value) is bool:
            return value
        self.problem(f"{name}: {value!r} is neither true nor false")
        return default

    def choice(self, name: str, allowed: Sequence[str], default: str) -> str:
        """One of the allowed words."""
        value = default if self.data.get(name) is None else self.data[name]
        if value in allowed:
            return str(value)
        self.problem(f"{name}: {value!r} is not supported; expected {' or '.join(allowed)}")
        return default

    def words(self, name: str) -> list[str]:
        """A list of words; null and missing read as none."""
        value = [] if self.data.get(name) is None else self.data[name]
        if isinstance(value, list) and all(isinstance(word, str) for word in value):
            return value
        self.problem(f"{name}: {value!r} is no list of words")
        return []

    def size_hw(self, name: str) -> tuple[int, int]:
        """One positive integer for both sides, or [height, width]."""
        value = self.data.get(name)
        height, width = value if isinstance(value, list) and len(value) == 2 else (value, value)
        if type(height) is int and type(width) is int and height > 0 and width > 0:
            return height, width
        shown = "missing" if value is None else f"{value!r} is neither a size nor [height, width]"
        self.problem(f"{name}: {shown}")
        return 1, 1

    def colour(self, name: str, default: tuple[float, float, float]) -> tuple[float, float, float]:
        """Three numbers, for red, green and blue."""
        value = default if self.data.get(name) is None else self.data[name]
        if (
            isinstance(value, (list, tuple))
            and len(value) == 3
            and all(type(v) in (int, float) for v in value)
        ):
            return float(value[0]), float(value[1]), float(value[2])
        self.problem(f"{name}: {value!r} is no list of three numbers")
        return default

    def done(self) -> None:
        """Raise all problems at once.

        Raises:
            CheckpointError: There is at least one.
        """
        if self.problems:
            raise CheckpointError(
                f"{self.where}: {len(self.problems)} problem(s):\n  " + "\n  ".join(self.problems)
            )
