"""A journal gives back what was written, and only to the run and the file it belongs to."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vit_edge.errors import InputError, ResourceError
from vit_edge.evaluate.journal import Journal, Stamp
from vit_edge.images.folders import LabelledImage

MODEL = {"model_sha256": "aa", "runtime": "r 1"}
ANSWER = (3, 1)


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


def test_a_log_cut_anywhere_loses_only_what_was_cut(tmp_path: Path) -> None:
    """A machine that lost its power may have written any part of the write-ahead log."""
    path, log = tmp_path / "j", tmp_path / "j-wal"
    ends = []
    with Journal(path) as journal:
        journal.begin("candidate", MODEL)
        for index, name in enumerate(NAMES):
            journal.add("candidate", image(name), Stamp(index, 10), ANSWER)
            ends.append(log.stat().st_size)
        whole, content = log.read_bytes(), path.read_bytes()
    for cut in range(0, len(whole) + 1, 103):
        (tmp_path / "cut").write_bytes(content)
        (tmp_path / "cut-wal").write_bytes(whole[:cut])
        assert known(tmp_path / "cut", NAMES) == [end <= cut for end in ends]


def test_a_run_goes_on_after_its_log_was_cut(tmp_path: Path) -> None:
    path, log = tmp_path / "j", tmp_path / "j-wal"
    with Journal(path) as journal:
        journal.begin("candidate", MODEL)
        for index, name in enumerate(NAMES):
            journal.add("candidate", image(name), Stamp(index, 10), ANSWER)
        whole, content = log.read_bytes(), path.read_bytes()
    path.write_bytes(content)
    log.write_bytes(whole[:-5])
    with Journal(path) as journal:
        journal.begin("candidate", MODEL)
        assert len(journal) == 3
        journal.add("candidate", image(NAMES[3]), Stamp(3, 10), ANSWER)
    assert known(path, NAMES) == [True] * 4


WRITER = """
import sys
from pathlib import Path
from vit_edge.evaluate.journal import Journal, Stamp
from vit_edge.images.folders import LabelledImage
with Journal(Path(sys.argv[1])) as journal:
    journal.begin("candidate", {"model_sha256": "aa", "runtime": "r 1"})
    for index in range(100_000):
        image = LabelledImage(str(index), Path("x"), 3)
        if journal.find("candidate", image, Stamp(index, 10)) is None:
            journal.add("candidate", image, Stamp(index, 10), (3, 1))
            print(index, flush=True)
"""


def test_a_killed_process_loses_no_answer_and_repeats_none(tmp_path: Path) -> None:
    path, answered = tmp_path / "j", []
    for turn in range(6):
        command = [sys.executable, "-c", WRITER, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            answered.append(int(child.stdout.readline()))
            time.sleep(0.003 * turn**2)
            child.send_signal(signal.SIGKILL)
            answered += map(int, child.stdout.read().split("\n")[:-1])
    assert len(answered) > 100
    assert len(set(answered)) == len(answered)
    names = [str(index) for index in range(max(answered) + 1)]
    assert all(known(path, names)), "an answer was lost"
    with Journal(path) as journal:  # what was added but not yet printed is there too
        assert 0 <= len(journal) - len(answered) <= 6


def test_a_process_killed_as_it_begins_leaves_a_journal_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "j"
    code = (
        "import pathlib, vit_edge.evaluate.journal as j; print(flush=True); "
        f"j.Journal(pathlib.Path({str(path)!r}))"
    )
    for turn in range(12):
        for file in tmp_path.iterdir():
            file.unlink()
        command = [sys.executable, "-c", code]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(0.0015 * turn)
            child.send_signal(signal.SIGKILL)
        assert known(path, NAMES) == [False] * len(NAMES)


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
        b'{"kind": "another journal", "schema_version": 1}\n',
        b"\xff\n",
        b"SQLite format 3\0",
        b"\0" * 5000,
        None,
    ],
)
def test_a_file_that_is_no_journal_is_refused_and_left_alone(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "j"
    if content is None:  # the database of another program
        with contextlib.closing(sqlite3.connect(path)) as database, database:
            database.execute("CREATE TABLE notes (text)")
        content = path.read_bytes()
    path.write_bytes(content)
    with pytest.raises(InputError, match="no journal of an evaluation; name another --resume"):
        Journal(path)
    assert path.read_bytes() == content
    assert [file.name for file in tmp_path.iterdir()] == ["j"]


def test_a_journal_of_another_version_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b'{"kind": "vit_edge journal", "schema_version": 1}\n')
    with pytest.raises(InputError, match=r"older version.*name another --resume, or delete it"):
        Journal(path)
    path = written(tmp_path / "j", NAMES)
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 2")
    with pytest.raises(InputError, match="schema 2, not 3"):
        Journal(path)


def test_an_empty_file_becomes_a_journal(tmp_path: Path) -> None:
    (tmp_path / "j").touch()
    assert known(written(tmp_path / "j", NAMES), NAMES) == [True] * 4


def test_a_database_cut_short_is_refused(tmp_path: Path) -> None:
    whole = written(tmp_path / "j", [f"class/{index}.png" for index in range(300)]).read_bytes()
    for cut in range(100, len(whole), 1501):
        (tmp_path / "cut").write_bytes(whole[:cut])
        with pytest.raises(InputError, match="damaged"):
            Journal(tmp_path / "cut")


RECORDED = {f"class/{index}.png": (index, 7 * index % 500) for index in range(500)}


@pytest.fixture(scope="module")
def journals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[bytes, bytes]]:
    """Give databases and logs: as a killed second run leaves them, and as one that ended."""
    path = tmp_path_factory.mktemp("whole") / "j"
    names = sorted(RECORDED)
    for part in (names[:300], names[300:]):
        with Journal(path) as journal:
            journal.begin("candidate", MODEL)
            for name in part:
                journal.add("candidate", image(name), Stamp(RECORDED[name][0], 10), RECORDED[name])
            killed = path.read_bytes(), path.with_name("j-wal").read_bytes()
    return {"killed": killed, "ended": (path.read_bytes(), b"")}


def overwrite(content: bytes, chance: random.Random) -> bytes:
    """Put other bytes in some place: noise, zeros, a digit, what stands elsewhere in the file."""
    at, other = chance.randrange(len(content)), chance.randrange(len(content))
    length = chance.choice([1, 8, 64, 4096])
    digit = next((place for place in range(at, len(content)) if chr(content[place]).isdigit()), at)
    at, piece = chance.choice(
        [
            (at, bytes([content[at] ^ 1 << chance.randrange(8)])),
            (at, chance.randbytes(length)),
            (at, bytes(length)),
            (at, content[other : other + length]),
            (at // 4096 * 4096, content[other // 4096 * 4096 :][:4096]),  # a page for another
            (digit, b"%d" % chance.randrange(10)),
        ]
    )
    return (content[:at] + piece + content[at + len(piece) :])[: len(content)]


def taken_or_refused(path: Path) -> dict[str, tuple[int, ...]] | str:
    """Read every answer that the journal gives, or why it gives none."""
    taken = {}
    try:
        with Journal(path) as journal:
            journal.begin("candidate", MODEL)
            for name, (size, _) in RECORDED.items():
                answer = journal.find("candidate", image(name), Stamp(size, 10))
                if answer is not None:
                    taken[name] = answer
    except (InputError, ResourceError) as error:
        return str(error)
    return taken


@pytest.mark.parametrize(
    ("run", "damaged"),
    [
        ("killed", "database"),
        ("killed", "log"),
        ("killed", "both"),
        ("killed", "cut"),
        ("ended", "database"),
        ("ended", "cut"),
    ],
)
def test_a_damaged_journal_is_refused_or_gives_only_true_answers(
    tmp_path: Path, journals: dict[str, tuple[bytes, bytes]], run: str, damaged: str
) -> None:
    chance = random.Random(f"{run} {damaged}")
    refused, taken = 0, 0
    for _ in range(60):
        database, log = journals[run]
        for _ in range(chance.randint(1, 2)):
            if damaged in ("database", "both"):
                database = overwrite(database, chance)
            if damaged in ("log", "both"):
                log = overwrite(log, chance)
        if damaged == "cut":
            database = database[: chance.randrange(100, len(database) * 2)]
            log = log[: chance.randrange(len(log) + 1)]
        (tmp_path / "j").write_bytes(database)
        (tmp_path / "j-wal").write_bytes(log)
        outcome = taken_or_refused(tmp_path / "j")
        if isinstance(outcome, str):
            assert "name another --resume" in outcome
            refused += 1
        else:
            assert outcome.items() <= RECORDED.items()
            taken += len(outcome)
    assert taken > 1000
    assert refused > 10 or damaged == "log"  # a log ends where it is damaged


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE answers SET classes = '[3, 2]' WHERE image = 'a/2.png'",
        "UPDATE answers SET size = 2 WHERE image = 'a/2.png'",
        "UPDATE answers SET changed_ns = 11 WHERE image = 'a/2.png'",
        "UPDATE answers SET image = x'00' WHERE image = 'a/2.png'",
        "UPDATE answers SET role = 'reference' WHERE image = 'a/2.png'",
        "UPDATE answers SET checksum = x'' WHERE image = 'a/2.png'",
        "UPDATE models SET model = replace(model, 'aa', 'bb')",
        "DELETE FROM models",
    ],
)
def test_an_answer_that_changed_is_refused_as_the_journal_is_opened(
    tmp_path: Path, change: str
) -> None:
    path = written(tmp_path / "j", NAMES)
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        assert database.execute(change.replace("'a/2.png'", "CAST('a/2.png' AS BLOB)")).rowcount
    with pytest.raises(InputError, match=r"is damaged .* match its checksum.*delete it"):
        Journal(path)


def test_a_table_that_changed_is_damage(tmp_path: Path) -> None:
    path = written(tmp_path / "j", NAMES)
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("ALTER TABLE answers RENAME COLUMN size TO sise")
    with pytest.raises(InputError, match="is damaged .*size"):
        Journal(path)


@pytest.mark.parametrize("classes", ["", "[]", "[-1]", '"x"', "3", "[null]", "[" * 100_000])
def test_an_answer_that_is_none_is_refused(tmp_path: Path, classes: str) -> None:
    path = written(tmp_path / "j", NAMES)
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE answers SET classes = ?", (classes,))
    with pytest.raises(InputError, match="the journal is damaged"):
        Journal(path)


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
