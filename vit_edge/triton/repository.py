"""Bundles -> a model repository of NVIDIA's Triton Inference Server."""

from __future__ import annotations

import functools
import os
import shutil
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from vit_edge.bundle import Bundle, staging, trust
from vit_edge.bundle.bundle import LABELS_NAME, MANIFEST_NAME, PREPROCESS_NAME, sha256_of
from vit_edge.bundle.golden import Golden
from vit_edge.errors import IntegrityError, UsageError
from vit_edge.images.preprocess import input_from_resized
from vit_edge.machine import cpus
from vit_edge.triton.config import (
    FILES,
    WARMUP_NAME,
    Backend,
    Serving,
    config_from_bundle,
    ensemble_config,
    preprocess_config,
)
from vit_edge.triton.text import text_from_message
from vit_edge.triton.versions import (
    Version,
    built_with,
    group_by_name,
    prepare_version,
    shared_limits,
)

CONFIG_NAME = "config.pbtxt"
DEFAULT_QUEUE_US = 2000
_TOP_K = 5
_WARMUP_FOLDER = "warmup"  # where Triton looks for it
_HEADER = "# Written by vit-edge triton."
ALIASES = {"ort": "onnxruntime", "trt": "tensorrt"}  # what they are called elsewhere here
_PREPROCESS, _ENSEMBLE = "_preprocess", "_ensemble"  # behind a model's name
_ENSEMBLE_NOTE = (
    "an ensemble takes uint8[height, width, 3], RGB, upright, a request an image; decoding is the "
    "client's job. Triton's ONNX Runtime must be there for it"
)
_NOTES: dict[str, str] = {
    "python": 'where Triton runs: pip install "vit-edge[cpu]"',
    "onnxruntime": "Triton's ONNX Runtime must be 1.23 or newer, for weights of 8 bits 1.25",
    "tensorrt": "the plan runs with the TensorRT and on the GPU that it was built with: {runtime}",
    "openvino": "Triton's OpenVINO must be 2026.3 or newer. On a CPU with BF16 it rounds products "
    "to BF16, and Triton has no switch for that. It runs each request by itself: send batches",
}


@dataclass(frozen=True)
class Served:
    """One model of a repository."""

    name: str
    backend: Backend
    bundles: tuple[str, ...]  # version 1, 2, ...
    max_batch: int
    inputs: dict[str, str]  # name -> type and shape of one image
    outputs: dict[str, str]


@dataclass(frozen=True)
class Repository:
    """A model repository that was written."""

    path: Path
    models: tuple[Served, ...]
    notes: tuple[str, ...]  # what whoever runs it has to know


def triton(
    bundles: str | os.PathLike[str] | Bundle | Sequence[str | os.PathLike[str] | Bundle],
    *,
    out: str | os.PathLike[str],
    backend: str = "python",
    names: Sequence[str] | None = None,
    instances: int = 1,
    queue_us: int = DEFAULT_QUEUE_US,
    threads: int | None = None,
    top_k: int | None = None,
    ensemble: bool = False,
    force: bool = False,
) -> Repository:
    """Write a model repository that Triton serves.

    Args:
        bundles: One, or several: each becomes a model.
        out: The repository's directory. It appears at once and whole.
        backend: "python" takes encoded images, and needs vit_edge where Triton runs. "onnxruntime",
            "openvino" and "tensorrt" take the model's own tensor; the last one serves the plan that
            `vit-edge build --backend trt` made here.
        names: Of the models, one for each bundle; by default the names of their directories. A
            name that comes again makes version 2 of its model, then 3.
        instances: How many of each model run at the same time.
        queue_us: How many microseconds a request may wait for others to share a batch; with
            OpenVINO none does.
        threads: Of each instance. By default one instance takes every CPU of the server, and
            several share those of this machine. TensorRT has none.
        top_k: How many classes the Python backend's label, index and score hold; by default 5.
        ensemble: Write NAME_ensemble beside each model, which takes an RGB image of any size: its
            preprocessing runs on Triton's ONNX Runtime as NAME_preprocess.
        force: Replace a repository that was written before.

    Returns:
        What is in the repository, and what to mind.

    Raises:
        UsageError: A value that is none; names that clash; `out` exists.
        BundleError: A bundle cannot be used.
        BackendError: The backend cannot serve the bundle; or no TensorRT, or no GPU, is here.
        EngineError: There is no plan of the bundle.
    """
    listed = [bundles] if isinstance(bundles, (str, os.PathLike, Bundle)) else list(bundles)
    chosen = _backend(backend)
    for option, value, least in (
        ("instances", instances, 1), ("queue-us", queue_us, 0), ("top-k", top_k, 1),
        ("threads", threads, 1),
    ):  # fmt: skip
        optional = value is None and option in ("top-k", "threads")
        if not optional and (type(value) is not int or value < least):
            raise UsageError(f"--{option} must be a whole number from {least} on, not {value!r}")
    if top_k is not None and chosen != "python":
        raise UsageError(f"--top-k is for the Python backend, and {chosen} gives logits")
    if threads is not None and chosen == "tensorrt":
        raise UsageError("--threads is for CPUs, and tensorrt has none; give --instances")
    opened = [Bundle.read(bundle) for bundle in listed]
    models = group_by_name(opened, names)
    if ensemble:
        _check_ensembles(models, chosen)
    destination = Path(out)
    check = functools.partial(
        staging.check_destination, destination, force=force, what="model repository", ours=_is_ours
    )
    check()
    if threads is None and instances > 1:
        threads = max(1, cpus.default_threads() // instances)
    versions = {
        name: [prepare_version(chosen, bundle) for bundle in same] for name, same in models.items()
    }
    serving = {}
    for name, same in versions.items():
        limits = shared_limits(name, same, chosen)
        serving[name] = Serving(chosen, instances, queue_us, threads, top_k or _TOP_K, *limits)
    every = [version for same in versions.values() for version in same]
    needed = sum(one.needed_bytes for one in every)
    with staging.staged(destination, option="--out", check=check, needed_bytes=needed) as stage:
        for name, same in versions.items():
            _write(stage / name, name, same, serving[name])
            if ensemble:
                _write_ensemble(stage, name, same[-1].bundle, serving[name])
    served = [_served(name, same, serving[name]) for name, same in versions.items()]
    notes = [*_notes(chosen, every), *([_ENSEMBLE_NOTE] if ensemble else [])]
    return Repository(destination, tuple(served), tuple(notes))


def _backend(name: str) -> Backend:
    chosen: Any = ALIASES.get(name.lower(), name.lower())
    if chosen not in get_args(Backend):
        raise UsageError(f"--backend {name}: expected one of {', '.join(get_args(Backend))}")
    backend: Backend = chosen
    return backend


def _write(folder: Path, name: str, versions: Sequence[Version], serving: Serving) -> None:
    first = versions[0].bundle
    warmup = _warmup(first, serving.backend)
    config = config_from_bundle(
        name, first, serving, versions=len(versions), warmup=warmup is not None
    )
    _write_config(folder, config)
    if first.labels:
        shutil.copyfile(first.path / LABELS_NAME, folder / LABELS_NAME)
    if warmup is not None:
        (folder / _WARMUP_FOLDER).mkdir()
        (folder / _WARMUP_FOLDER / WARMUP_NAME).write_bytes(warmup)
    for number, version in enumerate(versions, 1):
        target = folder / str(number)
        target.mkdir()
        if serving.backend == "python":
            shutil.copyfile(Path(__file__).with_name("model.py"), target / FILES["python"])
            (target / "bundle").mkdir()
            _copy_bundle(version.bundle, target / "bundle")
        else:
            _copy_files(version, target)


def _write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Make a model's folder, with its configuration."""
    folder.mkdir()
    text = f"{_HEADER}\n{text_from_message(config)}"
    (folder / CONFIG_NAME).write_text(text, encoding="utf-8")


def _check_ensembles(models: Mapping[str, Sequence[Bundle]], backend: Backend) -> None:
    """Refuse what no preprocessing can stand in front of, before anything is written."""
    if backend == "python":
        raise UsageError("--ensemble is for tensors; the Python backend takes encoded images")
    for name, versions in models.items():
        for bundle in versions:
            if bundle.preprocess_path is None:
                raise UsageError(
                    f"--ensemble: {bundle.path} has no {PREPROCESS_NAME}; export it anew"
                )
            if bundle.manifest.preprocessing != versions[-1].manifest.preprocessing:
                raise UsageError(f"--ensemble: the versions of {name} prepare images differently")
        for taken in (f"{name}{_PREPROCESS}", f"{name}{_ENSEMBLE}"):
            if taken in models:
                raise UsageError(f"--ensemble: {taken} is a model already; give other --names")


def _write_ensemble(stage: Path, name: str, bundle: Bundle, serving: Serving) -> None:
    """Write the preprocessing of a model, and what runs both."""
    preprocess, both = f"{name}{_PREPROCESS}", f"{name}{_ENSEMBLE}"
    configs = {
        preprocess: preprocess_config(preprocess, bundle, serving),
        both: ensemble_config(both, bundle, preprocess, name),
    }
    for model, config in configs.items():
        _write_config(stage / model, config)
        (stage / model / "1").mkdir()
    shutil.copyfile(bundle.path / PREPROCESS_NAME, stage / preprocess / "1" / PREPROCESS_NAME)
    if bundle.labels:
        shutil.copyfile(bundle.path / LABELS_NAME, stage / both / LABELS_NAME)


def _copy_bundle(bundle: Bundle, target: Path) -> None:
    """Copy a bundle without its engines, which belong to this machine; the manifest last."""
    for file in (*bundle.manifest.files, MANIFEST_NAME):
        shutil.copyfile(bundle.path / file, target / file)


def _copy_files(version: Version, target: Path) -> None:
    """Copy what a runtime opens.

    Raises:
        IntegrityError: A plan is not the one that was built.
    """
    for file, source in version.files.items():
        shutil.copyfile(source, target / file)
        if version.engine is not None:
            recorded = trust.recorded_hashes(version.engine).get(file)
            if sha256_of(target / file) != recorded:
                raise IntegrityError(f"{source} is not the file that was built here: build it anew")


def _warmup(bundle: Bundle, backend: Backend) -> bytes | None:
    """The first probe as the model's input: one image, without the axis of the batch."""
    with Golden(bundle.golden_path) as golden:
        probe = next(iter(golden.probes()), None)
    if probe is None:
        return None
    if backend == "python":  # a string of Triton's has its length in front
        return struct.pack("<I", len(probe.data)) + probe.data
    return input_from_resized(probe.resized[None], bundle.manifest).tobytes()


def _is_ours(folder: Path) -> bool:
    """Tell whether all that is in a directory are models that we have written."""
    for model in folder.iterdir():
        config = model / CONFIG_NAME
        try:
            if not config.read_text(encoding="utf-8").startswith(_HEADER):
                return False
        except (OSError, UnicodeDecodeError):
            return False
    return True


def _served(name: str, versions: Sequence[Version], serving: Serving) -> Served:
    config = config_from_bundle(name, versions[0].bundle, serving)
    tensors = [
        {one["name"]: f"{one['data_type'][5:]} {one['dims']}" for one in config[kind]}
        for kind in ("input", "output")
    ]
    bundles = tuple(str(version.bundle.path) for version in versions)
    return Served(name, serving.backend, bundles, serving.max_batch, *tensors)


def _notes(backend: Backend, versions: Sequence[Version]) -> Iterator[str]:
    """What whoever runs the server, or asks it, has to know."""
    runtimes = sorted({built_with(v.engine)["runtime"] for v in versions if v.engine is not None})
    yield _NOTES[backend].format(runtime=", ".join(runtimes))
    if any(v.engine and built_with(v.engine).get("version_compatible") == "True" for v in versions):
        yield "start Triton with --backend-config=tensorrt,version-compatible=true"
    if backend != "python":
        yield "resizing images is the client's job, as the bundle's manifest says"
        if any(v.bundle.manifest.input.dtype == "float32" for v in versions):
            yield (
                "so is normalising them. Exported with --input uint8 a model does that itself, and "
                "a request has a quarter of the bytes"
            )
    if any(version.bundle.manifest.precision == "int8-dynamic" for version in versions):
        yield (
            "int8-dynamic scales a batch as a whole: an answer depends on the requests that share "
            "its batch. Another precision, or --queue-us 0 with one image a request, avoids that"
        )
