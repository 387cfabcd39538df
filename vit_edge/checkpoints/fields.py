"""Read the typed fields of a JSON object, and gather every problem instead of the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vit_edge.bundle.architecture import Architecture
from vit_edge.checkpoints.request import MAX_IMAGE_PX
from vit_edge.errors import CheckpointError

# Far above any Vision Transformer, and low enough that nothing is built that never ends.
MAX_DEPTH = 1000
MAX_SIZE = 2**17  # width, mlp_dim, patch_px ...
MAX_CLASSES = 2**20


class Fields:
    """The fields of one file. A bad field adds to `problems` and reads as a harmless value."""

    def __init__(
        self, data: Mapping[str, Any], where: str, problems: list[str] | None = None
    ) -> None:
        self.data = data
        self.where = where
        self.problems: list[str] = [] if problems is None else problems

    def has(self, name: str) -> bool:
        """True if the field is there and not null."""
        return self.data.get(name) is not None

    def problem(self, text: str) -> None:
        """Add a problem; `text` starts with the field's name."""
        self.problems.append(text)

    def positive(self, name: str, default: int | None = None, most: int = MAX_SIZE) -> int:
        """A positive integer up to `most`; without a default the field must be there."""
        value = self.data.get(name, default)
        if type(value) is int and 0 < value <= most:
            return value
        if type(value) is int and value > most:
            self.problem(_too_large(name, value, most))
            return 1
        missing = name not in self.data
        self.problem(
            f"{name}: {'missing' if missing else f'{_show(value)} is no positive integer'}"
        )
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
        value = self._given(name, default)
        if type(value) is bool:
            return value
        self.problem(f"{name}: {value!r} is neither true nor false")
        return default

    def choice(self, name: str, allowed: Sequence[str], default: str) -> str:
        """One of the allowed words."""
        value = self._given(name, default)
        if value in allowed:
            return str(value)
        self.problem(f"{name}: {value!r} is not supported; expected {' or '.join(allowed)}")
        return default

    def words(self, name: str) -> list[str]:
        """A list of words; null and missing read as none."""
        value = self._given(name, [])
        if isinstance(value, list) and all(isinstance(word, str) for word in value):
            return value
        self.problem(f"{name}: {value!r} is no list of words")
        return []

    def size_hw(self, name: str) -> tuple[int, int]:
        """One positive integer for both sides, or [height, width]."""
        value = self.data.get(name)
        height, width = value if isinstance(value, list) and len(value) == 2 else (value, value)
        if type(height) is int and type(width) is int and height > 0 and width > 0:
            if max(height, width) <= MAX_IMAGE_PX:
                return height, width
            self.problem(_too_large(name, value, MAX_IMAGE_PX, " px"))
            return 1, 1
        shown = (
            "missing" if value is None else f"{_show(value)} is neither a size nor [height, width]"
        )
        self.problem(f"{name}: {shown}")
        return 1, 1

    def colour(self, name: str, default: tuple[float, float, float]) -> tuple[float, float, float]:
        """Three numbers, for red, green and blue."""
        value = self._given(name, default)
        if (
            isinstance(value, (list, tuple))
            and len(value) == 3
            and all(type(v) in (int, float) for v in value)
        ):
            return float(value[0]), float(value[1]), float(value[2])
        self.problem(f"{name}: {value!r} is no list of three numbers")
        return default

    def _given(self, name: str, default: Any) -> Any:
        """The value as the file has it; null and missing read as the default."""
        return default if self.data.get(name) is None else self.data[name]

    def done(self) -> None:
        """Raise all problems at once.

        Raises:
            CheckpointError: There is at least one.
        """
        if self.problems:
            raise CheckpointError(
                f"{self.where}: {len(self.problems)} problem(s):\n  " + "\n  ".join(self.problems)
            )


def refuse_giants(architecture: Architecture, where: str) -> Architecture:
    """Return a shape that was read off tensors, if none of its sizes is absurd.

    Raises:
        CheckpointError: The fields that are too large are named.
    """
    limits = {
        "depth": MAX_DEPTH,
        "width": MAX_SIZE,
        "heads": MAX_SIZE,
        "mlp_dim": MAX_SIZE,
        "patch_px": MAX_SIZE,
        "pre_logits_dim": MAX_SIZE,
        "num_classes": MAX_CLASSES,
    }
    sizes = {name: getattr(architecture, name) or 0 for name in limits}
    sizes["image_hw"], limits["image_hw"] = max(architecture.image_hw), MAX_IMAGE_PX
    problems = [
        _too_large(name, size, limits[name]) for name, size in sizes.items() if size > limits[name]
    ]
    if problems:
        raise CheckpointError(f"{where}:\n  " + "\n  ".join(problems))
    return architecture


def _too_large(name: str, value: object, most: int, unit: str = "") -> str:
    return f"{name}: {_show(value)} is too large; at most {most}{unit} is supported"


def _show(value: object) -> str:
    """A value for a message: short, whatever it is."""
    if type(value) is int and value.bit_length() > 200:  # Python refuses to print the longest
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + " ..."
