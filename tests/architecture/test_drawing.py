"""docs/architecture.md shows the rooms as they are."""

from __future__ import annotations

from pathlib import Path

from tests.architecture import drawing, layers


def test_the_page_has_todays_diagram() -> None:
    page = drawing.PAGE.read_text(encoding="utf-8")
    assert page == drawing.drawn_into(page), "draw it: python -m tests.architecture.drawing"


def test_an_arrow_that_a_longer_way_replaces_is_left_out() -> None:
    drawn = drawing.diagram({"a": set(), "b": {"a"}, "c": {"a", "b"}})
    assert "c[c] --> b[b]" in drawn
    assert "c[c] --> a[a]" not in drawn
    assert "    3  c\n" in drawn


def test_every_room_is_described(repository: Path) -> None:
    page = drawing.PAGE.read_text(encoding="utf-8")
    described = page.partition("## Three rings")[0]
    for room in layers.ROOMS:
        name = room.partition(".")[0]
        assert f"`{name}/`" in described or f"`{name}.py`" in described, room
