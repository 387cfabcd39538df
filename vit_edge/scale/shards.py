"""Shards of answers: files that are there whole or not at all, and the folder that holds them."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vit_edge.bundle import Bundle
from vit_edge.errors import InputError, ResourceError, UsageError
from vit_edge.predictor import DEFAULT_TOP_K
from vit_edge.scale.segments import Segment
from vit_edge.scale.tables import Classifier

_LOG = logging.getLogger("vit_edge")

RECORD = "run.json"
SUSPECTS = ".suspects"
_SUPERSEDED = ".superseded"
_METADATA = b"vit_edge"
_GROUP_BYTES = 32 << 20  # of a row group: few of them are read faster
_NAME = re.compile(r"part-(\d+)-([0-9a-f]{16})\.parquet")
# Of Classifier, with its defaults: what decides the rows, and so belongs to a run.
_DECIDING = {
    "images": None, "keep_images": False, "prefix": "", "top_k": DEFAULT_TOP_K, "backend": "auto",
}  # fmt: skip


@dataclass(frozen=True)
class Shard:
    """One file of answers."""

    path: str
    rows: int
    failed: int  # rows with an error
    seconds: float  # of work; 0 where it was there
    resumed: bool = False  # it was there from an earlier run
    broken: str | None = None  # why the file with the images cannot be read; then no shard is there


class ShardWriter:
    """Answers segments, each into a file of its own."""

    def __init__(
        self, arguments: Mapping[str, Any], folder: str, working: str | None = None
    ) -> None:
        """Open the bundle.

        Args:
            arguments: Of Classifier.
            folder: Where shards go.
            working: The folder that relative paths start from, where it is another than here.
        """
        if working is not None:
            try:
                os.chdir(working)
            except OSError as error:
                raise UsageError(
                    f"{working}: {error.strerror} on this node; give absolute paths, or URLs"
                ) from None
        self._classify = Classifier(**arguments)
        self._folder = Path(folder)
        bundle, facts = self._classify.bundle, dict(self._classify.facts)
        about = {"bundle": bundle.path.name, "model_sha256": bundle.model_sha256, "facts": facts}
        self._about = {_METADATA: json.dumps(about).encode()}

    def __call__(self, numbered: tuple[int, Segment]) -> Shard:
        """Answer one segment; it is there, whole, when this returns.

        Returns:
            The shard. If the file with the images cannot be read, it says so, and none is there.

        Raises:
            PredictionError: As of Classifier.
            ResourceError: It cannot be written.
        """
        number, segment = numbered
        started = time.perf_counter()
        path = self._folder / _name(number, segment.digest)
        aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            rows, failed = self._write(segment, aside)
            with aside.open("rb") as file:
                os.fsync(file.fileno())
            aside.replace(path)
        except InputError as error:
            return Shard("", 0, 0, time.perf_counter() - started, broken=str(error))
        except OSError as error:
            raise ResourceError(
                f"{self._folder}: cannot be written: {_reason(error)}; make that possible,"
                " and go on with --resume"
            ) from error
        finally:
            aside.unlink(missing_ok=True)
        return Shard(str(path), rows, failed, time.perf_counter() - started)

    def close(self) -> None:
        """Give the runtime back."""
        self._classify.close()

    def _write(self, segment: Segment, aside: Path) -> tuple[int, int]:
        """Write the answers; return how many there are, and how many are errors."""
        rows = failed = held = 0
        pending: list[pa.Table] = []
        writer: pq.ParquetWriter | None = None
        try:
            for table in self._classify.stream(segment.tables()):
                about = {**(table.schema.metadata or {}), **self._about}
                pending.append(table.replace_schema_metadata(about))
                writer = writer or pq.ParquetWriter(aside, pending[0].schema)
                rows += table.num_rows
                errors = table.column(table.num_columns - 1)  # ERROR is the last
                failed += len(errors) - errors.null_count
                held += table.nbytes
                if held >= _GROUP_BYTES:
                    writer.write_table(pa.concat_tables(pending))
                    pending, held = [], 0
            if writer is None:  # no rows, and so no schema: a file that says so
                pending = [pa.table({}).replace_schema_metadata(self._about)]
                writer = pq.ParquetWriter(aside, pending[0].schema)
            if pending:
                writer.write_table(pa.concat_tables(pending))
            writer.close()
        except BaseException:
            if writer is not None:
                with contextlib.suppress(OSError):  # it would write the end of the file
                    writer.close()
            raise
        return rows, failed


def _name(number: int, digest: str) -> str:
    return f"part-{number:06}-{digest}.parquet"


def record_of(
    bundle: Bundle, columns: Sequence[str], rows: int, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """What shards of one run have in common: everything that decides a row, but the image."""
    manifest = bundle.manifest
    answers = [asdict(manifest.preprocessing), manifest.scores, bundle.labels]
    digest = hashlib.sha256(json.dumps(answers).encode()).hexdigest()
    return {
        "model_sha256": bundle.model_sha256, "preprocessing_and_labels": digest,
        "columns": list(columns), "shard_rows": rows,
        **{key: settings.get(key, default) for key, default in _DECIDING.items()},
    }  # fmt: skip


class Answered:
    """The folder of a run, held by one process; and the shards in it of an earlier run."""

    def __init__(self, folder: Path) -> None:
        """Look for shards; see `answered`."""
        self.folder = folder
        self._by_digest: defaultdict[str, list[Path]] = defaultdict(list)
        for path in sorted(folder.glob("part-*.parquet")):
            if match := _NAME.fullmatch(path.name):
                self._by_digest[match[2]].append(path)

    def take(self, number: int, segment: Segment) -> Shard | None:
        """The shard of a segment, under the segment's number; None if there is none, or half."""
        paths = self._by_digest.get(segment.digest)
        if not paths:
            return None
        named = self.folder / _name(number, segment.digest)
        path = paths.pop(paths.index(named) if named in paths else 0)
        try:
            file = pq.ParquetFile(path)
            rows = file.metadata.num_rows
            failed = (
                rows - file.read(file.schema_arrow.names[-1:]).column(0).null_count if rows else 0
            )
        except (pa.ArrowException, OSError) as error:
            _LOG.warning("%s: damaged, and written anew: %s", path, error)
            path.unlink(missing_ok=True)
            return None
        if path != named:  # files before it came or went: shards stand in the order of the input
            path.rename(named)
        return Shard(str(named), rows, failed, 0.0, resumed=True)

    def put_aside(self) -> int:
        """Move away what was answered and is not of the input any more; say how many files."""
        left = [path for paths in self._by_digest.values() for path in paths]
        if left:
            aside = self.folder / _SUPERSEDED
            aside.mkdir(exist_ok=True)
            for path in left:
                path.replace(aside / path.name)
            _LOG.warning(
                "%d shards of an earlier run are of images that were changed, moved or left out; "
                "they are in %s now",
                len(left),
                aside,
            )
        return len(left)


@contextlib.contextmanager
def answered(folder: Path, record: Mapping[str, Any], *, resume: bool) -> Iterator[Answered]:
    """Make the folder and hold it, or see that what is in it belongs to this run.

    Raises:
        UsageError: It holds something else, or shards and no wish to resume; or a run that works.
        ResourceError: It cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except (FileExistsError, NotADirectoryError):
        raise UsageError(f"{folder}: is a file; name a directory for --out") from None
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        _lock(folder, handle)
        _check(folder, record, resume=resume)
        try:
            for left in folder.glob(".*.tmp"):
                left.unlink(missing_ok=True)
            aside = folder / f".{RECORD}.tmp"
            aside.write_text(json.dumps(record, indent=2) + "\n")
            aside.replace(folder / RECORD)
        except OSError as error:
            raise _unwritable(folder, error) from error
        yield Answered(folder)
    finally:
        os.close(handle)


def _unwritable(folder: Path, error: OSError) -> ResourceError:
    return ResourceError(
        f"{folder}: cannot be written: {_reason(error)}; make that possible, or choose another "
        "--out"
    )


def _reason(error: OSError) -> str:
    """What the system says; pyarrow puts words of its own around it."""
    return os.strerror(error.errno) if error.errno else str(error)


def _lock(folder: Path, handle: int) -> None:
    """Hold the folder as long as it is open; the system lets go of it when the process dies."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(
            f"{folder}: another run writes there now; wait for its end, or name another --out"
        ) from None
    except OSError as error:  # a network's file system without locks
        _LOG.info("%s: cannot be locked (%s); start one run there only", folder, error.strerror)


def _check(folder: Path, record: Mapping[str, Any], *, resume: bool) -> None:
    file = folder / RECORD
    if not file.exists():
        others = [path.name for path in folder.iterdir() if not _is_ours(path.name)]
        if others:
            raise UsageError(
                f"{folder} is not empty, and what is in it is no run of ours: {sorted(others)[0]!r}"
            )
        return
    try:
        before = dict(json.loads(file.read_bytes()))
        changed = [key for key in record if key in before and before[key] != record[key]]
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"{file}: cannot be read: {error}; name another --out") from None
    if not any(_NAME.fullmatch(path.name) for path in folder.iterdir()):
        return  # nothing was answered: it may begin with any settings
    if not resume:
        raise UsageError(f"{folder} holds a run; go on with --resume, or name another --out")
    if changed:
        listed = "; ".join(f"{key}: {before[key]!r}, now {record[key]!r}" for key in changed)
        raise UsageError(
            f"{folder} holds a run with other settings: {listed}. Take those, or another --out"
        )


def _is_ours(name: str) -> bool:
    """What a run leaves that was killed before it had a record."""
    return name == f".{RECORD}.tmp" or name == "lost+found"
