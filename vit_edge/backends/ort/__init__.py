"""ONNX Runtime: the CPU provider, and the CUDA provider where it is installed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from vit_edge.backends import check_pixels
from vit_edge.backends._options import takes
from vit_edge.backends.ort.engine import (
    BUILD_OPTIONS,
    build,
    configurations,
    find,
    find_packed,
    key,
)
from vit_edge.backends.ort.options import BuildOptions, LoadOptions
from vit_edge.backends.ort.session import (
    open_session,
    precision_facts,
    return_large_blocks,
    session_options,
)
from vit_edge.backends.ort.version import available, check_runnable
from vit_edge.bundle import Bundle, integrity
from vit_edge.bundle.bundle import MODEL_NAME
from vit_edge.errors import BackendError, EngineError, UsageError
from vit_edge.machine import cpus

if TYPE_CHECKING:
    import onnxruntime

    from vit_edge.backends.ort.binding import Binding

__all__ = [
    "BUILD_OPTIONS", "BuildOptions", "LoadOptions", "OrtBackend", "available", "build",
    "configurations", "find", "key", "load",
]  # fmt: skip


@takes(LoadOptions)
def load(bundle: Bundle, options: LoadOptions) -> OrtBackend:
    """Open a bundle in ONNX Runtime.

    Args:
        bundle: The bundle; its files are hashed at the first load on this machine.
        options: See `LoadOptions`, whose attributes are this function's arguments.

    Raises:
        IntegrityError: A file of the bundle is not what its manifest says.
        EngineError: `engine="required"` and there is none for this model, runtime and machine.
        BackendError: The provider is not there, refuses the model, or is too old for its precision.
    """
    options.check()
    check_runnable(bundle, options.provider)
    integrity.ensure_verified(bundle)
    unasked = options.engine == "never" and options.provider == "cpu"
    engine, reason = (None, "not asked for") if unasked else find_packed(bundle, options)
    if options.engine == "required" and engine is None:
        raise EngineError(f"{bundle.path}: {reason}")
    return OrtBackend(bundle, engine, reason, options)


class OrtBackend:
    """An open ONNX Runtime session. Thread-safe, as sessions are."""

    def __init__(
        self, bundle: Bundle, engine: Path | None, reason: str, options: LoadOptions
    ) -> None:
        """Use `load`, which checks the arguments."""
        import onnxruntime

        self._bundle, self._engine, self._options = bundle, engine, options
        self._micro_batch = options.micro_batch or bundle.manifest.max_batch
        precision = bundle.manifest.precision
        gpu_facts: Mapping[str, str] = {}
        if options.trim:
            return_large_blocks()
        self._binding: Binding | None = None
        if options.provider == "cpu":
            path = bundle.model_path if engine is None else engine / MODEL_NAME
            own = session_options(onnxruntime, options, precision, optimize=engine is None)
            session = open_session(onnxruntime, path, own, options.provider)
        else:
            from vit_edge.backends.ort import device

            session, self._binding, gpu_facts = device.open_bound(onnxruntime, bundle, options)
        self._session: onnxruntime.InferenceSession | None = session
        self._outputs = [tensor.name for tensor in bundle.manifest.outputs]
        self.facts: Mapping[str, str] = {
            "backend": "ort",
            "runtime": f"onnxruntime {onnxruntime.__version__}",
            "device": cpus.cpu_model(),
            "provider": session.get_providers()[0],
            "precision": precision,
            "threads": str(options.thread_count),
            "spinning": "on" if options.spinning else "off",
            "arena": "trimmed" if options.trim else "on" if options.arena else "off",
            "micro_batch": str(options.micro_batch or "none"),
            "engine": f"none ({reason.partition(';')[0]})" if engine is None else engine.name,
            **precision_facts(precision, options),
            **gpu_facts,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickled backend reopens its bundle; an engine that went meanwhile is done without."""
        engine = None if self._engine is None else self._engine.resolve()  # from any folder
        return (_reopen, (str(self._bundle.path.resolve()), engine, self._options))

    def run(self, pixels: NDArray[np.generic]) -> dict[str, NDArray[np.float32]]:
        """See vit_edge.backends.Backend."""
        check_pixels(pixels, self._bundle.manifest)
        feed = np.ascontiguousarray(pixels)
        size = self._micro_batch
        parts = [self._answers(feed[at : at + size]) for at in range(0, len(feed), size)]
        whole = parts[0] if len(parts) == 1 else map(np.concatenate, zip(*parts, strict=True))
        return dict(zip(self._outputs, whole, strict=True))

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
            feed = {self._bundle.manifest.input.name: pixels}
            return cast(list[NDArray[np.float32]], session.run(self._outputs, feed))
        except Exception as error:  # the runtime's exceptions have no common base but this
            raise BackendError(f"onnxruntime failed while running: {error}") from error


def _reopen(path: str, engine: Path | None, options: LoadOptions) -> OrtBackend:
    again = dataclasses.asdict(options) | {
        "engine": "never" if engine is None else "auto",
        "engines_dir": None if engine is None else engine.parent,
    }
    return load(Bundle.read(path), **again)
