"""Files are there whole or not at all; what is no file stays what it is; locks where there are."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
from pathlib import Path

import pytest

from vit_edge.bench.results.results import appending
from vit_edge.bundle.staging import staged
from vit_edge.errors import ResourceError
from vit_edge.machine.files import aside, lock


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_at_the_end_and_an_error_leaves_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with aside(path) as file:
        file.write(b"old")
        assert not path.exists()
    with pytest.raises(ZeroDivisionError), aside(path) as file:
        file.write(b"new")
        raise ZeroDivisionError
    assert (path.read_bytes(), names(tmp_path)) == (b"old", ["file"])


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path: Path) -> None:
    path, link = tmp_path / "file", tmp_path / "link"
    path.write_bytes(b"old")
    link.symlink_to(path.name)
    with aside(link) as file:
        file.write(b"new")
    assert (link.is_symlink(), path.read_bytes()) == (True, b"new")


@pytest.mark.parametrize(("mode", "expected"), [(0o666, 0o640), (0o600, 0o600)])
def test_permissions_are_those_of_the_umask_or_fewer(
    mode: int, expected: int, tmp_path: Path
) -> None:
    before = os.umask(0o027)
    try:
        with aside(tmp_path / "file", mode):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == expected


def test_a_pipe_stays_a_pipe_and_gets_the_text(tmp_path: Path) -> None:
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()), daemon=True)
    reader.start()
    with aside(pipe) as file:
        file.write(b"text")
    reader.join(timeout=30)
    assert (got, pipe.is_fifo(), names(tmp_path)) == ([b"text"], True, ["pipe"])


def test_a_stream_of_this_process_is_written_to_also_where_it_is_a_file(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as file:
        file.write(b"before ")
        file.flush()
        with aside(Path(f"/dev/fd/{file.fileno()}")) as stream:
            stream.write(b"after")
        same = os.fstat(file.fileno()).st_ino == log.stat().st_ino
    assert (log.read_bytes(), same) == (b"before after", True)


def test_a_folder_has_one_holder(tmp_path: Path) -> None:
    first, second = (os.open(tmp_path, os.O_RDONLY) for _ in range(2))
    try:
        assert lock(first)
        with pytest.raises(BlockingIOError):
            lock(second)
        os.close(first)
        first = os.dup(second)
        assert lock(second)
    finally:
        os.close(first)
        os.close(second)


def test_results_have_one_writer(tmp_path: Path) -> None:
    with (
        appending(tmp_path / "results.json"),
        pytest.raises(ResourceError, match="another benchmark"),
        appending(tmp_path / "other.json"),
    ):
        pass


def test_a_file_system_without_locks_is_written_to_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with staged(tmp_path / "folder", option="--out") as stage:
        (stage / "file").touch()
        with staged(tmp_path / "other", option="--out"):
            assert stage.exists()  # not swept: nobody can tell whether it is in use
    with appending(tmp_path / "results.json"):
        pass
    assert names(tmp_path) == ["folder", "other"]
