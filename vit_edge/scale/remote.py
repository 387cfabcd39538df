"""Files behind URLs: s3://, gs://, and whatever else pyarrow or fsspec opens."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa
from pyarrow import fs

from vit_edge.errors import InputError, UsageError
from vit_edge.images.walk import named_like_an_image

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_url(path: str) -> bool:
    """Tell a URL from a path."""
    return _URL.match(path) is not None


def opened(path: str) -> BinaryIO:
    """Open a file, here or behind a URL.

    Raises:
        InputError: It cannot be opened.
    """
    try:
        if not is_url(path):
            return Path(path).open("rb")
        files, inside = _files(path)
        return cast(BinaryIO, files.open_input_file(inside))
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: cannot be opened: {error}") from error


def walk_url(url: str) -> Iterator[str]:
    """What is named like an image below a URL, sorted; or the one file that it is.

    Raises:
        UsageError: There is nothing.
    """
    files, inside = _files(url)
    scheme = _URL.match(url)
    assert scheme is not None
    try:
        if files.get_file_info(inside).type == fs.FileType.File:
            yield url
            return
        listed = files.get_file_info(fs.FileSelector(inside, recursive=True))
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"{url}: cannot be listed: {error}") from error
    for path in sorted(info.path for info in listed if info.type == fs.FileType.File):
        if named_like_an_image(path):
            yield f"{scheme[0]}{path}"


class RemoteFile:
    """A file behind a URL, opened when it is read: in the thread that decodes it."""

    def __init__(self, url: str) -> None:
        """Remember where it is."""
        self.name = url
        self._file: BinaryIO | None = None

    def seekable(self) -> bool:
        """It is read once."""
        return False

    def read(self, size: int = -1) -> bytes:
        """Read on; open it first."""
        if self._file is None:
            self._file = opened(self.name)
        return self._file.read(size) if size >= 0 else self._file.read()


def _files(url: str) -> tuple[fs.FileSystem, str]:
    """The file system of a URL, and the path in it; fsspec's where pyarrow has none."""
    try:
        return fs.FileSystem.from_uri(url)  # type: ignore[no-any-return]
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as unknown:
        try:
            fsspec = importlib.import_module("fsspec")
            found, inside = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise UsageError(f"{url}: no file system for it: {unknown}; {error}") from error
        return fs.PyFileSystem(fs.FSSpecHandler(found)), inside
