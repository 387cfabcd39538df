"""Engines of ONNX Runtime's TensorRT provider: the plan it would otherwise build at every load.

The provider reads whatever plan of the right name lies in its cache directory, and a plan is native
code. So it never sees a directory that others could have written: `build` keeps the plan like every
engine, hashed and recorded, and `load` lends the provider a private copy whose every byte was
compared with that record.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vit_edge.backends.ort import device, libraries, placement, providers
from vit_edge.backends.ort.session import check_present, check_runnable
from vit_edge.backends.ort.use import Use
from vit_edge.bundle import Bundle, engines, integrity, trust
from vit_edge.bundle.bundle import sha256_of
from vit_edge.bundle.engines import Found
from vit_edge.errors import BackendError, EngineError

NAME = "ort_tensorrt"  # of the engine's directory; not found by what looks for ort-*
PLAN_NAME, PROFILE_NAME, NAMES_NAME = "model.plan", "model.profile", "names.json"
FILES = (PLAN_NAME, PROFILE_NAME, NAMES_NAME)
_SUFFIXES = {PLAN_NAME: ".engine", PROFILE_NAME: ".profile"}  # tensorrt_execution_provider.cc


def key_parts(runtime: Any, bundle: Bundle, use: Use) -> dict[str, str]:
    """What a plan depends on: the model, both runtimes, the GPU, and how it is built.

    Raises:
        BackendError: No GPU, or no TensorRT.
    """
    check_present(runtime, use.provider)
    gpu = providers.gpu_of(use)
    with providers.stdout_on_stderr():
        libraries.preload(runtime)
        version = libraries.tensorrt_version(runtime)
    return {
        "model": bundle.model_sha256,
        "runtime": f"onnxruntime {runtime.__version__}",
        "tensorrt": version,
        "gpu": f"{gpu.name}, {gpu.sm}, {gpu.multiprocessors} multiprocessors",
        "batches": f"1 to {bundle.manifest.max_batch}, best at {use.gpu.optimum_batch}",
        "workspace_bytes": str(use.gpu.workspace_bytes),
        "optimization_level": str(use.gpu.optimization_level),
        "tf32_override": os.environ.get("NVIDIA_TF32_OVERRIDE", ""),
    }


def find(bundle: Bundle, engines_dir: Path | None, use: Use) -> Found:
    """The engine that `build` made of this bundle here with these options, or why there is none."""
    import onnxruntime

    command = f"python -m vit_edge.build {bundle.path} --backend ort --set provider=tensorrt"
    parts = key_parts(onnxruntime, bundle, use)
    return engines.find(bundle, NAME, parts, FILES, engines_dir, command)


def build(bundle: Bundle, engines_dir: Path | None, use: Use) -> Path:
    """Have TensorRT build the plan, run it, and keep it.

    Returns:
        The engine's directory. It is made aside and moved into place: there is never half of one.

    Raises:
        BackendError: No GPU or TensorRT, or a node would run elsewhere than in the plan.
        ResourceError: No place to write to.
    """
    check_runnable(bundle, use.provider)
    integrity.ensure_verified(bundle, full=True)
    import onnxruntime

    parts = key_parts(onnxruntime, bundle, use)
    needed_bytes = 2 * bundle.model_bytes  # a plan holds the weights once, and its kernels
    with (
        engines.made(bundle, NAME, parts, FILES, engines_dir, needed_bytes) as stage,
        tempfile.TemporaryDirectory(dir=stage.path) as name,
    ):
        cache = Path(name)
        profile = str(cache / "profile")
        opened = device.opened(onnxruntime, bundle, use, cache=cache, profile=profile)
        batches = sorted({1, bundle.manifest.max_batch})
        found = placement.counted(opened.session, bundle.manifest, batches)
        placement.check_placed(found, use.provider)
        _keep(cache, stage.path)
    return stage.target


def _keep(cache: Path, stage: Path) -> None:
    """Move what the provider wrote to names of ours; the provider's own are kept in a file."""
    names = {}
    for ours, suffix in _SUFFIXES.items():
        written = sorted(file for file in cache.iterdir() if file.name.endswith(suffix))
        if len(written) != 1:
            raise BackendError(
                f"onnxruntime's TensorRT provider wrote {len(written)} files *{suffix} where one "
                "was expected: it did not take the graph as a whole"
            )
        names[ours] = written[0].name
        written[0].replace(stage / ours)
    (stage / NAMES_NAME).write_text(json.dumps(names) + "\n")


@contextmanager
def lent(engine: Path | None) -> Iterator[Path | None]:
    """Give the provider a private copy of an engine, for as long as it opens its session.

    Raises:
        EngineError: A byte is not what was recorded; or the provider did not take it, and wrote
            another.
    """
    if engine is None:
        yield None
        return
    recorded = trust.recorded_hashes(engine)
    with tempfile.TemporaryDirectory(prefix="vit-edge-") as name:  # mode 0700
        folder = Path(name)
        for file in FILES:
            shutil.copyfile(engine / file, folder / file)
            if sha256_of(folder / file) != recorded.get(file):
                raise EngineError(f"{engine / file} is not what was built here: build it again")
        names = json.loads((folder / NAMES_NAME).read_text())
        for ours in _SUFFIXES:
            (folder / ours).replace(folder / names[ours])
        before = _states(folder)
        yield folder
        if _states(folder) != before:
            raise EngineError(
                f"{engine}: onnxruntime's TensorRT provider did not take it and built another; "
                'build it again, or load with engine="never"'
            )


def _states(folder: Path) -> dict[str, tuple[int, int]]:
    states = {file.name: file.stat() for file in folder.iterdir()}
    return {name: (state.st_size, state.st_mtime_ns) for name, state in states.items()}
