"""Answer every image of a large job, into shards of Parquet, on one machine or on Ray.

A shard is written aside and renamed, so that it is there whole or not at all. What was answered is
found again by the digest of its segment: a run that was killed goes on where it was.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from vit_edge.bundle import Bundle
from vit_edge.errors import (
    InputError,
    PredictionError,
    ResourceError,
    UsageError,
    VitEdgeError,
)
from vit_edge.machine import cpus
from vit_edge.scale import COLUMNS, ROWS
from vit_edge.scale.ray_data import MAX_RESTARTS, import_ray, plan_actors
from vit_edge.scale.segments import Segment, segments
from vit_edge.scale.shards import Answered, Shard, ShardWriter, answered, record_of
from vit_edge.scale.store import Store
from vit_edge.scale.tables import everywhere

Engine = Literal["local", "ray"]

_AHEAD = 2  # segments handed out for each process
_WORKERS_PER_CPU = 4  # more may wait for a network; beyond that each is memory alone
_NAMED = 5  # files that a message names


@dataclass(frozen=True)
class BatchResult:
    """A job that is done."""

    out: str  # a directory, or a URL
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
    workers: int | None = None,
    engine: Engine = "local",
    ray_address: str | None = None,
    shard_rows: int = ROWS,
    progress: Callable[[Shard], None] | None = None,
    **settings: Any,
) -> BatchResult:
    """Answer every image, and write shards of Parquet.

    Args:
        bundle: Its directory; with Ray at the same path on every node, or `hf:ORG/NAME`.
        inputs: As of vit_edge.scale.segments.segments.
        out: A directory for the shards, new or empty, or a URL such as s3://bucket/answers; with
            Ray one that every node sees.
        columns: As of Classifier.
        resume: Go on with what an earlier run left in `out`.
        workers: Processes; each has its share of the CPUs. By default one, which decodes and
            computes with all; with Ray as many as the cluster has CPUs.
        engine: "local", or "ray" for a cluster.
        ray_address: Of the cluster, such as "auto"; by default Ray starts on this machine.
        shard_rows: Images of a shard.
        progress: Called with every shard, in the order in which they are done.
        settings: As of Classifier: images, keep_images, prefix, top_k, batch_size, backend.

    Returns:
        What is in `out` now.

    Raises:
        UsageError: Something in the call is wrong; `out` holds another run.
        InputError: Parquet or tar files cannot be read. All others are answered before it is said.
        PredictionError: An image ended a process; the message names it.
        ResourceError: A process died, and it is not known of what; or the disk is full.
    """
    opened = Bundle.read(bundle)
    store = Store(out)
    _check_engine(engine, workers, ray_address)
    names = [inputs] if isinstance(inputs, str) else list(inputs)
    cut = segments(names, shard_rows)
    share = max(1, cpus.default_threads() // (workers or 1))
    arguments = {
        "bundle": everywhere(opened.path if isinstance(bundle, Bundle) else bundle),
        "columns": tuple(columns), "threads": share if (workers or 1) > 1 else None,
        "suspects": str(store.suspects), **settings,
    }  # fmt: skip
    record = record_of(opened, columns, shard_rows, settings)
    writer = ShardWriter(arguments, store)  # errors of the call are said here
    shards: list[Shard] = []
    started = time.perf_counter()
    with contextlib.closing(writer), answered(store, record, resume=resume) as there:

        def add(shard: Shard) -> None:
            shards.append(shard)
            if progress is not None:
                progress(shard)

        with _runner(engine, writer, arguments, store, workers, ray_address) as run:
            for shard in run(_missing(cut, there, add)):
                add(shard)
        _require_whole(shards)
        there.put_aside()
        shutil.rmtree(store.suspects, ignore_errors=True)
        if not any(shard.rows for shard in shards):
            paths = {shard.path for shard in shards}
            for name in [name for name in store.names() if store.path(name) in paths]:
                store.remove(name)
            raise UsageError(f"{', '.join(names)}: no images")
    ordered = tuple(sorted(shards, key=lambda shard: shard.path))
    return BatchResult(os.fspath(out), ordered, time.perf_counter() - started)


def _check_engine(engine: str, workers: int | None, address: str | None) -> None:
    if engine not in ("local", "ray"):
        raise UsageError(f"--engine {engine}: expected local or ray")
    if workers is not None and (type(workers) is not int or workers < 1):
        raise UsageError(f"--workers {workers}: expected 1 or more")
    if engine == "ray":
        import_ray()
        return
    if address is not None:
        raise UsageError("--ray-address is for --engine ray")
    most = _WORKERS_PER_CPU * cpus.usable_cpus()
    if workers is not None and workers > most:
        raise UsageError(
            f"--workers {workers}: each is a process with a model, and there are "
            f"{cpus.usable_cpus()} CPUs; ask for at most {most}"
        )


def _require_whole(shards: Sequence[Shard]) -> None:
    """Say which files could not be read, now that all others are answered."""
    broken = [shard.broken for shard in shards if shard.broken is not None]
    if broken:
        more = f"; and {len(broken) - _NAMED} more" if len(broken) > _NAMED else ""
        raise InputError(
            f"{'; '.join(broken[:_NAMED])}{more}. The other {len(shards) - len(broken)} shards are "
            "there: mend the rest and go on with --resume"
        )


def _missing(
    cut: Iterable[Segment], there: Answered, add: Callable[[Shard], None]
) -> Iterator[tuple[int, Segment]]:
    """Number the segments; those that are answered go straight to the shards."""
    for number, segment in enumerate(cut):
        shard = there.take(number, segment)
        if shard is None:
            yield number, segment
        else:
            add(shard)


_Run = Callable[[Iterator[tuple[int, Segment]]], Iterator[Shard]]


@contextlib.contextmanager
def _runner(
    engine: str,
    writer: ShardWriter,
    arguments: dict[str, Any],
    store: Store,
    workers: int | None,
    address: str | None,
) -> Iterator[_Run]:
    """What answers segments: this process, several, or Ray."""
    if engine == "ray":
        writer.close()
        yield lambda todo: _on_ray(todo, arguments, store, workers, address)
    elif workers is None or workers == 1:
        yield lambda todo: map(writer, todo)
    else:
        writer.close()
        pool = ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), _open_writer, (arguments, store.name)
        )
        try:
            yield lambda todo: _in_pool(pool, todo, workers)
        finally:
            pool.shutdown(cancel_futures=True)


_WRITER: list[ShardWriter] = []  # of a worker's process


def _open_writer(arguments: dict[str, Any], out: str) -> None:
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _WRITER[:] = [ShardWriter(arguments, Store(out))]


def _die_with_parent() -> None:
    """End this process when the one that started it is gone: it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


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


class _RayWriter(ShardWriter):
    """Made of what travels to another node."""

    def __init__(self, arguments: dict[str, Any], out: str, working: str) -> None:
        super().__init__(arguments, Store(out), working)


def _on_ray(
    todo: Iterator[tuple[int, Segment]],
    arguments: dict[str, Any],
    store: Store,
    workers: int | None,
    address: str | None,
) -> Iterator[Shard]:
    """Actors of Ray answer segments; what an actor died of is looked for when it is back."""
    ray = import_ray()
    if not ray.is_initialized():
        try:
            ray.init(address=address)
        except (ConnectionError, ValueError) as error:
            raise UsageError(f"--ray-address {address}: {error}") from error
    count, share = plan_actors(float(ray.cluster_resources().get("CPU", 0)), workers, 1)
    remote = ray.remote(num_cpus=share, max_restarts=MAX_RESTARTS, max_task_retries=MAX_RESTARTS)(
        _RayWriter
    )
    arguments = {**arguments, "threads": 1}
    actors = [remote.remote(arguments, store.name, str(Path.cwd())) for _ in range(count)]
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
        if isinstance(error.cause, VitEdgeError):
            raise type(error.cause)(*error.cause.args) from error
        raise PredictionError(str(error.cause)) from error
    except ray.exceptions.RayActorError as error:
        raise ResourceError(f"an actor died {MAX_RESTARTS + 1} times: {error}") from error
    finally:
        for actor in actors:
            ray.kill(actor)


def as_json(result: BatchResult) -> dict[str, Any]:
    """A result, ready for JSON."""
    return {
        "out": result.out, "rows": result.rows, "failed": result.failed,
        "seconds": result.seconds, "images_per_second": result.images_per_second,
        "shards": [asdict(shard) for shard in result.shards],
    }  # fmt: skip
