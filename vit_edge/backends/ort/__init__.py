"""ONNX Runtime: the CPU provider, and the CUDA provider where it is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vit_edge.backends import Availability, check_pixels
from vit_edge.backends.ort import builds
from vit_edge.backends.ort.builds import BUILD_OPTIONS, build, configurations, find, key
from vit_edge.backends.ort.session import (
    MINIMUM_VERSION,
    check_runnable,
    installed_version,
    open_session,
    precision_facts,
    release,
    session_options,
)
from vit_edge.backends.ort.use import (
    DEFAULT_LEVEL,
    AccuracyLevel,
    GpuUse,
    Provider,
    Use,
)
from vit_edge.bundle import Bundle, engines, integrity
from vit_edge.bundle.bundle import MODEL_NAME
from vit_edge.errors import BackendError, EngineError, UsageError
from vit_edge.machine import cpus

if TYPE_CHECKING:
    import onnxruntime

    from vit_edge.backends.ort.binding import Binding

__all__ = [
    "BUILD_OPTIONS",
    "OrtBackend",
    "Use",
    "available",
    "build",
    "configurations",
    "find",
    "key",
    "load",
]


def available() -> Availability:
    """Whether onnxruntime is installed, without importing it."""
    if importlib.util.find_spec("onnxruntime") is None:
        return Availability(False, 'onnxruntime is not installed: pip install "vit-edge[cpu]"')
    version = installed_version()
    if release(version) < MINIMUM_VERSION:
        return Availability(
            False,
            f'onnxruntime {version} is too old, 1.23 is needed: pip install -U "vit-edge[cpu]"',
        )
    return Availability(True, f"onnxruntime {version}")


def load(
    bundle: Bundle,
    *,
    threads: int | None = None,
    provider: Provider = "cpu",
    engine: engines.Use = "auto",
    engines_dir: Path | None = None,
    accuracy_level: AccuracyLevel = DEFAULT_LEVEL,
    spinning: bool = True,
    arena: bool = True,
    micro_batch: int | None = None,
    device: int = GpuUse.device,
    gpu_memory_bytes: int | None = GpuUse.gpu_memory_bytes,
    cuda_graph: bool = GpuUse.cuda_graph,
) -> OrtBackend:
    """Open a bundle in ONNX Runtime.

    Args:
        bundle: The bundle; its files are hashed at the first load on this machine.
        threads: Of one run; by default what affinity and cgroup allow.
        provider: What must run the graph, every node of it.
        engine: Whether to use what `build` made: if it is there, never, or insist on it.
        engines_dir: Where `build` was told to put it.
        accuracy_level: Of weight-only precisions: 4 rounds inputs to int8 by blocks, 0 does not.
        spinning: See `Use`, as for the following.
        arena: Off where memory is short.
        micro_batch: 1 where memory is short.
        device: See `GpuUse`, as for the following.
        gpu_memory_bytes: What the CUDA provider's arena may take.
        cuda_graph: Whether the CUDA provider launches all kernels together.

    Raises:
        IntegrityError: A file of the bundle is not what its manifest says.
        EngineError: `engine="required"` and there is none for this model, runtime and machine.
        BackendError: The provider is not there, refuses the model, or is too old for its precision.
    """
    gpu = GpuUse(device, gpu_memory_bytes, cuda_graph)
    wanted = cpus.usable_cpus() if threads is None else threads
    use = Use(wanted, provider, accuracy_level, spinning, arena, micro_batch, gpu)
    return _load(bundle, use, engine, engines_dir)


def _load(bundle: Bundle, use: Use, engine: engines.Use, engines_dir: Path | None) -> OrtBackend:
    engines.check_use(engine)
    use.check()
    check_runnable(bundle, use.provider)
    integrity.ensure_verified(bundle)
    found: Path | None = None
    if engine == "never" and use.provider == "cpu":
        reason = "not asked for"
    else:
        found, reason = builds.found(bundle, engines_dir, use)
    if engine == "required" and found is None:
        raise EngineError(f"{bundle.path}: {reason}")
    return OrtBackend(bundle, found, reason, use)


class OrtBackend:
    """An open ONNX Runtime session. Thread-safe, as sessions are."""

    def __init__(self, bundle: Bundle, engine: Path | None, reason: str, use: Use) -> None:
        """Use `load`, which checks the arguments."""
        import onnxruntime

        self._bundle = bundle
        # found again from any folder
        self._arguments = (None if engine is None else engine.resolve(), use)
        self._micro_batch = use.micro_batch or bundle.manifest.max_batch
        precision = bundle.manifest.precision
        gpu_facts: Mapping[str, str] = {}
        self._binding: Binding | None = None
        if use.provider == "cpu":
            options = session_options(
                onnxruntime, use, precision, optimize=engine is None, entries={}
            )
            path = bundle.model_path if engine is None else engine / MODEL_NAME
            session = open_session(onnxruntime, path, options, use.provider)
        else:
            from vit_edge.backends.ort import device

            session, self._binding, gpu_facts = device.open_bound(onnxruntime, bundle, use)
        self._session: onnxruntime.InferenceSession | None = session
        self._outputs = [tensor.name for tensor in bundle.manifest.outputs]
        self.facts: Mapping[str, str] = {
            "backend": "ort",
            "runtime": f"onnxruntime {onnxruntime.__version__}",
            "device": cpus.cpu_model(),
            "provider": session.get_providers()[0],
            "precision": precision,
            "threads": str(use.threads),
            "spinning": "on" if use.spinning else "off",
            "arena": "on" if use.arena else "off",
            "micro_batch": str(use.micro_batch or "none"),
            "engine": f"none ({reason.partition(';')[0]})" if engine is None else engine.name,
            **precision_facts(precision, use),
            **gpu_facts,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickled backend reopens its bundle."""
        return (_reopen, (str(self._bundle.path.resolve()), *self._arguments))

    def run(self, pixels: NDArray[np.generic]) -> dict[str, NDArray[np.float32]]:
        """See vit_edge.backends.Backend."""
        if self._session is None:
            raise UsageError("this backend is closed")
        check_pixels(pixels, self._bundle.manifest)
        feed = np.ascontiguousarray(pixels)
        size = self._micro_batch
        parts = [self._answers(feed[at : at + size]) for at in range(0, len(feed), size)]
        if len(parts) == 1:
            return dict(zip(self._outputs, parts[0], strict=True))
        answers = (np.concatenate(rows) for rows in zip(*parts, strict=True))
        return dict(zip(self._outputs, answers, strict=True))

    def close(self) -> None:
        """Give the session back."""
        self._session = self._binding = None

    def _answers(self, pixels: NDArray[np.generic]) -> list[NDArray[np.float32]]:
        session, binding = self._session, self._binding
        if session is None:
            raise UsageError("this backend is closed")
        try:
            if binding is not None:
                return binding.run(pixels)
            found: list[NDArray[np.float32]] = session.run(
                self._outputs, {self._bundle.manifest.input.name: pixels}
            )
        except Exception as error:  # the runtime's exceptions have no common base but this
            raise BackendError(f"onnxruntime failed while running: {error}") from error
        return found


def _reopen(path: str, engine: Path | None, use: Use) -> OrtBackend:
    """The same again; an engine that went meanwhile is done without, and said so by the facts."""
    wanted: engines.Use = "never" if engine is None else "auto"
    return _load(Bundle.read(path), use, wanted, None if engine is None else engine.parent)
