"""Progress is seen on a terminal at once, in a log now and then, and never on stdout."""

from __future__ import annotations

import sys
import time

import pytest

from vit_edge.cli.progress import Progress


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


def test_a_log_gets_a_line_every_half_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    with Progress("evaluating", 4000) as progress:
        for _ in range(120):
            clock.now += 1
            progress(10)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == [
        "evaluating: 300 of 4,000 images, 10 a second, 6:10 left",
        "evaluating: 600 of 4,000 images, 10 a second, 5:40 left",
        "evaluating: 900 of 4,000 images, 10 a second, 5:10 left",
        "evaluating: 1,200 of 4,000 images, 10 a second, 4:40 left",
    ]


def test_what_was_known_before_does_not_count_as_speed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    with Progress("evaluating", 100_000) as progress:
        progress(28_000, free=True)
        clock.now += 30
        progress(60)
    line = capsys.readouterr().err
    assert line == "evaluating: 28,060 of 100,000 images, 2 a second, 9:59:30 left\n"


def test_a_terminal_gets_one_line_that_is_wiped_at_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    clock = Clock(monkeypatch)
    with Progress("recording", 10) as progress:
        clock.now += 1
        progress(5)
    assert capsys.readouterr().err == (
        "\r\x1b[Krecording: [##########----------] 5 of 10 images, 5 a second, 0:01 left\r\x1b[K"
    )
