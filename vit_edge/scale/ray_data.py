"""A bundle as a step of a Ray Data pipeline.

    ds = ray.data.read_parquet("/shared/paths.parquet")
    ray_data.classify(ds, "bundles/cifar10").write_parquet("/shared/answers/")

Ray is imported by `classify` alone; the actors hold a `Classifier`, which knows nothing of it.
"""

from __future__ import annotations

import importlib
import math
import os
import tempfile
import uuid
from pathlib import Path
from typing import Any

from vit_edge.errors import MissingExtraError, UsageError
from vit_edge.scale.tables import Classifier, everywhere

# A process that dies of an image would be started for ever: Ray's own default has no end.
MAX_RESTARTS = 2
_FOR_READING = 1  # CPUs that the tasks which read need; without one Ray waits in silence


def classify(
    ds: Any,
    bundle: str | os.PathLike[str],
    *,
    actors: int | None = None,
    threads: int = 1,
    batch_size: int = 64,
    **settings: Any,
) -> Any:
    """Answer every row of a dataset.

    Args:
        ds: A ray.data.Dataset with a column of images: encoded bytes, or absolute paths. Of paths
            Ray moves no file; reading them costs it more than it costs the actors.
        bundle: Its directory, at the same path on every node; or `hf:ORG/NAME`, which each node
            brings from the hub. An object in Ray's store would not survive a restarted actor.
        actors: How many processes; by default one for every `threads` CPUs of the cluster.
        threads: Of each.
        batch_size: Rows handed to an actor at once.
        settings: As of Classifier: columns, images, keep_images, prefix, top_k, backend.

    Returns:
        A dataset of the same rows with the columns that Classifier adds. It is lazy. An image that
        kills its process ends the job with its name, where the actor comes back on that node.

    Raises:
        UsageError: More actors than the cluster has CPUs for: Ray would wait without a word.
        MissingExtraError: Ray is not installed.
    """
    ray = import_ray()
    if not ray.is_initialized():
        ray.init()
    cpus = float(ray.cluster_resources().get("CPU", 0))
    count, share = plan_actors(cpus, actors, threads)
    if "suspects" not in settings:
        folder = Path(tempfile.gettempdir()) / f"vit_edge-{os.getuid()}"
        settings["suspects"] = str(folder / uuid.uuid4().hex)
    Classifier(bundle, threads=threads, batch_size=batch_size, **settings).close()  # or its error
    return ds.map_batches(
        Classifier,
        fn_constructor_args=(everywhere(bundle),),
        fn_constructor_kwargs={"threads": threads, "batch_size": batch_size, **settings},
        batch_format="pyarrow",
        batch_size=batch_size,
        compute=ray.data.ActorPoolStrategy(size=count),
        num_cpus=share,
        max_restarts=MAX_RESTARTS,
        max_task_retries=MAX_RESTARTS,
    )


def import_ray() -> Any:
    """Ray with Ray Data.

    Raises:
        MissingExtraError: It is not installed. A folder named ray, as in /tmp, is not Ray.
    """
    try:
        ray = importlib.import_module("ray")
        importlib.import_module("ray.data")
    except ImportError as error:
        raise MissingExtraError(
            f'this needs Ray Data ({error}): pip install "vit-edge[cpu,ray]"'
        ) from error
    return ray


def plan_actors(cpus: float, actors: int | None, threads: int) -> tuple[int, float]:
    """Say how many actors there are, and how many CPUs each tells Ray that it takes.

    All of them compute, and yet a CPU is left in Ray's books: tasks that read and write need one.

    Args:
        cpus: Of the cluster.
        actors: As asked; None: as many as there are CPUs for.
        threads: Of each.

    Raises:
        UsageError: More than there are CPUs, or not one.
    """
    if threads < 1 or (actors is not None and actors < 1):
        raise UsageError(f"actors={actors} of threads={threads}: both must be at least 1")
    most = max(1, math.floor(cpus / threads))
    if actors is not None and actors > most:
        raise UsageError(
            f"actors={actors} of {threads} threads need {actors * threads} CPUs, and the cluster "
            f"has {cpus:g}: Ray would wait without a word. Ask for at most {most}"
        )
    count = actors or most
    spare = cpus - _FOR_READING
    if spare <= 0:
        return count, 0.5 / count
    if count * threads <= spare:
        return count, float(threads)
    share = spare / count
    return count, share if share < 1 else float(math.floor(share))
