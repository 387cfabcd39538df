"""A journal gives back what was written, and only to the run and the file it belongs to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vit_edge.errors import InputError, ResourceError
from vit_edge.evaluate.journal import Journal, Ranking, Stamp
from vit_edge.images.folders import LabelledImage

MODEL = {"model_sha256": "aa", "runtime": "r 1"}
ANSWER = Ranking((3, 1), (0.75, 0.2))


def image(name: str) -> LabelledImage:
    return LabelledImage(name, Path(name), 3)


def written(path: Path, names: list[str]) -> Path:
    with Journal(path) as journal:
        journal.begin("candidate", MODEL)
        for index, name in enumerate(names):
            journal.add("candidate", image(name), Stamp(index, 10), ANSWER)
    return path


def known(path: Path, names: list[str]) -> list[bool]:
    with Journal(path) as journal:
        journal.begin("candidate", MODEL)
        found = [
            journal.find("candidate", image(name), Stamp(index, 10))
            for index, name in enumerate(names)
        ]
    assert all(answer in (None, ANSWER) for answer in found)
    return [answer is not None for answer in found]


NAMES = ["a/1.png", "a/2.png", "b/\udcff.png", "ü, 日本.png"]


def test_answers_come_back_as_written(tmp_path: Path) -> None:
    assert known(written(tmp_path / "j", NAMES), [*NAMES, "new.png"]) == [True] * 4 + [False]


def test_answers_of_a_third_run_are_there_too(tmp_path: Path) -> None:
    path = written(tmp_path / "j", NAMES[:2])
    with Journal(path) as journal:
        journal.begin("candidate", MODEL)
        journal.add("candidate", image(NAMES[2]), Stamp(2, 10), ANSWER)
    assert known(path, NAMES) == [True, True, True, False]


@pytest.mark.parametrize("stamp", [Stamp(1, 10), Stamp(0, 11), Stamp(-1, -1)])
def test_a_file_that_changed_is_asked_again(tmp_path: Path, stamp: Stamp) -> None:
    with Journal(written(tmp_path / "j", NAMES)) as journal:
        assert journal.find("candidate", image(NAMES[0]), stamp) is None


def test_the_reference_has_answers_of_its_own(tmp_path: Path) -> None:
    with Journal(written(tmp_path / "j", NAMES)) as journal:
        assert journal.find("reference", image(NAMES[0]), Stamp(0, 10)) is None


def test_a_journal_cut_anywhere_loses_only_what_was_cut(tmp_path: Path) -> None:
    whole = written(tmp_path / "j", NAMES).read_bytes()
    ends = [index + 1 for index, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(ends[0], len(whole)):
        path = tmp_path / "cut"
        path.write_bytes(whole[:cut])
        lines = sum(end <= cut for end in ends)
        assert known(path, NAMES) == [index < lines - 2 for index in range(len(NAMES))]
        assert path.read_bytes().startswith(whole[: ends[lines - 1]])
        assert path.read_bytes().endswith(b"}\n")


def test_what_follows_a_cut_line_can_be_read(tmp_path: Path) -> None:
    path = written(tmp_path / "j", NAMES)
    path.write_bytes(path.read_bytes()[:-5])
    with Journal(path) as journal:
        journal.begin("candidate", MODEL)
        journal.add("candidate", image(NAMES[3]), Stamp(3, 10), ANSWER)
    assert known(path, NAMES) == [True] * 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_sha256": "bb"}, "model_sha256: aa there, bb now"),
        ({"runtime": "r 2"}, "runtime: r 1 there, r 2 now"),
        ({"batch_size": 4}, "batch_size: None there, 4 now"),
    ],
)
def test_another_runs_journal_is_refused_with_the_difference(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    with (
        Journal(written(tmp_path / "j", NAMES)) as journal,
        pytest.raises(InputError, match=words),
    ):
        journal.begin("candidate", MODEL | change)


@pytest.mark.parametrize(
    "content",
    [
        b"precious notes\n",
        b"precious notes",
        b'{"kind": "vit_edge journal", "schema_version": 2}\n',
        b'{"kind": "vit_edge journal", "schema_version": 1}',
        b"[]\n",
        b"\xff\n",
        b"[" * 100_000 + b"\n",
    ],
)
def test_a_file_that_is_no_journal_is_refused_and_left_alone(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "j"
    path.write_bytes(content)
    with pytest.raises(InputError, match="no journal"):
        Journal(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("line", [b"{}\n", b"torn\n", b'{"role": "x", "image": 1}\n', b"7\n"])
def test_damage_before_the_end_is_refused_with_its_line(tmp_path: Path, line: bytes) -> None:
    lines = written(tmp_path / "j", NAMES).read_bytes().splitlines(keepends=True)
    (tmp_path / "j").write_bytes(b"".join([*lines[:3], line, *lines[3:]]))
    with pytest.raises(InputError, match="line 4 is damaged"):
        Journal(tmp_path / "j")


def test_two_processes_do_not_share_a_journal(tmp_path: Path) -> None:
    path = written(tmp_path / "j", NAMES)
    code = f"import pathlib, vit_edge.evaluate.journal as j; j.Journal(pathlib.Path({str(path)!r}))"
    with Journal(path):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
    assert "ResourceError" in done.stderr
    assert "another evaluation" in done.stderr


def test_a_journal_that_cannot_be_written_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="cannot be written"):
        Journal(tmp_path / "nonesuch" / "j")


def test_a_stamp_tells_a_changed_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    assert Stamp.of(path) == Stamp(-1, -1)
    path.write_bytes(b"12345")
    before = Stamp.of(path)
    os.utime(path, ns=(0, before.changed_ns + 1))
    assert before.size == 5
    assert Stamp.of(path) != before
