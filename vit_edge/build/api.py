"""Compile a bundle for this device, or find out how it runs best here."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vit_edge import backends, cli
from vit_edge.backends import Option, auto
from vit_edge.build.tune import Tuning
from vit_edge.build.tune import tune as tune_bundles
from vit_edge.bundle import Bundle
from vit_edge.errors import UsageError
from vit_edge.machine import child
from vit_edge.parity.targets import Target, target_from

TUNE_BATCHES = (1, 8)


@dataclass(frozen=True)
class Engine:
    """What a build left behind; Predictor finds it by itself."""

    bundle: Bundle
    backend: str
    path: Path  # its directory
    size_bytes: int
    build_s: float


def build(
    bundle: str | os.PathLike[str] | Bundle,
    *,
    backend: str = auto.DEFAULT,
    out: str | os.PathLike[str] | None = None,
    options: Mapping[str, Option] | None = None,
) -> Engine:
    """Compile a bundle for the device this runs on, in a child process.

    Args:
        bundle: Its directory, or a Bundle that was read.
        backend: A runtime's name.
        out: Where to put the engine; by default in the bundle, or the user's cache.
        options: Of the backend's build, such as {"optimization_level": 5}; without them the
            bundle's recipe decides.

    Returns:
        The engine. It is a cache, keyed by model, runtime and hardware.

    Raises:
        UsageError: There is no such backend, or no such option.
        BackendError: The runtime is missing, or refuses the model.
        ResourceError: The child ran out of memory or of disk space.
    """
    if not (options or {}).get(backends.CROSS_BUILD):
        backends.module(backend)  # refused before any work
    opened = Bundle.read(bundle)
    folder = None if out is None else Path(out)
    start = time.perf_counter()
    call = child.attempted_call(
        "vit_edge.build.api:build_here", str(opened.path), backend, folder, options or {}, echo=True
    )
    call.child.check("the build")
    path: Path = call.value
    seconds = time.perf_counter() - start
    size = sum(file.stat().st_size for file in path.iterdir())
    return Engine(opened, backend, path, size, seconds)


def build_here(
    bundle: str, backend: str, engines_dir: Path | None, options: Mapping[str, Option]
) -> Path:
    """Compile a bundle in this process; what a child of `build` runs."""
    return backends.build(Bundle.read(bundle), backend, engines_dir, options)


def tune(
    bundles: str | os.PathLike[str] | Bundle | Sequence[str | os.PathLike[str] | Bundle],
    *,
    batch: int | Sequence[int] = TUNE_BATCHES,
    backend: str | None = None,
    out: str | os.PathLike[str] | None = None,
    memory_limit: str | int | None = None,
    target: str | Target | None = None,
) -> Tuning:
    """Build, check and time every runtime that is installed, and record the fastest.

    Args:
        bundles: A bundle; or several, which hold one model in several precisions.
        batch: The batch size to tune for, or several.
        backend: The one runtime to try.
        out: Where to put engines; by default in the bundle, or the user's cache.
        memory_limit: What the process may take: bytes, or a size such as "100MB".
        target: What the answers must reach besides the precision's limit, such as
            "top1_agreement=0.99".

    Returns:
        What was tried, and what is kept. Predictor takes it from then on.

    Raises:
        ParityError: Nothing keeps the answers.
        ResourceError: Nothing fits into the memory.
    """
    several = [bundles] if isinstance(bundles, (str, os.PathLike, Bundle)) else bundles
    if not several:
        raise UsageError("name at least one bundle")
    return tune_bundles(
        [Bundle.read(bundle) for bundle in several],
        [batch] if isinstance(batch, int) else batch,
        only=[] if backend is None else [backend],
        engines_dir=None if out is None else Path(out),
        memory_limit_bytes=cli.limit_bytes(memory_limit),
        target=target_from(target),
    )
