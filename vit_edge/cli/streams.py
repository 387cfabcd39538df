"""The standard streams of a command: any encoding, and streams that are closed, full or ended."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO, cast

from vit_edge.errors import ResourceError


class ReaderGoneError(BrokenPipeError):
    """Whoever read our output has gone away, as `head` does; no fault of anybody's."""


@contextlib.contextmanager
def prepared_streams() -> Iterator[None]:
    """Make stdout and stderr such that printing fails in two ways only.

    What a stream's encoding lacks is printed as an escape. Where stderr cannot be written, messages
    are lost and nothing else is. A closed stream is one that nobody wants to read. Where stdout is
    a pipe whose reader has gone, printing raises ReaderGoneError; where it cannot be written for
    another reason, ResourceError, because the result is lost.
    """
    _occupy_closed()
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w", encoding="utf-8") as nothing:  # noqa: PTH123
        out, err = (nothing if stream is None else stream for stream in before)
        sys.stdout = cast(TextIO, _Stream(out, _refuse))
        sys.stderr = cast(TextIO, _Stream(err, _overlook))
        try:
            yield
        finally:
            sys.stderr.flush()
            sys.stdout, sys.stderr = before


class _Stream:
    """A text stream that escapes what its encoding lacks, and has its own way to fail."""

    def __init__(self, stream: TextIO, failed: Callable[[OSError], None]) -> None:
        self._stream = stream
        self._failed = failed

    def write(self, text: str) -> int:
        """Write text; report all of it as written."""
        try:
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                encoding = self._stream.encoding or "ascii"
                self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except OSError as error:
            self._give_up(error)
        return len(text)

    def flush(self) -> None:
        """Hand on what was written."""
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _give_up(self, error: OSError) -> None:
        """Throw away what waits to be written: Python would fail over it again at its end."""
        with contextlib.suppress(OSError, ValueError):  # it may have no descriptor
            _redirect(self._stream.fileno())
        self._failed(error)


def _refuse(error: OSError) -> None:
    if isinstance(error, BrokenPipeError):
        raise ReaderGoneError from error
    raise ResourceError(
        f"stdout cannot be written: {error.strerror}. Of the result, a part or all is lost; send "
        "it somewhere else"
    ) from error


def _overlook(error: OSError) -> None:
    """Messages that nobody can read do not change what comes of a command."""


def _occupy_closed() -> None:
    """Open the null device where a standard stream is closed: else a file of ours takes its number.

    Whatever a library then prints would end up in that file.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError as error:
            if error.errno == errno.EBADF:
                os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one


def _redirect(number: int) -> None:
    handle = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(handle, number)
    finally:
        os.close(handle)
