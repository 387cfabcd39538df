"""The diagram of docs/architecture.md, drawn from the table of rooms.

python -m tests.architecture.drawing    write it into the page
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from tests.architecture import layers

PAGE = Path(__file__).resolve().parents[2] / "docs" / "architecture.md"
START, END = "<!-- rooms: drawn by tests/architecture/drawing.py -->", "<!-- rooms end -->"


def diagram(rooms: Mapping[str, set[str]]) -> str:
    """The floors as text, and as a Mermaid graph the arrows that no longer way replaces."""
    floors = layers.floors(rooms)
    storeys = [
        f"    {floor:5}  {'  '.join(sorted(room for room in rooms if floors[room] == floor))}"
        for floor in range(max(floors.values()), 0, -1)
    ]
    arrows = [
        f"  {_box(room)} --> {_box(below)}"
        for room in rooms
        for below in sorted(rooms[room])
        if not any(below in reached(rooms, other) for other in rooms[room] - {below})
    ]
    return "\n".join(["    floor  rooms", *storeys, "", "```mermaid", "graph TD", *arrows, "```"])


def reached(rooms: Mapping[str, set[str]], room: str) -> set[str]:
    """Every room that one imports, by whatever way."""
    return rooms[room].union(*(reached(rooms, below) for below in rooms[room]))


def _box(room: str) -> str:
    return f"{room.strip('_').replace('.', '_')}[{room.strip('_')}]"


def drawn_into(page: str) -> str:
    """The page with today's diagram between its two marks."""
    before, _, rest = page.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n\n{diagram(layers.ROOMS)}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(drawn_into(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    sys.exit(0)
