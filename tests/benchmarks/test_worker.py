"""Workers: what they serve comes back, and every way they can fail is told."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import worker as subject
from harness.worker import Worker

from vit_edge.errors import ResourceError

CHILD = """
import os, sys, time
from harness.worker import serve
def loud(text):
    print("noise", flush=True)
    os.write(1, b"more noise")
    return text
def dies():
    print("last words", file=sys.stderr, flush=True)
    os._exit(7)
count = 0
def counted():
    global count
    count += 1
    return count
serve({
    "double": lambda number: 2 * number, "loud": loud, "counted": counted, "dies": dies,
    "fails": lambda: 1 / 0, "sleeps": lambda: time.sleep(60),
})
"""


@pytest.fixture
def worker(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    monkeypatch.setenv("PYTHONPATH", f"{repository}:{repository / 'benchmarks'}")
    with Worker([sys.executable, "-c", CHILD]) as started:
        yield started


def test_a_call_is_answered(worker: Worker) -> None:
    assert worker.call("double", number=21) == 42


def test_a_worker_stays_alive_between_calls(worker: Worker) -> None:
    assert [worker.call("counted") for _ in range(3)] == [1, 2, 3]


def test_what_the_child_prints_does_not_mix_with_answers(worker: Worker) -> None:
    text = "ü\n" + "x" * 200_000  # longer than a pipe holds, and with a line break
    assert worker.call("loud", text=text) == text


def test_a_call_that_raises_is_an_error_and_the_next_is_answered(worker: Worker) -> None:
    with pytest.raises(ResourceError, match=r"fails failed: ZeroDivisionError"):
        worker.call("fails")
    assert worker.call("double", number=1) == 2


def test_an_unknown_call_is_refused_with_those_there_are(worker: Worker) -> None:
    with pytest.raises(ResourceError, match=r"no call 'nothing', only double, loud"):
        worker.call("nothing")


def test_a_child_that_dies_is_told_with_its_last_words(worker: Worker) -> None:
    with pytest.raises(ResourceError, match=r"exit code 7 during dies\n  \| last words"):
        worker.call("dies")
    with pytest.raises(ResourceError, match="exit code 7"):
        worker.call("double", number=1)


def test_a_call_that_takes_too_long_ends_the_child(worker: Worker) -> None:
    assert worker.call("double", number=1) == 2  # it is up
    with pytest.raises(ResourceError, match=r"no answer to sleeps within 0\.2 s"):
        worker.call("sleeps", timeout_s=0.2)
    with pytest.raises(ResourceError, match="ended with exit code -9"):
        worker.call("double", number=1)


def test_a_closed_worker_says_so(worker: Worker) -> None:
    worker.close()
    worker.close()
    with pytest.raises(ResourceError, match="after it was closed"):
        worker.call("double", number=1)


def test_a_child_that_does_not_end_by_itself_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "GRACE_S", 0.1)
    stubborn = Worker([sys.executable, "-c", "import time; time.sleep(60)"])
    stubborn.close()
    assert stubborn._child.returncode == -9


def test_a_command_that_is_not_there_is_refused() -> None:
    with pytest.raises(ResourceError, match="could not be started"):
        Worker(["/nowhere/python"])
