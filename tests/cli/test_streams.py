"""Printing on any terminal, and into streams that are closed, full or have ended."""

from __future__ import annotations

import errno
import importlib
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vit_edge import __main__ as predict
from vit_edge import cli, inspect, verify
from vit_edge.bundle import Bundle
from vit_edge.errors import BundleError

requires = ("onnxruntime",)

TEXT = "K\xe4fer \u732b \U0001f408 \u20ac latin-\udce9"
PRINTED = {
    "ascii": "K\\xe4fer \\u732b \\U0001f408 \\u20ac latin-\\udce9",
    "latin-1": "K\xe4fer \\u732b \\U0001f408 \\u20ac latin-\\udce9",
    "cp1252": "K\xe4fer \\u732b \\U0001f408 \u20ac latin-\\udce9",
    "shift_jis": "K\\xe4fer \u732b \\U0001f408 \\u20ac latin-\\udce9",
    "utf-8": "K\xe4fer \u732b \U0001f408 \u20ac latin-\\udce9",
    "utf-16": "K\xe4fer \u732b \U0001f408 \u20ac latin-\\udce9",
}


def stream(encoding: str) -> tuple[io.TextIOWrapper, io.BytesIO]:
    """A terminal of this encoding, as strict as Python's stdout, and what is shown on it."""
    shown = io.BytesIO()
    return io.TextIOWrapper(shown, encoding, errors="strict"), shown


def say(text: str) -> Callable[[], int]:
    """A command that prints this."""

    def run() -> int:
        print(text)
        return 0

    return run


def fail() -> int:
    """A command that has nothing to do with streams."""
    print(TEXT)
    raise BundleError(TEXT)


@pytest.mark.parametrize("encoding", PRINTED)
def test_what_an_encoding_lacks_is_escaped(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (out, shown), (err, told) = stream(encoding), stream(encoding)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    assert cli.guarded(fail) == 3
    out.flush()
    err.flush()
    assert shown.getvalue().decode(encoding) == PRINTED[encoding] + "\n"
    assert told.getvalue().decode(encoding) == f"BundleError: {PRINTED[encoding]}\n"
    assert sys.stdout is out  # as it was
    assert sys.stderr is err


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_verbs_print_names_that_the_terminal_lacks(
    testing_bundle: Bundle,
    photos: list[Path],
    tmp_path: Path,
    encoding: str,
    options: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "b\xfcndel \u732b"
    shutil.copytree(testing_bundle.path, folder)
    photo = Path(os.fsdecode(os.fsencode(tmp_path) + b"/latin-\xe9 \xe7\x8c\xab.jpg"))
    shutil.copyfile(photos[0], photo)
    out, shown = stream(encoding)
    monkeypatch.setattr(sys, "stdout", out)
    for main in (verify.main, inspect.main):
        assert main([str(folder), *options]) == 0
    assert predict.main([str(folder), str(photo), *options]) == 0
    out.flush()
    text = shown.getvalue().decode(encoding)
    assert "\\u732b" in text
    assert "\\udce9" in text


@pytest.mark.parametrize("verb", sorted(cli.VERBS))
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_help_into_a_full_disk_is_an_error_without_a_traceback(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Path("/dev/full").open("w", encoding="ascii") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert importlib.import_module(cli.VERBS[verb]).main(["--help"]) == 3
    assert "stdout cannot be written: No space left on device" in capsys.readouterr().err


class Broken(io.StringIO):
    """A stream that fails, at once or when it is flushed."""

    def __init__(self, code: int, *, late: bool) -> None:
        super().__init__()
        self.error = OSError(code, os.strerror(code))
        self.late = late

    def write(self, text: str) -> int:
        if not self.late:
            raise self.error
        return len(text)

    def flush(self) -> None:
        if self.late:
            raise self.error


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    ("code", "exit_code"),
    [(errno.EPIPE, 0), (errno.ENOSPC, 3), (errno.EBADF, 3), (errno.EIO, 3), (errno.EDQUOT, 3)],
)
def test_a_stdout_that_fails_has_an_exit_code(
    code: int,
    exit_code: int,
    late: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "stdout", Broken(code, late=late))
    assert cli.guarded(say("x")) == exit_code
    assert ("ResourceError: stdout cannot" in capsys.readouterr().err) == (exit_code == 3)
    if late:  # the first fault is the one that is told
        assert cli.guarded(fail) == 3
        assert "BundleError" in capsys.readouterr().err


@pytest.mark.parametrize("late", [False, True])
def test_a_stderr_that_fails_changes_nothing(
    late: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", Broken(errno.ENOSPC, late=late))
    assert cli.guarded(fail) == 3
    assert cli.guarded(say("x")) == 0
    assert capsys.readouterr().out.endswith("x\n")


def test_messages_do_not_end_up_in_the_result_where_stderr_is_closed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert cli.main(["verify", "nowhere"]) == 3
    assert not capsys.readouterr().out
    monkeypatch.setattr(sys, "stdout", None)
    assert cli.main(["verify", "nowhere"]) == 3
    assert cli.guarded(say("x")) == 0


def test_a_pipe_of_others_that_breaks_is_no_success() -> None:
    def run() -> int:
        raise BrokenPipeError(errno.EPIPE, "a socket")

    with pytest.raises(BrokenPipeError):
        cli.guarded(run)


SCRIPT = """
import contextlib, os, sys
from vit_edge import cli
def run():
    with open(sys.argv[1], "w") as file:
        with contextlib.suppress(OSError):
            os.write(1, b"a library prints")
        file.write("content")
    print("result")
    print("message", file=sys.stderr)
    return 0
sys.exit(cli.guarded(run))
"""


@pytest.mark.parametrize(
    ("redirection", "exit_code"),
    [
        ("<&- >&- 2>&-", 0),
        (">&-", 0),
        ("2>&-", 0),
        (">/dev/full", 3),
        ("2>/dev/full", 0),
        (">/dev/full 2>&1", 3),
    ],
)
def test_a_process_ends_with_its_own_exit_code_and_keeps_its_files_clean(
    redirection: str, exit_code: int, tmp_path: Path
) -> None:
    if "/dev/full" in redirection and not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    file = tmp_path / "file"
    command = 'exec "$0" -c "$1" "$2" ' + redirection
    done = subprocess.run(
        ["/bin/sh", "-c", command, sys.executable, SCRIPT, str(file)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    # 120 is Python's own, for what it could not flush at its end
    assert done.returncode == exit_code, done.stderr
    assert file.read_text() == "content"
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
