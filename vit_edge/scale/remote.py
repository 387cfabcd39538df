"""Files behind URLs: s3://, gs://, and whatever else pyarrow or fsspec opens."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple, cast
from urllib.request import url2pathname

import pyarrow as pa
from pyarrow import fs

from vit_edge.errors import ImageDecodeError, InputError, UsageError, VitEdgeError
from vit_edge.images.walk import is_system_folder, named_like_an_image

# A key is taken as it is written, as aws and s3fs do: "a b", "100%" and "#1" are names. A query is
# one only at the end and if all of it are settings, such as ?region=eu-central-1. The path of a
# file:// URL is quoted, as Python and browsers write it, and has no query: see `local_path`.
_URL = re.compile(
    r"(?P<root>[A-Za-z][A-Za-z0-9+.-]*://[^/?]*)/?(?P<key>.*?)"
    r"(?P<query>\?[a-z_]+=[^&/?]*(?:&[a-z_]+=[^&?]*)*)?",
    re.DOTALL,
)


class Found(NamedTuple):
    """A file of a listing, and what changes when it is written anew."""

    path: str
    version: str


def is_url(path: str) -> bool:
    """Tell a URL from a path."""
    return _URL.fullmatch(path) is not None


def key_of(path: str) -> str:
    """The key that a URL names, without its settings; a path as it is."""
    match = _URL.fullmatch(path)
    return match["key"] if match else path


def below(folder: str, name: str) -> str:
    """The path, or the URL with the folder's settings, of a file in a folder."""
    match = None if local_path(folder) is not None else _URL.fullmatch(folder)
    query = (match and match["query"]) or ""
    return f"{folder.removesuffix(query).rstrip('/')}/{name}{query}"


def local_path(url: str) -> str | None:
    """The path of a file:// URL; None for any other."""
    scheme, _, rest = url.partition("://")
    _, slash, path = rest.partition("/")
    return url2pathname(slash + path) if scheme.lower() == "file" else None


def opened(path: str) -> BinaryIO:
    """Open a file, here or behind a URL.

    Raises:
        InputError: It cannot be opened.
    """
    try:
        if not is_url(path):
            return Path(path).open("rb")
        files, inside = file_system(path)
        return cast(BinaryIO, files.open_input_file(inside))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{path}: cannot be opened: {error}") from error


def version_of(url: str) -> str:
    """What changes when the file behind a URL is written anew.

    Raises:
        UsageError: There is none.
    """
    files, inside = file_system(url)
    try:
        info = files.get_file_info(inside)
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"{url}: cannot be looked at: {error}") from error
    if info.type != fs.FileType.File:
        raise UsageError(f"{url}: no such file")
    return _version(info)


def walk_url(url: str) -> Iterator[Found]:
    """What is named like an image below a URL, sorted; or the one file that it is.

    Raises:
        UsageError: It cannot be listed.
    """
    files, inside = file_system(url)
    match = _URL.fullmatch(url)
    assert match is not None
    try:
        above = files.get_file_info(inside)
        if above.type == fs.FileType.File:
            yield Found(url, _version(above))
            return
        images = [
            (info.path, _version(info))
            for info in files.get_file_info(fs.FileSelector(inside, recursive=True))
            if info.type == fs.FileType.File and named_in_a_listing(info.path.removeprefix(inside))
        ]
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise UsageError(f"{url}: cannot be listed: {error}") from error
    root, query = match["root"], match["query"] or ""
    base = None if local_path(url) is not None else _file_system(root, query)[1]
    for path, version in sorted(images):
        if base is None:
            yield Found(f"{root}{path.replace('%', '%25')}", version)
        else:
            yield Found(f"{root}/{path.removeprefix(f'{base}/')}{query}", version)


def named_in_a_listing(path: str) -> bool:
    """Tell images from the rest, and from what systems leave beside them (`._a.jpg`)."""
    *folders, name = PurePosixPath(path).parts or ("",)
    return (
        named_like_an_image(name)
        and not name.startswith(".")
        and not any(is_system_folder(folder) for folder in folders if folder != "..")
    )


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
        """Read on; open it first.

        Raises:
            ImageDecodeError: It cannot be opened: an image that fails, and no job that ends.
        """
        if self._file is None:
            try:
                self._file = opened(self.name)
            except VitEdgeError as error:
                raise ImageDecodeError(str(error)) from error
        return self._file.read(size) if size >= 0 else self._file.read()


def _version(info: Any) -> str:
    return f"{info.size}-{info.mtime_ns}"


def file_system(url: str) -> tuple[fs.FileSystem, str]:
    """The file system of a URL, and the path in it; fsspec's where pyarrow has none.

    Raises:
        UsageError: Nothing installed here opens it, or it holds a password.
    """
    match = _URL.fullmatch(url)
    assert match is not None
    if (path := local_path(url)) is not None:
        return fs.LocalFileSystem(), path
    root = match["root"]
    if re.search("//[^/]*:[^/]*@", root):
        raise UsageError(
            f"{root.partition('//')[0]}//...: a URL with a password would be written into every "
            "row; give it by the environment, such as AWS_SECRET_ACCESS_KEY"
        )
    files, base = _file_system(root, match["query"] or "")
    if isinstance(files, fs.PyFileSystem):  # fsspec's, which takes URLs
        return files, files.handler.fs._strip_protocol(url)
    return files, f"{base}/{match['key']}".strip("/") if base else f"/{match['key']}"


@lru_cache(maxsize=64)  # connecting anew for each image would take longer than reading it
def _file_system(root: str, query: str) -> tuple[fs.FileSystem, str]:
    """A file system, and the path in it that a URL begins with."""
    try:
        files, base = fs.FileSystem.from_uri(f"{root}/{query}")
        return files, base.rstrip("/")
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as unknown:
        try:
            fsspec = importlib.import_module("fsspec")
            found, _ = fsspec.core.url_to_fs(f"{root}/")
        except (ImportError, ValueError) as error:
            raise UsageError(f"{root}: no file system for it: {unknown}; {error}") from error
        return fs.PyFileSystem(fs.FSSpecHandler(found)), found._strip_protocol(root).rstrip("/")
