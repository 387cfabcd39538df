"""TensorRT and TensorRT-RTX: NVIDIA GPUs, from a Jetson to a data centre's."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import queue
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_edge.backends import Option, check_pixels
from vit_edge.backends._options import build_names, takes
from vit_edge.backends.trt.builder import (
    FILES,
    PLAN_NAME,
    RECORD_NAME,
    build,
    device_parts,
    key_parts,
)
from vit_edge.backends.trt.cudart import Cudart, open_cudart
from vit_edge.backends.trt.engine import Engine
from vit_edge.backends.trt.lane import Lane
from vit_edge.backends.trt.library import Name, available, installed, open_library, the_gpu
from vit_edge.backends.trt.options import BuildOptions, DeviceOptions, LoadOptions, split
from vit_edge.bundle import Bundle, engines, integrity, trust
from vit_edge.bundle.engines import Found
from vit_edge.errors import EngineError, IntegrityError, UsageError, VitEdgeError
from vit_edge.machine.cuda import Gpu, gpus

__all__ = [
    "BUILD_OPTIONS", "BuildOptions", "TrtBackend", "available", "build", "check_build_options",
    "configurations", "find", "key", "load",
]  # fmt: skip

BUILD_OPTIONS = build_names(BuildOptions)
_MOST_CONTEXTS = 16  # more overlap nothing


@takes(BuildOptions)
def key(bundle: Bundle, options: BuildOptions) -> str:
    """Return what an engine depends on: the model, TensorRT, the GPU, and the options.

    Raises:
        BackendError: No TensorRT, or no GPU.
    """
    gpu, name = the_gpu(options.device), _name(options.library)
    return engines.key_of(key_parts(bundle, gpu, name, options))


def check_build_options(options: Mapping[str, Any], max_batch: int) -> None:
    """Refuse options of `build`, right in their types, that mean nothing for such a bundle.

    Raises:
        UsageError: Every value that is wrong, and what is allowed.
    """
    BuildOptions(**options).check(max_batch)


@takes(DeviceOptions)
def find(bundle: Bundle, options: DeviceOptions) -> Found:
    """The newest engine that `build` made of this bundle for this GPU, whatever the options."""
    return _find(bundle, the_gpu(options.device), _name(options.library), options.engines_dir)


def _find(bundle: Bundle, gpu: Gpu, name: Name, engines_dir: Path | None, only: str = "*") -> Found:
    parts = {"model": bundle.model_sha256} | device_parts(gpu, name)
    return engines.find_like(bundle, "trt", parts, FILES, engines_dir, only=only)


def configurations(bundle: Bundle) -> Sequence[Mapping[str, Option]]:
    """List the options worth trying: with recorded graphs, and two contexts for large batches."""
    return [{}] if bundle.manifest.max_batch == 1 else [{}, {"contexts": 2}]


@takes(LoadOptions)
def load(bundle: Bundle, options: LoadOptions) -> TrtBackend:
    """Open the engine that was built of a bundle.

    Args:
        bundle: The bundle; its files are hashed at the first load on this machine.
        options: See `LoadOptions`, whose attributes are this function's arguments.

    Raises:
        BackendError: No TensorRT, or no GPU.
        EngineError: There is no engine for this model, TensorRT and GPU.
        IntegrityError: A file of the bundle, or the plan, is not the one that was recorded.
        ResourceError: The GPU's memory ran out.
    """
    return _open(bundle, options)


def _open(bundle: Bundle, options: LoadOptions, only: str = "*") -> TrtBackend:
    """Find an engine, the newest or the only one wanted, and open it."""
    if not 1 <= options.contexts <= _MOST_CONTEXTS:
        raise UsageError(f"contexts must lie in 1..{_MOST_CONTEXTS}, not {options.contexts}")
    gpu = the_gpu(options.device)  # first: without a driver TensorRT crashes instead of raising
    integrity.ensure_verified(bundle)
    name = _name(options.library)
    path, reason = _find(bundle, gpu, name, options.engines_dir, only)
    if path is None:
        raise EngineError(f"{bundle.path}: {reason}")
    return TrtBackend(bundle, gpu, path, name, options)


class TrtBackend:
    """An open engine. Thread-safe: each run takes a lane, and waits where none is idle."""

    def __init__(
        self, bundle: Bundle, gpu: Gpu, path: Path, name: Name, options: LoadOptions
    ) -> None:
        """Use `load`, which checks the arguments."""
        self._bundle = bundle
        self._engine = path.resolve()
        self._options = dataclasses.replace(options, engines_dir=self._engine.parent, library=name)
        self._process = os.getpid()
        self._closing = threading.Lock()
        self._closed = False
        plan, record = _trusted(path)
        library = open_library(name)
        self._cudart: Cudart = open_cudart(gpu.index)
        self._cudart.use_device()
        facts = _facts(record) | {
            "backend": "trt",
            "runtime": library.label,
            "device": f"{gpu.name} ({gpu.sm})",
            "provider": library.name,
            "driver": f"CUDA {gpus().cuda}",
            "precision": bundle.manifest.precision,
            "threads": "1",  # of the CPU, that a run takes
            "contexts": str(options.contexts),
            "cuda_graphs": "on" if options.cuda_graphs else "off",
            "engine": path.name,
        }
        engine = Engine(
            library, plan, path / PLAN_NAME, host_code=_host_code(record), dla_core=_dla(record)
        )
        del plan  # the weights are on the GPU now
        engine.check(bundle.manifest)
        self._profiles = engine.profiles(bundle.manifest.input.name)
        facts["profiles"] = " ".join(map(str, self._profiles))
        self._lanes: list[Lane] = []
        # Also without close(): nothing of it holds on to this object.
        self._give_back = weakref.finalize(self, _close, os.getpid(), self._lanes, engine)
        try:
            for _ in range(options.contexts):
                lane = Lane(
                    engine, self._cudart, bundle.manifest, graphs=options.cuda_graphs,
                    on_eager=lambda reason: facts.update(cuda_graphs=f"off ({reason})"),
                )  # fmt: skip
                self._lanes.append(lane)
        except BaseException:
            self._give_back()
            raise
        self._idle: queue.LifoQueue[Lane] = queue.LifoQueue()
        for lane in self._lanes:
            self._idle.put(lane)
        self.facts: Mapping[str, str] = facts

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickled backend reopens its bundle: it may arrive in a process without our GPU."""
        return (_reopen, (str(self._bundle.path.resolve()), self._options, self._engine.name))

    def run(self, pixels: NDArray[np.generic]) -> dict[str, NDArray[np.float32]]:
        """See vit_edge.backends.Backend."""
        self._check_process()
        check_pixels(pixels, self._bundle.manifest)
        ends = np.cumsum(split(self._profiles, len(pixels))).tolist()
        parts = [pixels[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
        answers: list[dict[str, NDArray[np.float32]]] = []
        with self._some_lanes(len(parts)) as lanes:
            self._cudart.use_device()
            for at in range(0, len(parts), len(lanes)):
                together = list(zip(lanes, parts[at : at + len(lanes)], strict=False))
                for lane, part in together:
                    lane.start(part)
                answers += [lane.finish() for lane, _ in together]
        if len(answers) == 1:
            return answers[0]
        return {name: np.concatenate([rows[name] for rows in answers]) for name in answers[0]}

    def close(self) -> None:
        """Wait for what is running, and give the GPU's memory back."""
        if os.getpid() != self._process:
            return  # a forked child: the GPU's memory is its parent's
        with self._closing:
            self._closed = True
            if not self._give_back.alive:
                return
            waiting: list[Lane] = []
            try:
                while len(waiting) < len(self._lanes):
                    waiting.append(self._idle.get())
            except BaseException:  # Ctrl-C: the next close goes on
                for lane in waiting:
                    self._idle.put(lane)
                raise
            self._give_back()

    @contextlib.contextmanager
    def _some_lanes(self, most: int) -> Iterator[list[Lane]]:
        """Take one lane, waiting for it if need be, and as many more as are idle."""
        taken = [self._take()]
        try:
            with contextlib.suppress(queue.Empty):
                while len(taken) < most:
                    taken.append(self._idle.get_nowait())
            yield taken
        except BaseException:
            for lane in taken:
                with contextlib.suppress(VitEdgeError):
                    lane.abandon()
            raise
        finally:
            for lane in taken:
                self._idle.put(lane)

    def _take(self) -> Lane:
        while not self._closed:
            with contextlib.suppress(queue.Empty):
                return self._idle.get(timeout=0.1)
        raise UsageError("this backend is closed")

    def _check_process(self) -> None:
        if self._closed:
            raise UsageError("this backend is closed")
        if os.getpid() != self._process:
            raise UsageError(
                "CUDA does not survive a fork: open the backend in the child, or start it with "
                'multiprocessing\'s "spawn" method'
            )


def _close(process: int, lanes: Sequence[Lane], engine: Engine) -> None:
    """Give everything back, as much as can be where CUDA fails; nothing in a forked child."""
    if os.getpid() != process:
        return
    with contextlib.ExitStack() as last_to_first:
        last_to_first.callback(engine.close)
        for lane in lanes:
            last_to_first.callback(lane.close)


def _reopen(path: str, options: LoadOptions, engine: str) -> TrtBackend:
    """Open the same engine again, if it is one for the GPU that is here."""
    return _open(Bundle.read(path), options, engine)


def _name(library: Name | None) -> Name:
    """The TensorRT that is installed.

    Raises:
        BackendError: None is.
    """
    return installed(library) or open_library(library).name


def _trusted(path: Path) -> tuple[bytes, dict[str, Any]]:
    """An engine's plan and record, if they are, byte for byte, what was built here.

    Read once: what was hashed is what is used, whoever writes to the files meanwhile.

    Raises:
        IntegrityError: They are not.
    """
    recorded, contents = trust.recorded_hashes(path), {}
    for name in FILES:
        contents[name] = (path / name).read_bytes()
        if recorded.get(name) != hashlib.sha256(contents[name]).hexdigest():
            raise IntegrityError(
                f"{path / name} is not the file that was built here: remove {path}, and build again"
            )
    record: dict[str, Any] = json.loads(contents[RECORD_NAME])
    return contents[PLAN_NAME], record


def _facts(record: Mapping[str, Any]) -> dict[str, str]:
    """Return the options an engine was built with, and what became of it."""
    options: Mapping[str, str] = record["options"]
    counted = sorted(record["precisions"].items(), key=lambda item: -item[1])
    facts = {
        "layers": ", ".join(f"{count} {name}" for name, count in counted) or "unknown",
        "tf32": "on" if options.get("tf32") == "True" else "off",
        "options": " ".join(f"{name}={value}" for name, value in options.items()) or "none",
    }
    if record["changed"]:
        facts["built"] = record["changed"]
    if "dla" in record:
        left = len(record["dla"]["left_to_gpu"])
        facts["dla"] = f"core {record['dla']['core']}, {left} layers left to the GPU"
    return facts


def _host_code(record: Mapping[str, Any]) -> bool:
    return bool(record["options"].get("version_compatible") == "True")


def _dla(record: Mapping[str, Any]) -> int | None:
    core: int | None = record.get("dla", {}).get("core")
    return core
