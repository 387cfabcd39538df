"""Odd and broken files from the test suites of Pillow and image-rs: an answer or one of our errors.

Pillow's own suite does the same with a fixed list of exceptions (Tests/test_file_*.py); here the
list is our error types.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

MEMORY_BYTES = 1_000_000_000
SECONDS_PER_FILE = 5.0
OUR_ERRORS = {"ImageDecodeError", "UnsupportedImageError", "ImageTooLargeError"}

# Runs in a process of its own: a crash or a leak there is a failed test, not the end of the run.
SCRIPT = f"""
import json, logging, resource, sys, time, warnings
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, ({MEMORY_BYTES}, {MEMORY_BYTES}))
warnings.simplefilter("error")
logging.disable()
from vit_edge.errors import ImageError
from vit_edge.bundle.manifest import Preprocessing
from vit_edge.images.preprocess import preprocess

half = (0.5, 0.5, 0.5)
specs = [
    Preprocessing("cover", (248, 248), (224, 224), "bicubic", half, half),
    Preprocessing("squash", (224, 224), (224, 224), "bilinear", half, half),
]
for path in map(Path, json.load(sys.stdin)):
    for spec in specs:
        start, message = time.perf_counter(), ""
        try:
            pixels = preprocess(path, spec)
            good = pixels.shape == (3, 224, 224) and pixels.dtype == "float32"
            outcome = "answer" if good and abs(pixels).max() <= 1 else "wrong pixels"
        except ImageError as error:
            outcome, message = type(error).__name__, str(error)
        except BaseException as error:
            outcome, message = "foreign " + type(error).__name__, str(error)
        print(json.dumps([path.name, outcome, message, time.perf_counter() - start]), flush=True)
"""


@pytest.fixture(scope="module")
def outcomes(shared_data: Path, repository: Path) -> list[tuple[str, str, str, float]]:
    """(file name, outcome, message, seconds) of every file, for two kinds of preprocessing."""
    files = sorted(path for path in (shared_data / "images/hostile").rglob("*") if path.is_file())
    assert len(files) >= 300
    environment: dict[str, Any] = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps([str(path) for path in files]),
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 2 * len(files)
    return [tuple(row) for row in rows]


def test_every_file_gives_an_answer_or_one_of_our_errors(
    outcomes: list[tuple[str, str, str, float]],
) -> None:
    others = [row for row in outcomes if row[1] not in OUR_ERRORS | {"answer"}]
    assert not others


def test_every_message_names_the_file_and_fits_on_one_line(
    outcomes: list[tuple[str, str, str, float]],
) -> None:
    for name, outcome, message, _ in outcomes:
        if outcome != "answer":
            assert name in message
            assert "\n" not in message
            assert len(message) < 1000


def test_no_file_takes_long(outcomes: list[tuple[str, str, str, float]]) -> None:
    assert max(seconds for *_, seconds in outcomes) < SECONDS_PER_FILE


def test_what_other_viewers_show_is_not_refused_wholesale(
    outcomes: list[tuple[str, str, str, float]],
) -> None:
    answers = sum(outcome == "answer" for _, outcome, *_ in outcomes)
    assert answers >= 2 * 230  # 248 of 350 with Pillow 13; older ones read a few less


def test_both_kinds_of_preprocessing_judge_a_file_alike(
    outcomes: list[tuple[str, str, str, float]],
) -> None:
    for cover, squash in zip(outcomes[::2], outcomes[1::2], strict=True):
        assert cover[:3] == squash[:3]
