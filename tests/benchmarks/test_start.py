"""Starts that are timed: to the first answer, and none that failed."""

from __future__ import annotations

import pytest
import start

from vit_edge.bundle import Bundle
from vit_edge.errors import BackendError

requires = ("onnxruntime",)


def test_a_start_is_timed_until_it_has_answered() -> None:
    taken = start.started("sum(range(10**6)); import sys; assert sys.argv[1] == 'x'", "x")
    assert taken.wall_s > 0
    assert taken.cpu_s > 0


def test_a_start_that_fails_is_no_time(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BackendError, match="a start failed, exit code 1"):
        start.started("raise RuntimeError('broken')")
    assert "broken" in capfd.readouterr().err


def test_python_keeps_what_it_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    assert "PYTHONDONTWRITEBYTECODE" not in start.environment()


def test_they_take_turns_and_each_finds_the_files_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(start, "started", lambda code: told.append(code) or start.Taken(1.0, 0.5))
    taken = start.turns({"a": ("A",), "b": ("B",)}, 2, lambda: told.append("gone"))
    assert told == ["gone", "A", "gone", "B"] * 3  # a round that does not count, and two
    assert {name: len(starts) for name, starts in taken.items()} == {"a": 2, "b": 2}


def test_predictor_answers_as_it_is_started(testing_bundle: Bundle) -> None:
    assert start.started(start.PREDICT, *start.asked(testing_bundle)).wall_s > 0
