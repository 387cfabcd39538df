"""Text for a terminal: columns, and names of others' that cannot steer it."""

from __future__ import annotations

from collections.abc import Sequence


def printable(text: str) -> str:
    """Text that holds names of others', such that it cannot steer the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text as columns."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)
