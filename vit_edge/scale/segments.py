"""The images of a large job, in segments: what one shard of answers is made of.

A segment names its images and does not hold them; it can be handed to another process, and says by
its digest whether its answers are there already.
"""

from __future__ import annotations

import hashlib
import sys
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vit_edge.errors import InputError, UsageError
from vit_edge.images.walk import named_like_an_image, walk_images
from vit_edge.scale.remote import is_url, opened, walk_url

ROWS = 5000  # of a segment
_AT_ONCE = 256  # rows in memory
_LISTS = (".txt", ".lst")


@dataclass(frozen=True)
class Segment:
    """Rows of one Parquet file, the members of a tar file, or paths."""

    paths: tuple[str, ...]  # of images; or one Parquet or tar file
    kind: str = "paths"  # or parquet, tar
    groups: tuple[int, int] = (0, 0)  # row groups of the Parquet file: from, to
    version: str = ""  # of the file: its size and time

    @property
    def digest(self) -> str:
        """Tell segments apart: the same images in the same order have the same."""
        parts = [self.kind, str(self.groups), self.version, *self.paths]
        return hashlib.sha256("\0".join(parts).encode(errors="surrogateescape")).hexdigest()[:16]

    @property
    def name(self) -> str:
        """What messages call it."""
        more = f" and {len(self.paths) - 1:,} more" if len(self.paths) > 1 else ""
        return self.paths[0] + more

    def tables(self) -> Iterator[pa.Table]:
        """Read the rows, some at a time."""
        if self.kind == "parquet":
            yield from _parquet_tables(self)
        elif self.kind == "tar":
            yield from _tar_tables(self.paths[0])
        else:
            for start in range(0, len(self.paths), _AT_ONCE):
                yield pa.table({"path": _text(self.paths[start : start + _AT_ONCE])})


def segments(inputs: Sequence[str], rows: int = ROWS) -> Iterator[Segment]:
    """Cut inputs into segments, lazily, in the order given.

    Args:
        inputs: Directories, Parquet files with a column path or bytes, tar files, lists of paths
            (.txt, or - for stdin), images; or URLs of them, such as s3://bucket/photos/.
        rows: Of a segment, at most; of a Parquet file at least a row group, of a tar file all.

    Raises:
        UsageError: There is no such input.
    """
    if rows < 1:
        raise UsageError(f"a shard of {rows} rows: expected 1 or more")
    plain: list[str] = []
    for given in inputs:
        suffix = Path(given).suffix.lower()
        if suffix not in (".parquet", ".tar"):
            plain.append(given)
            continue
        yield from _cut(plain, rows)
        plain = []
        yield from _parquet_segments(given, rows) if suffix == ".parquet" else [_tar(given)]
    yield from _cut(plain, rows)


def _cut(inputs: Sequence[str], rows: int) -> Iterator[Segment]:
    paths = iter(path for given in inputs for path in _paths(given))
    while part := tuple(islice(paths, rows)):
        yield Segment(part)


def _paths(given: str) -> Iterable[str]:
    """The images of a directory, of a list, or one."""
    if given == "-":
        return (line.rstrip("\n") for line in sys.stdin if line.strip())
    if is_url(given):
        return walk_url(given)
    path = Path(given)
    if path.is_dir():
        return map(str, walk_images(path))
    if not path.exists():
        raise UsageError(f"{given}: no such file or directory")
    return _lines(path) if path.suffix.lower() in _LISTS else [given]


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8", errors="surrogateescape") as file:
        yield from (line.rstrip("\n") for line in file if line.strip())


def _version(path: str) -> str:
    """What changes when a file is written anew."""
    if is_url(path):
        return ""
    try:
        status = Path(path).stat()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    return f"{status.st_size}-{status.st_mtime_ns}"


def _tar(given: str) -> Segment:
    return Segment((given,), "tar", version=_version(given))


def _parquet_segments(given: str, rows: int) -> Iterator[Segment]:
    """Row groups, together as long as they are fewer rows than a segment."""
    version = _version(given)
    with _parquet(given) as file:
        counts = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    first = held = 0
    for index, count in enumerate(counts):
        if held and held + count > rows:
            yield Segment((given,), "parquet", (first, index), version)
            first, held = index, 0
        held += count
    if held:
        yield Segment((given,), "parquet", (first, len(counts)), version)


def _parquet_tables(segment: Segment) -> Iterator[pa.Table]:
    with _parquet(segment.paths[0]) as file:
        batches = file.iter_batches(_AT_ONCE, row_groups=range(*segment.groups))
        for batch in batches:
            yield pa.Table.from_batches([batch])


def _parquet(path: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(opened(path) if is_url(path) else path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: cannot be read as Parquet: {error}") from error


def _tar_tables(path: str) -> Iterator[pa.Table]:
    """The members that are named like images, in the order of the archive."""
    names: list[str] = []
    images: list[bytes] = []
    try:
        with opened(path) as file, tarfile.open(fileobj=file, mode="r|*") as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isfile() else None
                if content is None or not named_like_an_image(member.name):
                    continue
                names.append(f"{path}/{member.name}")
                images.append(content.read())
                if len(names) == _AT_ONCE:
                    yield _member_table(names, images)
                    names, images = [], []
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InputError(f"{path}: cannot be read as a tar file: {error}") from error
    yield _member_table(names, images)


def _member_table(names: Sequence[str], images: Sequence[bytes]) -> pa.Table:
    return pa.table({"path": _text(names), "bytes": pa.array(images, pa.binary())})


def _text(paths: Sequence[str]) -> pa.Array:
    """Names as text; bytes that are no UTF-8 stay visible."""
    return pa.array([_printable(path) for path in paths], pa.string())


def _printable(path: str) -> str:
    try:
        path.encode()
    except UnicodeEncodeError:
        return path.encode(errors="surrogateescape").decode(errors="backslashreplace")
    return path
