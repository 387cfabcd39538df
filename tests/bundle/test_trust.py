"""Our own record of what was hashed: quick when nothing changed, never fooled by others."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path

import pytest

from vit_edge.bundle import trust
from vit_edge.errors import IntegrityError

DATA = b"weights" * 1000
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    made = tmp_path / "bundle"
    made.mkdir()
    (made / "model.onnx").write_bytes(DATA)
    return made


def record_of(folder: Path) -> Path:
    (record,) = (folder.parent / "state").rglob("*.json")
    return record


def learn(folder: Path) -> None:
    trust.record(folder, trust.fingerprints(folder, ["model.onnx"]))


def test_a_file_that_was_hashed_is_recognised_without_reading_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert trust.recorded_hashes(folder) == {}
    learn(folder)
    monkeypatch.setattr(trust, "sha256_of", lambda path: pytest.fail("read again"))
    assert trust.recorded_hashes(folder) == {"model.onnx": SHA256}


def test_a_changed_file_is_not_recognised(folder: Path) -> None:
    learn(folder)
    (folder / "model.onnx").write_bytes(DATA[:-1] + b"X")
    assert trust.recorded_hashes(folder) == {}


def test_the_same_content_in_another_inode_is_not_recognised(folder: Path) -> None:
    learn(folder)
    (folder / "copy").write_bytes(DATA)
    (folder / "copy").replace(folder / "model.onnx")
    assert trust.recorded_hashes(folder) == {}


def test_setting_the_time_back_does_not_help(folder: Path) -> None:
    learn(folder)
    before = (folder / "model.onnx").stat()
    with (folder / "model.onnx").open("r+b") as file:
        file.write(b"X")
    os.utime(folder / "model.onnx", ns=(before.st_atime_ns, before.st_mtime_ns))
    after = (folder / "model.onnx").stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert trust.recorded_hashes(folder) == {}


def test_a_file_swapped_after_it_was_hashed_is_not_vouched_for(folder: Path) -> None:
    known = trust.fingerprints(folder, ["model.onnx"])
    (folder / "model.onnx").write_bytes(b"Y" * len(DATA))
    trust.record(folder, known)
    assert trust.recorded_hashes(folder) == {}


def test_a_file_that_changes_while_it_is_hashed_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hash_and_change(path: Path) -> str:
        path.write_bytes(b"Y" * len(DATA))
        return SHA256

    monkeypatch.setattr(trust, "sha256_of", hash_and_change)
    with pytest.raises(IntegrityError, match="changed while"):
        trust.fingerprints(folder, ["model.onnx"])
    with pytest.raises(IntegrityError, match="cannot be read"):
        trust.fingerprints(folder, ["absent"])


def test_nobody_at_home_costs_time_and_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setattr(Path, "home", nobody)
    with caplog.at_level(logging.WARNING):
        learn(folder)
    assert "no home directory" in caplog.text
    assert trust.recorded_hashes(folder) == {}


def test_the_record_is_the_users_alone(folder: Path) -> None:
    learn(folder)
    record = record_of(folder)
    assert record.stat().st_mode & 0o777 == 0o600
    record.chmod(0o666)
    assert trust.recorded_hashes(folder) == {}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"folder": 1}', '{"files": {"a": 1}}', "\0"])
def test_a_broken_record_is_not_believed(folder: Path, text: str) -> None:
    learn(folder)
    record_of(folder).write_text(text)
    assert trust.recorded_hashes(folder) == {}
    learn(folder)


def test_a_record_that_was_moved_to_another_bundle_is_not_believed(folder: Path) -> None:
    learn(folder)
    record = record_of(folder)
    data = json.loads(record.read_text())
    record.write_text(json.dumps(data | {"folder": "/elsewhere"}))
    assert trust.recorded_hashes(folder) == {}


def test_an_unwritable_state_directory_costs_time_and_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (folder.parent / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(folder.parent / "file"))
    with caplog.at_level(logging.WARNING):
        learn(folder)
    assert "XDG_STATE_HOME" in caplog.text
    assert trust.recorded_hashes(folder) == {}
