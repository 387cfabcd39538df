"""Our own record of what was hashed: quick when nothing changed, never fooled by others."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path

import pytest

from vit_edge import trust
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


def test_a_hash_is_read_once_and_recognised_afterwards(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trust.check_hashes(folder, {"model.onnx": SHA256}, full=False)
    monkeypatch.setattr(trust, "sha256_of", lambda path: pytest.fail("read again"))
    trust.check_hashes(folder, {"model.onnx": SHA256}, full=False)
    assert trust.recorded_hashes(folder) == {"model.onnx": SHA256}


def test_a_changed_file_is_refused(folder: Path) -> None:
    trust.check_hashes(folder, {"model.onnx": SHA256}, full=False)
    (folder / "model.onnx").write_bytes(DATA[:-1] + b"X")
    with pytest.raises(IntegrityError, match=r"model\.onnx: sha256"):
        trust.check_hashes(folder, {"model.onnx": SHA256}, full=False)


def test_the_same_content_in_another_inode_is_hashed_again(folder: Path) -> None:
    trust.check_hashes(folder, {"model.onnx": SHA256}, full=False)
    (folder / "copy").write_bytes(DATA)
    (folder / "copy").replace(folder / "model.onnx")
    assert trust.recorded_hashes(folder) == {}
    trust.check_hashes(folder, {"model.onnx": SHA256}, full=False)


def test_full_reads_every_byte_whatever_the_record_says(folder: Path) -> None:
    """Only a full check sees a change that keeps size, time and inode."""
    trust.check_hashes(folder, {"model.onnx": SHA256}, full=False)
    before = (folder / "model.onnx").stat()
    with (folder / "model.onnx").open("r+b") as file:
        file.write(b"X")
    os.utime(folder / "model.onnx", ns=(before.st_atime_ns, before.st_mtime_ns))
    trust.check_hashes(folder, {"model.onnx": SHA256}, full=False)
    with pytest.raises(IntegrityError):
        trust.check_hashes(folder, {"model.onnx": SHA256}, full=True)


def test_the_record_is_the_users_alone(folder: Path) -> None:
    trust.check_hashes(folder, {"model.onnx": SHA256}, full=False)
    record = record_of(folder)
    assert record.stat().st_mode & 0o777 == 0o600
    record.chmod(0o666)
    assert trust.recorded_hashes(folder) == {}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"folder": 1}', '{"files": {"a": 1}}', "\0"])
def test_a_broken_record_is_not_believed(folder: Path, text: str) -> None:
    trust.check_hashes(folder, {"model.onnx": SHA256}, full=False)
    record_of(folder).write_text(text)
    assert trust.recorded_hashes(folder) == {}
    trust.check_hashes(folder, {"model.onnx": SHA256}, full=False)


def test_a_record_that_was_moved_to_another_bundle_is_not_believed(folder: Path) -> None:
    trust.check_hashes(folder, {"model.onnx": SHA256}, full=False)
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
        trust.check_hashes(folder, {"model.onnx": SHA256}, full=False)
    assert "XDG_STATE_HOME" in caplog.text
    assert trust.recorded_hashes(folder) == {}
