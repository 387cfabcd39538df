"""Answer every image of a large job, into shards of Parquet, on one machine or on Ray.

A shard is written aside and renamed, so that it is there whole or not at all. What was answered is
found again by the digest of its segment: a run that was killed goes on where it was.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq

from vit_edge.bundle import Bundle
from vit_edge.errors import MissingExtraError, PredictionError, ResourceError, UsageError
from vit_edge.machine import cpus
from vit_edge.scale.ray_data import MAX_RESTARTS, plan_actors
from vit_edge.scale.segments import ROWS, Segment, segments
from vit_edge.scale.tables import COLUMNS, Classifier

Engine = Literal["local", "ray"]

RECORD = "run.json"
_SUSPECTS = ".suspects"
_METADATA = b"vit_edge"
_AHEAD = 2  # segments handed out for each process


@dataclass(frozen=True)
class Shard:
    """One file of answers."""

    path: str
    rows: int
    failed: int  # rows with an error
    seconds: float  # of work; 0 where it was there
    resumed: bool = False  # it was there from an earlier run


@dataclass(frozen=True)
class BatchResult:
    """A job that is done."""

    out: Path
    shards: tuple[Shard, ...]
    seconds: float

    @property
    def rows(self) -> int:
        """The images, also those that failed."""
        return sum(shard.rows for shard in self.shards)

    @property
    def failed(self) -> int:
        """The images that could not be used; their rows say why."""
        return sum(shard.failed for shard in self.shards)

    @property
    def images_per_second(self) -> float:
        """Of this run; 0 where all was there."""
        fresh = sum(shard.rows for shard in self.shards if not shard.resumed)
        return fresh / self.seconds if self.seconds else 0.0


def batch(
    bundle: str | os.PathLike[str] | Bundle,
    inputs: str | Sequence[str],
    *,
    out: str | os.PathLike[str],
    columns: Sequence[str] = COLUMNS,
    resume: bool = False,
    workers: int = 1,
    engine: Engine = "local",
    ray_address: str | None = None,
    shard_rows: int = ROWS,
    progress: Callable[[Shard], None] | None = None,
    **settings: Any,
) -> BatchResult:
    """Answer every image, and write shards of Parquet.

    Args:
        bundle: Its directory; with Ray at the same path on every node.
        inputs: As of vit_edge.scale.segments.segments.
        out: A directory for the shards, new or empty; with Ray one that every node sees.
        columns: As of Classifier.
        resume: Go on with what an earlier run left in `out`.
        workers: Processes; each has its share of the CPUs. One decodes and computes with all.
        engine: "local", or "ray" for a cluster.
        ray_address: Of the cluster, such as "auto"; by default Ray starts on this machine.
        shard_rows: Images of a shard.
        progress: Called with every shard, in the order in which they are done.
        settings: As of Classifier: images, keep_images, prefix, top_k, batch_size, backend.

    Returns:
        What is in `out` now.

    Raises:
        UsageError: Something in the call is wrong; `out` holds another run.
        PredictionError: An image ended a process; the message names it.
        ResourceError: A process died, and it is not known of what.
    """
    opened = Bundle.read(bundle)
    folder = Path(out)
    if "://" in str(out):
        raise UsageError(f"{out}: shards are written to a directory; mount it, or copy them there")
    _prepare(folder, _record(opened, columns, shard_rows, settings), resume=resume)
    threads = max(1, cpus.default_threads() // workers) if workers > 1 else None
    arguments = {
        "bundle": str(opened.path), "columns": tuple(columns), "threads": threads,
        "suspects": str(folder / _SUSPECTS), **settings,
    }  # fmt: skip
    names = [inputs] if isinstance(inputs, str) else list(inputs)
    there = {path.stem.rpartition("-")[2]: path for path in folder.glob("part-*.parquet")}
    shards: list[Shard] = []
    started = time.perf_counter()
    with _runner(engine, arguments, folder, workers, ray_address) as run:
        for shard in run(_missing(segments(names, shard_rows), there, shards, progress)):
            shards.append(shard)
            if progress is not None:
                progress(shard)
    shutil.rmtree(folder / _SUSPECTS, ignore_errors=True)
    if not any(shard.rows for shard in shards):
        raise UsageError(f"{', '.join(names)}: no images")
    ordered = tuple(sorted(shards, key=lambda shard: shard.path))
    return BatchResult(folder, ordered, time.perf_counter() - started)


class ShardWriter:
    """Answers segments, each into a file of its own."""

    def __init__(self, arguments: Mapping[str, Any], folder: str) -> None:
        """Open the bundle.

        Args:
            arguments: Of Classifier.
            folder: Where shards go.
        """
        self._classify = Classifier(**arguments)
        self._folder = Path(folder)
        bundle, facts = self._classify.bundle, dict(self._classify.facts)
        about = {"bundle": bundle.path.name, "model_sha256": bundle.model_sha256, "facts": facts}
        self._about = {_METADATA: json.dumps(about).encode()}

    def __call__(self, numbered: tuple[int, Segment]) -> Shard:
        """Answer one segment; it is there, whole, when this returns.

        Raises:
            InputError: A file of the segment cannot be read.
            PredictionError: As of Classifier.
        """
        number, segment = numbered
        started, rows, failed = time.perf_counter(), 0, 0
        path = self._folder / f"part-{number:06}-{segment.digest}.parquet"
        aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        writer: pq.ParquetWriter | None = None
        try:
            for table in segment.tables():
                answers = self._classify(table)
                answers = answers.replace_schema_metadata(
                    {**(answers.schema.metadata or {}), **self._about}
                )
                if writer is None:
                    writer = pq.ParquetWriter(aside, answers.schema)
                writer.write_table(answers)
                rows += answers.num_rows
                errors = answers.column(answers.num_columns - 1)  # ERROR is the last
                failed += len(errors) - errors.null_count
            if writer is not None:
                writer.close()
                writer = None
                with aside.open("rb") as file:
                    os.fsync(file.fileno())
                aside.replace(path)
        finally:
            if writer is not None:
                writer.close()
            aside.unlink(missing_ok=True)
        return Shard(str(path), rows, failed, time.perf_counter() - started)


def _record(
    bundle: Bundle, columns: Sequence[str], rows: int, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """What shards of one run have in common."""
    return {
        "model_sha256": bundle.model_sha256, "columns": list(columns), "shard_rows": rows,
        **settings,
    }  # fmt: skip


def _prepare(folder: Path, record: dict[str, Any], *, resume: bool) -> None:
    """Make the folder, or see that what is in it belongs to this run.

    Raises:
        UsageError: It holds something else, or shards and no wish to resume.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / RECORD
    if file.exists():
        before = json.loads(file.read_text())
        if not resume:
            raise UsageError(f"{folder} holds a run; go on with --resume, or name another --out")
        if changed := [key for key in record if before.get(key) != record[key]]:
            listed = "; ".join(
                f"{key}: {before.get(key)!r}, now {record[key]!r}" for key in changed
            )
            raise UsageError(f"{folder} holds a run with other settings: {listed}")
    elif any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty, and what is in it is no run of ours")
    for left in folder.glob(".part-*.tmp"):
        left.unlink(missing_ok=True)
    file.write_text(json.dumps(record, indent=2) + "\n")


def _missing(
    cut: Iterable[Segment],
    there: Mapping[str, Path],
    shards: list[Shard],
    progress: Callable[[Shard], None] | None,
) -> Iterator[tuple[int, Segment]]:
    """Number the segments; those that are answered go straight to the shards."""
    for number, segment in enumerate(cut):
        path = there.get(segment.digest)
        if path is None:
            yield number, segment
            continue
        file = pq.ParquetFile(path)
        last = file.metadata.num_columns - 1
        groups = [file.metadata.row_group(i).column(last) for i in range(file.num_row_groups)]
        failed = sum(group.num_values - group.statistics.null_count for group in groups)
        shard = Shard(str(path), file.metadata.num_rows, failed, 0.0, resumed=True)
        shards.append(shard)
        if progress is not None:
            progress(shard)


_Run = Callable[[Iterator[tuple[int, Segment]]], Iterator[Shard]]


@contextmanager
def _runner(
    engine: str, arguments: dict[str, Any], folder: Path, workers: int, address: str | None
) -> Iterator[_Run]:
    """What answers segments: this process, several, or Ray."""
    if workers < 1:
        raise UsageError(f"--workers {workers}: expected 1 or more")
    if engine == "ray":
        yield lambda todo: _on_ray(todo, arguments, folder, address)
    elif engine != "local":
        raise UsageError(f"--engine {engine}: expected local or ray")
    elif workers == 1:
        writer = ShardWriter(arguments, str(folder))
        yield lambda todo: map(writer, todo)
    else:
        ShardWriter(arguments, str(folder))  # errors of the call are said here
        with ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), _open_writer, (arguments, str(folder))
        ) as pool:
            yield lambda todo: _in_pool(pool, todo, workers)


_WRITER: list[ShardWriter] = []  # of a worker's process


def _open_writer(arguments: dict[str, Any], folder: str) -> None:
    _WRITER[:] = [ShardWriter(arguments, folder)]


def _write(numbered: tuple[int, Segment]) -> Shard:
    return _WRITER[0](numbered)


def _in_pool(
    pool: ProcessPoolExecutor, todo: Iterator[tuple[int, Segment]], workers: int
) -> Iterator[Shard]:
    """Hand out a few segments at a time: a listing of millions is not held."""
    waiting: set[Future[Shard]] = set()
    try:
        for numbered in todo:
            waiting.add(pool.submit(_write, numbered))
            if len(waiting) >= _AHEAD * workers:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        yield from (future.result() for future in waiting)
    except BrokenProcessPool as error:
        raise ResourceError(
            "a worker died: of an image, or for lack of memory. The same command with --resume "
            "finds the image and names it"
        ) from error


def _on_ray(
    todo: Iterator[tuple[int, Segment]],
    arguments: dict[str, Any],
    folder: Path,
    address: str | None,
) -> Iterator[Shard]:
    """Actors of Ray answer segments; what an actor died of is looked for when it is back."""
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise MissingExtraError('--engine ray: pip install "vit-edge[cpu,ray]"') from error
    if not ray.is_initialized():
        ray.init(address=address)
    count, share = plan_actors(float(ray.cluster_resources().get("CPU", 0)), None, 1)
    remote = ray.remote(num_cpus=share, max_restarts=MAX_RESTARTS, max_task_retries=MAX_RESTARTS)(
        ShardWriter
    )
    actors = [
        remote.remote({**arguments, "threads": 1}, str(folder.resolve())) for _ in range(count)
    ]
    try:
        pool = importlib.import_module("ray.util").ActorPool(actors)
        waiting = 0
        for numbered in todo:
            pool.submit(lambda actor, value: actor.__call__.remote(value), numbered)
            waiting += 1
            if waiting >= _AHEAD * count:
                yield pool.get_next_unordered()
                waiting -= 1
        for _ in range(waiting):
            yield pool.get_next_unordered()
    except ray.exceptions.RayTaskError as error:
        raise PredictionError(str(error.cause)) from error
    except ray.exceptions.RayActorError as error:
        raise ResourceError(f"an actor died {MAX_RESTARTS + 1} times: {error}") from error
    finally:
        for actor in actors:
            ray.kill(actor)


def as_json(result: BatchResult) -> dict[str, Any]:
    """A result, ready for JSON."""
    return {
        "out": str(result.out), "rows": result.rows, "failed": result.failed,
        "seconds": result.seconds, "images_per_second": result.images_per_second,
        "shards": [asdict(shard) for shard in result.shards],
    }  # fmt: skip
