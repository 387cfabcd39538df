"""The images of a large job, in segments: what one shard of answers is made of.

A segment names its images and does not hold them; it can be handed to another process, and says by
its digest whether its answers are there already.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import logging
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePath
from typing import Any, Literal, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from vit_edge.errors import ImageError, InputError, UsageError
from vit_edge.images.files import DEFAULT_LIMITS, read_source
from vit_edge.images.walk import Skipped, named_like_an_image, walk_images
from vit_edge.scale import ROWS, archives
from vit_edge.scale.archives import HELD_BYTES, printable, text_of
from vit_edge.scale.remote import Found, is_url, key_of, opened, version_of, walk_url

_LOG = logging.getLogger("vit_edge")
_T = TypeVar("_T")

_AT_ONCE = 256  # rows in memory, at most
_BUFFER_BYTES = 4 << 20  # of a column that is read; without it a row group's whole column is held
_LISTS = (".txt", ".lst")
_UNREADABLE = (0, -1)  # row groups of a Parquet file whose footer cannot be read
_ASIDE = ("_", ".")  # what begins so is no data in a folder of Parquet files
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

_Kind = Literal["parquet", "tar", "list", "url", "folder", "image"]


class _Input(NamedTuple):
    given: str
    kind: _Kind


@dataclass(frozen=True)
class Segment:
    """Rows of one Parquet file, the members of a tar file, or paths."""

    paths: tuple[str, ...]  # of images; or one Parquet or tar file
    kind: str = "paths"  # or parquet, tar
    groups: tuple[int, int] = (0, 0)  # row groups of the Parquet file: from, to
    version: str = ""  # what changes when a file of it is written anew

    @property
    def digest(self) -> str:
        """Tell segments apart: the same images in the same order have the same."""
        parts = repr((self.kind, self.groups, self.version, self.paths))
        return hashlib.sha256(parts.encode(errors="surrogateescape")).hexdigest()[:16]

    @property
    def name(self) -> str:
        """What messages call it."""
        more = f" and {len(self.paths) - 1:,} more" if len(self.paths) > 1 else ""
        return self.paths[0] + more

    def tables(self) -> Iterator[pa.Table]:
        """Read the rows, some at a time.

        Raises:
            InputError: The Parquet or tar file is damaged.
        """
        if self.kind == "parquet":
            yield from _parquet_tables(self)
        elif self.kind == "tar":
            yield from archives.tar_tables(self.paths[0], _AT_ONCE)
        else:
            for start in range(0, len(self.paths), _AT_ONCE):
                yield _path_table(self.paths[start : start + _AT_ONCE])


def segments(inputs: Sequence[str], rows: int = ROWS) -> Iterator[Segment]:
    """Cut inputs into segments, lazily, in the order given.

    Args:
        inputs: Directories, Parquet files with a column path or bytes, tar files, lists of paths
            (.txt, or - for stdin), images; or URLs of them, such as s3://bucket/photos/.
        rows: Of a segment, at most; of a Parquet file at least a row group, of a tar file all.

    Raises:
        UsageError: There is no such input, or it is nothing of these. That is said now.
    """
    if rows < 1:
        raise UsageError(f"a shard of {rows} rows: expected 1 or more")
    return _segments([_input(given) for given in inputs], rows)


def _input(given: str) -> _Input:
    """What an input is."""
    if given == "-":
        return _Input(given, "list")
    if not given:
        raise UsageError("an input is the empty text; for the working directory write .")
    if is_url(given):
        return _Input(given, _kind_of_name(key_of(given)) or "url")
    path = Path(given)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{printable(given)}: {str(reason).lower()}") from None
    suffix = path.suffix.lower()
    if stat.S_ISDIR(mode):
        return _Input(given, "parquet" if suffix == ".parquet" else "folder")
    if stat.S_ISFIFO(mode):
        return _Input(given, "list")
    if not stat.S_ISREG(mode):
        raise UsageError(f"{given}: a device or a socket, and no file")
    kind = _kind_of_name(given)
    if kind is None:
        if suffix and not named_like_an_image(given):
            raise UsageError(
                f"{printable(given)}: expected a directory, .parquet, .tar, a list of paths "
                "(.txt), or an image"
            )
        kind = "image"
    return _Input(given, kind)


def _kind_of_name(name: str) -> _Kind | None:
    suffix = PurePath(name).suffix.lower()
    if suffix == ".parquet":
        return "parquet"
    if name.lower().endswith(archives.SUFFIXES):
        return "tar"
    return "list" if suffix in _LISTS else None


def _segments(inputs: Sequence[_Input], rows: int) -> Iterator[Segment]:
    plain: list[_Input] = []
    for known in inputs:
        if known.kind not in ("parquet", "tar"):
            plain.append(known)
            continue
        yield from _cut(plain, rows)
        plain = []
        if known.kind == "tar":
            yield Segment((known.given,), "tar", version=_version(known.given))
        else:
            files = _parquet_files(known.given)
            cut = (segment for file in files for segment in _parquet_segments(file, rows))
            yield from _told_if_none(known.given, cut)
    yield from _cut(plain, rows)


def _cut(inputs: Sequence[_Input], rows: int) -> Iterator[Segment]:
    images = (image for known in inputs for image in _told_if_none(known.given, _images(known)))
    while part := tuple(islice(images, rows)):
        versions = hashlib.sha256("\n".join(image.version for image in part).encode())
        yield Segment(tuple(image.path for image in part), version=versions.hexdigest())


def _told_if_none(given: str, found: Iterator[_T]) -> Iterator[_T]:
    """Say of an input that it has nothing: beside others nobody would see it."""
    first = next(found, None)
    if first is None:
        _LOG.warning("%s: no images", printable(given))
        return
    yield first
    yield from found


def _images(known: _Input) -> Iterator[Found]:
    """The images of a directory, of a list, or one."""
    if known.kind == "url":
        return walk_url(known.given)
    if known.kind == "folder":
        return (Found(path, _version_if_there(path)) for path in _walked(Path(known.given)))
    paths = _lines(known.given) if known.kind == "list" else [known.given]
    return (Found(path, "" if is_url(path) else _version_if_there(path)) for path in paths)


def _walked(folder: Path) -> Iterator[str]:
    skipped = Skipped()
    yield from map(str, walk_images(folder, skipped))
    skipped.say(folder)  # also folders that cannot be read


def _lines(given: str) -> Iterator[str]:
    """Lines of a list, whatever ends them and whatever the locale.

    Raises:
        InputError: It is in UTF-16, as PowerShell writes it.
    """
    if given == "-":
        yield from _texts(given, sys.stdin.buffer)
        return
    with opened(given) as file:
        # A file of pyarrow's gives no lines.
        yield from _texts(given, io.BufferedReader(_Raw(file)) if is_url(given) else file)


class _Raw(io.RawIOBase):
    """A file of pyarrow's, as Python's own readers want it."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _texts(given: str, lines: Iterable[bytes]) -> Iterator[str]:
    for number, line in enumerate(lines):
        if number == 0:
            if line.startswith(_UTF_16):
                raise InputError(f"{given}: this list is in UTF-16; save it in UTF-8")
            line = line.removeprefix(codecs.BOM_UTF8)
        if line.strip():
            yield os.fsdecode(line.rstrip(b"\r\n"))


def _version(path: str) -> str:
    if is_url(path):
        return version_of(path)
    try:
        return _version_of_status(Path(path).stat())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None


def _version_if_there(path: str) -> str:
    try:
        return _version_of_status(os.stat(path))  # noqa: PTH116 - a million of them
    except (OSError, ValueError):
        return "absent"


def _version_of_status(status: os.stat_result) -> str:
    return f"{status.st_size}-{status.st_mtime_ns}"


def _path_table(paths: Sequence[str]) -> pa.Table:
    table = pa.table({"path": text_of(paths)})
    if all(printable(path) == path for path in paths):
        return table
    # A table cannot hold a name that is no UTF-8, so it holds what is in the file.
    images = [
        {"path": printable(path), "bytes": None if printable(path) == path else _content(path)}
        for path in paths
    ]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return table.append_column("image", pa.array(images, kind))


def _content(path: str) -> bytes | None:
    try:
        return read_source(path, path, DEFAULT_LIMITS)
    except ImageError:
        return None


def _parquet_files(given: str) -> list[str]:
    """The file; or those below a folder, as Spark and Dask write them, without what they put aside.

    A folder that cannot be listed is among them: it cannot be read as Parquet, which is said.
    """
    if is_url(given) or not Path(given).is_dir():
        return [given]
    found: list[str] = []
    refused: list[OSError] = []
    for path, folders, files in os.walk(given, onerror=refused.append):
        folders[:] = [name for name in folders if not name.startswith(_ASIDE)]
        found += [
            str(Path(path, name))
            for name in files
            if name.lower().endswith(".parquet") and not name.startswith(_ASIDE)
        ]
    return sorted([*found, *(error.filename for error in refused)])


def _parquet_segments(given: str, rows: int) -> Iterator[Segment]:
    """Row groups, together as long as they are fewer rows than a segment."""
    version = _version(given)
    try:
        with _parquet(given) as file:
            counts = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    except InputError:  # said when it is read, so that the others are answered
        yield Segment((given,), "parquet", _UNREADABLE, version)
        return
    first = held = 0
    for index, count in enumerate(counts):
        if held and held + count > rows:
            yield Segment((given,), "parquet", (first, index), version)
            first, held = index, 0
        held += count
    if held:
        yield Segment((given,), "parquet", (first, len(counts)), version)


def _parquet_tables(segment: Segment) -> Iterator[pa.Table]:
    path, groups = segment.paths[0], range(*segment.groups)
    try:
        with _parquet(path) as file:
            if segment.groups == _UNREADABLE:
                raise InputError(f"{path}: cannot be read as Parquet: it was written meanwhile")
            for group in groups:
                about = file.metadata.row_group(group)
                row_bytes = about.total_byte_size // max(about.num_rows, 1)
                at_once = max(1, min(_AT_ONCE, HELD_BYTES // max(row_bytes, 1)))
                for batch in file.iter_batches(at_once, row_groups=[group]):
                    yield pa.Table.from_batches([batch])
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: cannot be read as Parquet: {error}") from error


def _parquet(path: str) -> pq.ParquetFile:
    try:
        file = opened(path) if is_url(path) else path
        return pq.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER_BYTES)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: cannot be read as Parquet: {error}") from error
