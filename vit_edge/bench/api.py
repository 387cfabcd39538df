"""Measure what bundles cost on the device this runs on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

from vit_edge import backends
from vit_edge.bench.results import results
from vit_edge.bench.results.runs import Run
from vit_edge.bench.run import built
from vit_edge.bench.run.plan import Sampling, Scenario, Stage, Suite, default_batch, product
from vit_edge.bench.run.runner import Save, Terminated, command_line, run, terminable
from vit_edge.bundle import Bundle
from vit_edge.bundle.bundle import local_folder
from vit_edge.errors import UsageError

_Path = str | os.PathLike[str]


def bench(
    bundles: _Path | Bundle | Sequence[_Path | Bundle] = (),
    *,
    backend: str | Sequence[str] = backends.AUTO,
    batch: int | Sequence[int] | None = None,
    scenario: Scenario = "single-stream",
    stage: str | Sequence[str] = "model",
    sampling: Sampling | None = None,
    suite: Suite | None = None,
    build: bool = False,
    out: _Path | None = None,
) -> Run:
    """Measure latency, throughput, cold start and memory, each configuration in fresh processes.

    Args:
        bundles: One, or several.
        backend: One name, or several; "ort,openvino" is two.
        batch: Images of one run, one size or several; by default 1, for scenario "offline" 8.
        scenario: "single-stream": one query after another; "offline": all images at hand.
        stage: "model": pixels to logits; "end-to-end": encoded images to labels; or both.
        sampling: How much is measured: Sampling(processes=5, percentile=0.9, ...).
        suite: What to measure instead of all combinations of the above; see plan.read_suite.
        build: Build every engine anew first, and keep what that took.
        out: Results to append the run to.

    Returns:
        The run, with its raw samples. `complete` is false where it was interrupted; `failed` of an
        entry says why it could not be measured.

    Raises:
        UsageError: What is asked means nothing.
        BundleError: One is no bundle.
    """
    several = [bundles] if isinstance(bundles, (str, os.PathLike, Bundle)) else list(bundles)
    if (suite is None) == (not several):
        raise UsageError("name bundles, or a --suite")
    if suite is None:
        suite = _suite(several, backend, batch, scenario, stage, sampling or Sampling())
    with contextlib.ExitStack() as stack:  # whether it can be saved is known before any work
        save: Save = lambda _: None  # noqa: E731
        if out is not None:
            save = stack.enter_context(results.appending(Path(out)))
        return run(suite, save, command_line(), _builds(suite) if build else {})


def _suite(
    bundles: Sequence[_Path | Bundle],
    backend: str | Sequence[str],
    batch: int | Sequence[int] | None,
    scenario: Scenario,
    stage: str | Sequence[str],
    sampling: Sampling,
) -> Suite:
    """Every combination; what is no bundle is told before any work."""
    stages = stage.split(",") if isinstance(stage, str) else list(stage)
    if unknown := [name for name in stages if name not in get_args(Stage)]:
        raise UsageError(f"--stage {unknown[0]}: expected {', '.join(get_args(Stage))}")
    names = backend.split(",") if isinstance(backend, str) else backend
    batches = default_batch(scenario) if batch is None else batch
    suite = Suite(
        "command line",
        product(
            [
                bundle.path if isinstance(bundle, Bundle) else local_folder(bundle)
                for bundle in bundles
            ],
            [(name, {}) for name in names],
            [batches] if isinstance(batches, int) else list(batches),
            scenario,
            stages,  # type: ignore[arg-type]  # checked above
        ),
        sampling,
    )
    suite.check()
    for bundle in bundles:
        Bundle.read(bundle)
    return suite


def _builds(suite: Suite) -> Mapping[str, built.Built]:
    """Build every engine; SIGTERM stops it as Ctrl-C does.

    Raises:
        KeyboardInterrupt: One of them came.
    """
    try:
        with terminable():
            return built.builds(suite.configurations)
    except Terminated:
        raise KeyboardInterrupt from None
