"""What the machine refuses: a typed error with a remedy, and no traceback."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest

from vit_edge import cli
from vit_edge.cli.refusals import refusal_of_machine


def raising(error: BaseException) -> int:
    raise error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "TMPDIR"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), "/x/y: No space"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "TMPDIR"),
        (OSError(errno.EMFILE, "Too many open files", "/x"), "ulimit -n"),
        (OSError(errno.ENFILE, "Too many open files in system"), "ulimit -n"),
        (PermissionError(errno.EACCES, "Permission denied", b"/x"), "/x: Permission denied"),
        (OSError(errno.EROFS, "Read-only file system", "/x"), "/x: Read-only"),
        (FileNotFoundError(errno.ENOENT, "No usable temporary directory found"), "TMPDIR"),
        (MemoryError(), "out of memory"),
        (MemoryError("Unable to allocate 8 GiB"), "Unable to allocate 8 GiB"),
    ],
)
def test_a_refusal_of_the_machine_is_no_bug_of_ours(
    error: OSError | MemoryError, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.guarded(lambda: raising(error)) == 3
    printed = capsys.readouterr().err
    assert printed.startswith("ResourceError: ")
    assert words in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    "error", [FileNotFoundError(errno.ENOENT, "No such file", "x"), OSError(errno.EINVAL, "x")]
)
def test_what_may_be_our_fault_keeps_its_traceback(error: OSError) -> None:
    assert refusal_of_machine(error) is None
    with pytest.raises(OSError):
        cli.guarded(lambda: raising(error))


def test_paths_that_no_system_takes_are_said_to_be_that(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["verify", "x" * 300]) == 3
    assert cli.main(["verify", str(tmp_path / "/".join(["x" * 200] * 40))]) == 3
    assert capsys.readouterr().err.count("Error: ") == 2


def test_no_folder_for_temporary_files_is_said_to_be_that(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc/none"])
    assert cli.guarded(lambda: len(tempfile.gettempdir())) == 3
    assert "TMPDIR" in capsys.readouterr().err


def test_a_working_directory_that_is_gone_is_said_to_be_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert cli.guarded(lambda: len(os.getcwd())) == 3  # noqa: PTH109
    assert "go to a directory that is there" in capsys.readouterr().err


def test_as_many_files_may_be_open_as_the_system_allows() -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    try:
        assert cli.main(["--help"]) == 0
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
