"""No room grows unseen: its lines are in budget.json, and a rise needs a line there."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.architecture import budget

SLACK = 60  # lines that a room may be below its budget before the budget is lowered


def test_no_room_is_over_its_budget(repository: Path) -> None:
    allowed = json.loads(budget.BUDGET.read_text())
    over = {
        room: f"{count} lines, the budget says {allowed.get(room, 0)}"
        for room, count in budget.lines_of(repository).items()
        if count > allowed.get(room, 0)
    }
    assert not over, (
        f"{over}: make room, or raise the budget (python -m tests.architecture.budget --write) and "
        "say why in the commit"
    )


def test_the_budget_follows_what_was_saved(repository: Path) -> None:
    today, allowed = budget.lines_of(repository), json.loads(budget.BUDGET.read_text())
    assert allowed.keys() == today.keys()
    rooms = [room for room in today if room not in ("core path", "all")]
    saved = {room: allowed[room] - today[room] for room in rooms}
    assert max(saved.values()) <= SLACK, (
        f"{saved}: lower the budget (python -m tests.architecture.budget --write)"
    )


def test_every_line_is_counted(tmp_path: Path) -> None:
    for name, count in {
        "vit_edge/a/b.py": 3,
        "vit_edge/__init__.py": 1,
        "benchmarks/c.py": 2,
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x = 1\n" * count)
    for name in budget.CORE_PATH:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x = 1\n")
    found = budget.lines_of(tmp_path)
    assert (found["a"], found["benchmarks"], found["core path"]) == (3, 2, len(budget.CORE_PATH))
    assert found["all"] == 3 + 1 + 2 + len(budget.CORE_PATH)


def test_the_reading_order_is_an_hour(repository: Path) -> None:
    text = (repository / "CONTRIBUTING.md").read_text(encoding="utf-8")
    _, _, rest = text.partition("## Reading order")
    order, _, _ = rest.partition("\n## ")
    listed = re.findall(r"^\d+\. .*?(?=^\d+\. |^$)", order, re.MULTILINE | re.DOTALL)
    files = [name for item in listed for name in re.findall(r"`([\w/.]+\.(?:py|md))`", item)]
    assert len(files) > 10
    lines = sum(len((repository / name).read_text().splitlines()) for name in files)
    assert lines <= 2500, f"{lines} lines are more than an hour"
