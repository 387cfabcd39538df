"""TensorRT and TensorRT-RTX: NVIDIA GPUs, from a Jetson to a data centre's."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
from numpy.typing import NDArray

from vit_edge import engines, trust, verify
from vit_edge.backends import check_pixels
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
from vit_edge.backends.trt.options import BuildOptions, split
from vit_edge.bundle import Bundle, sha256_of
from vit_edge.choose import Option
from vit_edge.engines import Found
from vit_edge.errors import BackendError, EngineError, IntegrityError, UsageError
from vit_edge.gpu import Gpu, gpus

__all__ = [
    "BUILD_OPTIONS", "TrtBackend", "available", "build", "configurations", "find", "key", "load",
]  # fmt: skip

BUILD_OPTIONS = frozenset({"device", *get_type_hints(BuildOptions)})
_MOST_CONTEXTS = 16  # more overlap nothing


def key(bundle: Bundle) -> str:
    """What an engine depends on: the model, TensorRT, the GPU; and the options, here the defaults.

    Raises:
        BackendError: No TensorRT, or no GPU.
    """
    return engines.key_of(key_parts(bundle, the_gpu(0), _name(None), BuildOptions()))


def find(
    bundle: Bundle, engines_dir: Path | None = None, *, device: int = 0, library: Name | None = None
) -> Found:
    """The newest engine that `build` made of this bundle for this GPU, whatever the options."""
    parts = {"model": bundle.model_sha256} | device_parts(the_gpu(device), _name(library))
    return engines.find_like(bundle, "trt", parts, FILES, engines_dir)


def configurations(bundle: Bundle) -> Sequence[Mapping[str, Option]]:
    """What is worth trying here: with recorded graphs, and two contexts for large batches."""
    return [{}] if bundle.manifest.max_batch == 1 else [{}, {"contexts": 2}]


def load(
    bundle: Bundle,
    *,
    device: int = 0,
    library: Name | None = None,
    contexts: int = 1,
    cuda_graphs: bool = True,
    engines_dir: Path | None = None,
) -> TrtBackend:
    """Open the engine that was built of a bundle.

    Args:
        bundle: The bundle; its files are hashed at the first load on this machine.
        device: Which GPU, as CUDA counts them.
        library: "tensorrt" or "tensorrt_rtx"; by default what is installed, the full one first.
        contexts: How many batches run at the same time, each with buffers of its own: for several
            threads, or for a batch that is split.
        cuda_graphs: Record what a batch size launches, and replay it: less work for the CPU.
        engines_dir: Where `build` was told to put it.

    Raises:
        BackendError: No TensorRT, or no GPU.
        EngineError: There is no engine for this model, TensorRT and GPU.
        IntegrityError: A file of the bundle, or the plan, is not the one that was recorded.
        ResourceError: The GPU's memory ran out.
    """
    if not 1 <= contexts <= _MOST_CONTEXTS:
        raise UsageError(f"contexts must lie in 1..{_MOST_CONTEXTS}, not {contexts}")
    gpu = the_gpu(device)  # first: without a driver TensorRT crashes instead of raising
    verify.ensure_verified(bundle)
    found = find(bundle, engines_dir, device=device, library=library)
    if found.path is None:
        raise EngineError(f"{bundle.path}: {found.reason}")
    return TrtBackend(bundle, gpu, found.path, _name(library), contexts, cuda_graphs)


class TrtBackend:
    """An open engine. Thread-safe: each run takes a lane, and waits where none is idle."""

    def __init__(
        self, bundle: Bundle, gpu: Gpu, path: Path, name: Name, contexts: int, cuda_graphs: bool
    ) -> None:
        """Use `load`, which checks the arguments."""
        self._bundle = bundle
        self._arguments = (path.resolve(), gpu.index, name, contexts, cuda_graphs)
        self._process = os.getpid()
        self._closing = threading.Lock()
        self._closed = False
        record = _trusted_record(path)
        library = open_library(name)
        self._cudart: Cudart = open_cudart(gpu.index)
        self._cudart.use_device()
        host_code = record.get("version_compatible") == "True"
        self._engine = Engine(library, path / PLAN_NAME, host_code=host_code)
        self._engine.check(bundle.manifest)
        self._profiles = self._engine.profiles(bundle.manifest.input.name)
        self._lanes = [
            Lane(self._engine, self._cudart, bundle.manifest, graphs=cuda_graphs)
            for _ in range(contexts)
        ]
        self._idle: queue.LifoQueue[Lane] = queue.LifoQueue()
        for lane in self._lanes:
            self._idle.put(lane)
        self.facts: Mapping[str, str] = {
            "backend": "trt",
            "runtime": library.label,
            "device": f"{gpu.name} ({gpu.sm})",
            "provider": library.name,
            "driver": f"CUDA {gpus().cuda}",
            "precision": bundle.manifest.precision,
            "layers": _told(record.get("precisions")),
            "profiles": " ".join(map(str, self._profiles)),
            "threads": "1",  # of the CPU, that a run takes
            "contexts": str(contexts),
            "cuda_graphs": "on" if cuda_graphs else "off",
            "tf32": "on" if record.get("tf32") == "True" else "off",
            **({"dla": _told_dla(record["dla"])} if "dla" in record else {}),
            "engine": path.name,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickled backend reopens its bundle: it may arrive in a process without our GPU."""
        return (_reopen, (str(self._bundle.path.resolve()), *self._arguments))

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
            if self._closed:
                return
            self._closed = True
            for _ in self._lanes:
                self._idle.get().close()
            self._engine.close()

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
                with contextlib.suppress(BackendError):
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


def _reopen(
    path: str, engine: Path, device: int, name: Name, contexts: int, cuda_graphs: bool
) -> TrtBackend:
    return load(
        Bundle.read(path),
        device=device,
        library=name,
        contexts=contexts,
        cuda_graphs=cuda_graphs,
        engines_dir=engine.parent,
    )


def _name(library: Name | None) -> Name:
    """The TensorRT that is installed.

    Raises:
        BackendError: None is.
    """
    return installed(library) or open_library(library).name


def _trusted_record(path: Path) -> dict[str, Any]:
    """What is known of an engine, if the plan is, byte for byte, the one that was built.

    Raises:
        IntegrityError: It is not.
    """
    recorded = trust.recorded_hashes(path)
    for name in FILES:
        if recorded.get(name) != sha256_of(path / name):
            raise IntegrityError(
                f"{path / name} is not the file that was built here: remove {path}, and build again"
            )
    found: dict[str, Any] = json.loads((path / RECORD_NAME).read_text())
    return found


def _told(precisions: Any) -> str:
    """Such as "37 fp16, 12 fp32"."""
    counted = sorted((precisions or {}).items(), key=lambda item: -item[1])
    return ", ".join(f"{count} {name}" for name, count in counted) or "unknown"


def _told_dla(dla: Any) -> str:
    left = len(dla["left_to_gpu"])
    return f"core {dla['core']}, {left} layers left to the GPU"
