"""Building an engine on the device that will run it, in child processes that may die."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np

from vit_edge.backends._options import takes
from vit_edge.backends.trt.compiler import Job, compile_plan
from vit_edge.backends.trt.cudart import open_cudart
from vit_edge.backends.trt.engine import Engine, precisions
from vit_edge.backends.trt.lane import Lane
from vit_edge.backends.trt.library import Name, installed, installed_version, open_library, the_gpu
from vit_edge.backends.trt.memory import Attempt, attempts, host_bytes, with_limits
from vit_edge.backends.trt.options import BuildOptions
from vit_edge.bundle import Bundle, engines, integrity, trust
from vit_edge.errors import BackendError, EngineError, ResourceError
from vit_edge.machine import child, memory
from vit_edge.machine.cuda import Gpu, gpus
from vit_edge.machine.userdirs import cache_dir

_LOG = logging.getLogger(__name__)

PLAN_NAME = "model.plan"  # a plain plan: trtexec --loadEngine and Triton take it
RECORD_NAME = "plan.json"
LAYERS_NAME = "layers.json"  # the engine inspector's
FILES = (PLAN_NAME, RECORD_NAME)  # without these there is no engine
SCHEMA_VERSION = 1
_CACHE_NAME = "timing.cache"
_KILLED = 9  # what the kernel does to who takes too much


def device_parts(gpu: Gpu, name: Name) -> dict[str, str]:
    """Return what every engine depends on besides the model and its options."""
    return {
        "runtime": f"{name} {installed_version(name)}",
        "gpu": gpu.name,
        "compute_capability": gpu.sm,
        "multiprocessors": str(gpu.multiprocessors),
    }


def key_parts(bundle: Bundle, gpu: Gpu | None, name: Name, options: BuildOptions) -> dict[str, str]:
    """Return what an engine depends on: the model, TensorRT, the GPU, the options."""
    device = (
        {"runtime": f"{name} {installed_version(name)}"} if gpu is None else device_parts(gpu, name)
    )
    return {"model": bundle.model_sha256} | device | options.key_parts()


@takes(BuildOptions)
def build(bundle: Bundle, options: BuildOptions) -> Path:
    """Compile the graph for this GPU, precision and all as it is in the graph.

    TensorRT runs in a child process: when it dies, this one lives, and where memory ran out it is
    tried again with less of it, which is said.

    Args:
        bundle: The bundle.
        options: See `BuildOptions`, whose attributes are this function's arguments.

    Returns:
        The engine's directory: the plan, what it was built with, and which layer runs in which
        precision. It is made aside and moved into place: there is never half of one.

    Raises:
        UsageError: Options that mean nothing.
        BackendError: No GPU, or TensorRT refuses the model; the message names the node.
        ResourceError: Not enough memory, whatever was tried; or no place to write to.
    """
    manifest = bundle.manifest
    options.check(manifest.max_batch)
    name = installed(options.library)
    if name is None:
        open_library(options.library)  # says what to install
        raise AssertionError("unreachable")
    gpu = None if options.compute_capability else the_gpu(options.device)
    integrity.ensure_verified(bundle, full=True)
    free_bytes = _free_bytes(bundle)
    job = Job(
        model=bundle.model_path,
        input_name=manifest.input.name,
        image_shape=tuple(size or 0 for size in manifest.input.shape[1:]),
        profiles=tuple(options.profile_list(manifest.max_batch)),
        options=dataclasses.replace(options, library=name),
        timing_cache=_known_timings(gpu, name) if options.timing_cache and gpu else None,
        terminal=child.shown_on_terminal(),
    )
    key = key_parts(bundle, gpu, name, options)
    files = FILES if gpu is None else (*FILES, LAYERS_NAME)
    disk_bytes = 2 * bundle.model_bytes  # float16 weights may be kept as float32
    with engines.stage_engine(bundle, "trt", key, files, options.engines_dir, disk_bytes) as stage:
        facts = _compile(with_limits(job, gpu, free_bytes), gpu, free_bytes, stage.path)
        if gpu is not None:
            _keep_timings(stage.path / _CACHE_NAME, gpu, name)
            facts |= _open(bundle, gpu, job, stage.path)
        record = {
            "schema_version": SCHEMA_VERSION,
            "model": bundle.model_sha256,
            "runtime": f"{name} {installed_version(name)}",
            "gpu": None if gpu is None else dataclasses.asdict(gpu),
            "driver_cuda": gpus().cuda,
            "options": options.key_parts(),
            "batch_limit": manifest.max_batch,
            "precisions": {},
        }
        (stage.path / RECORD_NAME).write_text(json.dumps(record | facts, indent=2) + "\n")
    return stage.target


def _free_bytes(bundle: Bundle) -> int:
    """Memory that can be had now.

    Raises:
        ResourceError: Not even the weights would fit; what is between that and the estimate is
            said, and tried.
    """
    available = memory.memory().available_bytes
    needed = host_bytes(bundle.model_bytes, bundle.manifest.precision)
    if available is None:
        return needed
    if available < bundle.model_bytes + 100 * 10**6:
        raise ResourceError(
            f"{bundle.path}: building takes about {needed / 1e9:.1f} GB of memory, and "
            f"{available / 1e9:.1f} GB are free: close what else is running, add swap, or build on "
            "a larger board with the same GPU"
        )
    if available < needed:
        _LOG.warning(
            "building takes about %.1f GB of memory, and %.1f GB are free: it may run out",
            needed / 1e9,
            available / 1e9,
        )
    return available


def _compile(job: Job, gpu: Gpu | None, free_bytes: int, folder: Path) -> dict[str, Any]:
    """Compile, with ever less memory as long as it runs out; what came of it, for the record."""
    reasons: list[str] = []
    for attempt in attempts(job, free_bytes):
        if attempt.change:
            _LOG.warning("%s; trying again %s", reasons[-1], attempt.change)
        try:
            return _attempt(attempt, gpu, folder)
        except ResourceError as error:
            reasons.append(str(error).partition("\n")[0])
        except BackendError as error:
            if not attempt.change:
                raise
            # a kernel may need more workspace than there was left to try with
            reasons.append(" ".join(str(error).split("\n")[:3]))
    raise ResourceError(
        f"{job.model}: memory ran out, whatever was tried:\n  "
        + "\n  ".join(reasons)
        + "\nBuild with a smaller largest batch (profiles=1,1,8), close what else is running, or "
        "export a smaller precision"
    )


def _attempt(attempt: Attempt, gpu: Gpu | None, folder: Path) -> dict[str, Any]:
    started, job = time.monotonic(), attempt.job
    device = None if gpu is None else gpu.index
    call = child.attempted_call(
        "vit_edge.backends.trt.builder:compile_here", job, device, folder, echo=True
    )
    _check_death(call.child, f"building {job.model}")
    facts: dict[str, Any] = call.value
    return facts | {
        "changed": attempt.change,
        "profiles": [str(profile) for profile in job.profiles],
        "workspace_bytes": job.workspace_bytes,
        "tactic_bytes": job.tactic_bytes,
        "build_s": round(time.monotonic() - started, 2),
        "build_peak_rss_bytes": call.child.peak_rss_bytes,
    }


def _open(bundle: Bundle, gpu: Gpu, job: Job, folder: Path) -> dict[str, Any]:
    """Open what was built, answer an image, and write down what runs in which precision."""
    call = child.attempted_call(
        "vit_edge.backends.trt.builder:try_here", str(bundle.path), gpu.index, job.options, folder,
        echo=True,
    )  # fmt: skip
    _check_death(call.child, f"running the engine of {job.model} for the first time")
    facts: dict[str, Any] = call.value
    return facts


def _check_death(completed: child.ChildResult, what: str) -> None:
    """A child that took too much memory may be tried again; one that crashed may not.

    Raises:
        ResourceError: It was killed for its memory.
        BackendError: It died of something else.
    """
    if completed.death is None and completed.returncode == 0:
        return
    if completed.returncode == -_KILLED:
        raise ResourceError(f"{what}: {completed.death}")
    last = "".join(f"\n  | {line}" for line in completed.stderr.splitlines()[-5:])
    raise BackendError(f"{what}: TensorRT died: {completed.death or completed.returncode}{last}")


def compile_here(job: Job, device: int | None, folder: Path) -> dict[str, Any]:
    """Compile in this process, which may die of it.

    Args:
        job: What to compile.
        device: The GPU; None for one that is not here.
        folder: Where the plan goes.

    Returns:
        For the record.
    """
    library = open_library(job.options.library)
    if device is not None:
        _check_gpu(the_gpu(device), job.model)
    plan = compile_plan(library, job)
    (folder / PLAN_NAME).write_bytes(plan.plan)
    if plan.timing_cache is not None:
        (folder / _CACHE_NAME).write_bytes(plan.timing_cache)
    facts: dict[str, Any] = {"plan_bytes": len(plan.plan), "network_layers": plan.layers}
    if job.options.dla_core is not None:
        facts["dla"] = {"core": job.options.dla_core, "left_to_gpu": plan.on_gpu}
        _LOG.warning("%d layers run on the GPU: %s", len(plan.on_gpu), ", ".join(plan.on_gpu[:20]))
    return facts


def _check_gpu(gpu: Gpu, model: Path) -> None:
    """Use the GPU of this thread from here on, if the weights alone would fit on it.

    Raises:
        ResourceError: They would not. What shares the host's memory was checked there.
    """
    cudart = open_cudart(gpu.index)
    cudart.use_device()
    free_bytes, disk_bytes = cudart.memory().free_bytes, model.stat().st_size
    if not gpu.integrated and free_bytes < disk_bytes:
        raise ResourceError(
            f"{gpu.name} has {free_bytes / 1e6:.0f} MB free, and the weights alone take "
            f"{disk_bytes / 1e6:.0f} MB: close what else uses it (nvidia-smi shows it)"
        )


def try_here(bundle: str, device: int, options: BuildOptions, folder: Path) -> dict[str, Any]:
    """Run a plan that was just built, in this process, which may die of it.

    Args:
        bundle: Its path.
        device: The GPU.
        options: That it was built with.
        folder: Where the plan is, and where the engine inspector's words go.

    Returns:
        For the record: layers counted by precision, or why that is not known.

    Raises:
        EngineError: It is not what was wanted.
        BackendError: It does not run.
    """
    manifest, gpu = Bundle.read(bundle).manifest, the_gpu(device)
    cudart = open_cudart(gpu.index)
    cudart.use_device()
    engine = Engine(
        open_library(options.library), (folder / PLAN_NAME).read_bytes(), folder / PLAN_NAME,
        host_code=options.version_compatible, dla_core=options.dla_core,
    )  # fmt: skip
    engine.check(manifest)
    lane = Lane(engine, cudart, manifest, graphs=False)
    try:
        shape = (1, *(size or 0 for size in manifest.input.shape[1:]))
        lane.start(np.zeros(shape, manifest.input.dtype))
        if not all(np.isfinite(answer).all() for answer in lane.finish().values()):
            raise EngineError(f"{folder / PLAN_NAME}: it answers an empty image with NaN or Inf")
        try:
            layers = engine.layers()
            counted: dict[str, Any] = {"precisions": precisions(layers)}
        except BackendError as error:  # the engine runs without
            layers, counted = {}, {"inspector": str(error)}
            _LOG.warning("%s", str(error))
    finally:
        lane.close()
        engine.close()
    (folder / LAYERS_NAME).write_text(json.dumps(layers, indent=1) + "\n")
    return counted


def _timings_folder(gpu: Gpu, name: Name) -> Path | None:
    base = cache_dir()
    key = engines.key_of(device_parts(gpu, name))
    return None if base is None else base / "timing" / key


def _known_timings(gpu: Gpu, name: Name) -> bytes:
    """Read the timings of earlier builds here; only what we recorded is used."""
    folder = _timings_folder(gpu, name)
    recorded = None if folder is None else trust.recorded_hashes(folder).get(_CACHE_NAME)
    if folder is None or recorded is None:
        return b""
    timings = (folder / _CACHE_NAME).read_bytes()
    return timings if hashlib.sha256(timings).hexdigest() == recorded else b""


def _keep_timings(timings: Path, gpu: Gpu, name: Name) -> None:
    """Move what was timed to where the next build finds it; no build fails for it."""
    if not timings.exists():
        return
    folder = _timings_folder(gpu, name)
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            aside = folder / f"{_CACHE_NAME}.{timings.stat().st_ino}"
            aside.write_bytes(timings.read_bytes())
            aside.replace(folder / _CACHE_NAME)
            trust.record(folder, trust.fingerprints(folder, [_CACHE_NAME]))
    except OSError as error:
        _LOG.warning("%s: what was timed is not kept: %s", folder, error.strerror)
    timings.unlink()
