"""Shards of answers: files that are there whole or not at all, and the folder that holds them."""

from __future__ import annotations

import contextlib
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
from vit_edge.errors import InputError, UsageError
from vit_edge.predictor import DEFAULT_TOP_K
from vit_edge.scale.segments import Segment
from vit_edge.scale.store import RECORD, Store
from vit_edge.scale.tables import Classifier

_LOG = logging.getLogger("vit_edge")

_SUPERSEDED = ".superseded"
_METADATA = b"vit_edge"
_GROUP_BYTES = 32 << 20  # of a row group: few of them are read faster
_OF_NOBODY = {"lost+found", ""}
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
        self, arguments: Mapping[str, Any], store: Store, working: str | None = None
    ) -> None:
        """Open the bundle.

        Args:
            arguments: Of Classifier.
            store: Where shards go.
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
        self._store = store
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
        name = _name(number, segment.digest)
        aside: Path | None = None
        try:
            aside = self._store.aside(name)
            rows, failed = self._write(segment, aside)
            self._store.publish(aside, name)
        except InputError as error:
            return Shard("", 0, 0, time.perf_counter() - started, broken=str(error))
        except OSError as error:
            raise self._store.unwritable(error) from error
        finally:
            if aside is not None:
                aside.unlink(missing_ok=True)
        if not rows:
            _LOG.warning("%s: no images", segment.name)
        return Shard(self._store.path(name), rows, failed, time.perf_counter() - started)

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
    """The shards of an earlier run, in the folder of this one."""

    def __init__(self, store: Store) -> None:
        """Look for shards; see `answered`."""
        self._store = store
        self._by_digest: defaultdict[str, list[str]] = defaultdict(list)
        for name in store.names():
            if match := _NAME.fullmatch(name):
                self._by_digest[match[2]].append(name)

    def take(self, number: int, segment: Segment) -> Shard | None:
        """The shard of a segment, under the segment's number; None if there is none, or half."""
        names = self._by_digest.get(segment.digest)
        if not names:
            return None
        now = _name(number, segment.digest)
        name = names.pop(names.index(now) if now in names else 0)
        try:
            with self._store.parquet(name) as file:
                rows = file.metadata.num_rows
                errors = file.read(file.schema_arrow.names[-1:]).columns
            failed = sum(rows - column.null_count for column in errors)
        except (pa.ArrowException, OSError) as error:
            _LOG.warning("%s: damaged, and written anew: %s", self._store.path(name), error)
            self._store.remove(name)
            return None
        if name != now:  # files before it came or went: shards stand in the order of the input
            self._store.move(name, now)
        return Shard(self._store.path(now), rows, failed, 0.0, resumed=True)

    def put_aside(self) -> int:
        """Move away what was answered and is not of the input any more; say how many files."""
        left = [name for names in self._by_digest.values() for name in names]
        for name in left:
            self._store.move(name, f"{_SUPERSEDED}/{name}")
        if left:
            _LOG.warning(
                "%d shards of an earlier run are of images that were changed, moved or left out; "
                "they are in %s now",
                len(left),
                self._store.path(_SUPERSEDED),
            )
        return len(left)


@contextlib.contextmanager
def answered(store: Store, record: Mapping[str, Any], *, resume: bool) -> Iterator[Answered]:
    """Make the folder and hold it, or see that what is in it belongs to this run.

    Raises:
        UsageError: It holds something else, or shards and no wish to resume; or a run that works.
        ResourceError: It cannot be made or written.
    """
    with store.held():
        try:
            names = store.names()
            _check(store, names, record, resume=resume)
            aside = store.aside(RECORD)
            aside.write_text(json.dumps(record, indent=2) + "\n")
            store.publish(aside, RECORD)
        except OSError as error:
            raise store.unwritable(error) from error
        yield Answered(store)


def _check(store: Store, names: Sequence[str], record: Mapping[str, Any], *, resume: bool) -> None:
    if RECORD not in names:
        others = [name for name in names if name not in _OF_NOBODY]
        if others:
            raise UsageError(
                f"{store.name} is not empty, and what is in it is no run of ours: {others[0]!r}"
            )
        return
    try:
        before = dict(json.loads(store.read(RECORD)))
        changed = [key for key in record if key in before and before[key] != record[key]]
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(
            f"{store.path(RECORD)}: cannot be read: {error}; name another --out"
        ) from None
    if not any(map(_NAME.fullmatch, names)):
        return  # nothing was answered: it may begin with any settings
    if not resume:
        raise UsageError(f"{store.name} holds a run; go on with --resume, or name another --out")
    if changed:
        listed = "; ".join(f"{key}: {before[key]!r}, now {record[key]!r}" for key in changed)
        raise UsageError(
            f"{store.name} holds a run with other settings: {listed}. Take those, or another --out"
        )
