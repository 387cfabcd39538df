"""OpenVINO: CPUs of all makers, and Intel's GPUs and NPUs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vit_edge.backends import Option, check_pixels
from vit_edge.backends._options import build_names, takes
from vit_edge.backends.openvino import device as devices
from vit_edge.backends.openvino.options import (
    WEIGHT_ONLY,
    BuildOptions,
    ExecutionPrecision,
    Options,
    check_options,
)
from vit_edge.backends.openvino.runtime import available, imported, refusals, version
from vit_edge.bundle import Bundle, engines, integrity
from vit_edge.bundle.engines import Found
from vit_edge.errors import EngineError, UsageError
from vit_edge.machine import cpus

if TYPE_CHECKING:
    import openvino

__all__ = [
    "BUILD_OPTIONS", "BuildOptions", "OpenVinoBackend", "available", "build", "configurations",
    "find", "key", "load",
]  # fmt: skip

BLOB_NAME = "model.blob"
ENGINE_FILES = (BLOB_NAME,)
BUILD_OPTIONS = build_names(BuildOptions)

SIMULATED = {"fp8": "float8 values rounded, products computed in the execution precision"}
# Precisions that run as what they are, with room for bf16 where the graph says float32. All of it
# in bf16 costs INT8 five times the error of its products alone, and saves 2 % (docs/openvino.md).
_BF16_AROUND: dict[str, ExecutionPrecision] = {
    "int8": "bf16-products", "int8-weights": "bf16-products", "int4": "bf16-products",
    "bf16": "bf16",
}  # fmt: skip
_BLOCK_ROWS = 64  # of oneDNN's products, when threads share them
_HAS_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}  # of cpus.cpu_features


@takes(BuildOptions)
def key(bundle: Bundle, options: BuildOptions) -> str:
    """Return what a blob depends on: model, runtime, CPU, options."""
    return engines.key_of(_key_parts(bundle, options))


def configurations(bundle: Bundle) -> Sequence[Mapping[str, Option]]:
    """List the options worth trying here; see the measurements in docs/openvino.md."""
    precision = bundle.manifest.precision
    if precision in ("int8-dynamic", *SIMULATED):  # their products are float32 here
        return []
    precisions: list[dict[str, Option]] = [] if precision == "bf16" and not _has_bf16() else [{}]
    if precision in _BF16_AROUND and _has_bf16():
        precisions.append({"execution_precision": _BF16_AROUND[precision]})
    modes: list[dict[str, Option]] = [{}]
    if cpus.default_threads() > 1:
        modes += [] if (first := full_blocks(bundle)) is None else [{"split_tokens": first}]
        modes += [{"mode": "throughput"}] if bundle.manifest.max_batch > 1 else []
    return [chosen | mode for chosen in precisions for mode in modes]


def full_blocks(bundle: Bundle) -> int | None:
    """Return where full blocks of tokens end, as the few after them cost most; None: nowhere."""
    architecture = bundle.manifest.architecture
    if architecture is None or architecture.merged_tokens:
        return None
    rest = architecture.tokens % _BLOCK_ROWS
    return architecture.tokens - rest if 0 < rest < architecture.tokens else None


@takes(BuildOptions)
def find(bundle: Bundle, options: BuildOptions) -> Found:
    """The engine that `build` made of this bundle here, or why there is none."""
    return _find(bundle, options)


def _find(bundle: Bundle, options: BuildOptions) -> Found:
    parts = _key_parts(bundle, options)
    chosen = ", ".join(f"{name}={value!r}" for name, value in options.changed.items())
    build_it = f"openvino.build(bundle, {chosen})" if chosen else None  # the verb: with defaults
    return engines.find(bundle, "openvino", parts, ENGINE_FILES, options.engines_dir, build_it)


@takes(BuildOptions)
def build(bundle: Bundle, options: BuildOptions) -> Path:
    """Write the graph as OpenVINO's CPU plugin has transformed it, ready to be mapped.

    At load kernels are still made, and weights packed for them: see docs/openvino.md.

    Args:
        bundle: The bundle.
        options: See `BuildOptions`; `load` must be given the same.

    Returns:
        The engine's directory. It is made aside and moved into place: there is never half of one.

    Raises:
        BackendError: OpenVINO refuses the model, or this CPU the precision.
        ResourceError: No place to write to.
    """
    use = Options(**dataclasses.asdict(options))
    check_options(use)
    core = imported().Core()
    devices.check_device(core, bundle, use)
    integrity.ensure_verified(bundle, full=True)
    needed_bytes = 2 * bundle.model_bytes  # 16-bit weights may be written as float32
    parts = _key_parts(bundle, options)
    with engines.stage_engine(
        bundle, "openvino", parts, ENGINE_FILES, options.engines_dir, needed_bytes
    ) as stage:
        model = devices.compile_model(core, bundle, use)
        devices.granted(model, use)
        with refusals(f"{bundle.path}: OpenVINO {version()} cannot write its compiled form"):
            blob = model.export_model()
        (stage.path / BLOB_NAME).write_bytes(blob.getbuffer())
    return stage.target


@takes(Options)
def load(bundle: Bundle, options: Options) -> OpenVinoBackend:
    """Open a bundle in OpenVINO.

    Args:
        bundle: The bundle; its files are hashed at the first load on this machine.
        options: See `Options`, whose attributes are this function's arguments.

    Raises:
        IntegrityError: A file of the bundle is not what its manifest says.
        EngineError: `engine="required"` and there is none for this model, runtime and CPU.
        BackendError: No such device, or OpenVINO refuses the model, or does not give the
            precision, threads or streams that were asked for.
    """
    check_options(options)
    engines.check_use(options.engine)
    core = imported().Core()
    devices.check_device(core, bundle, options)
    integrity.ensure_verified(bundle)
    engine: Path | None = None
    if options.engine == "never":
        reason = "not asked for"
    elif options.family != "CPU":
        reason = "engines are for the CPU"
    else:
        engine, reason = _find(bundle, options)
    if options.engine == "required" and engine is None:
        raise EngineError(f"{bundle.path}: {reason}")
    return OpenVinoBackend(core, bundle, options, engine, reason)


class _Opened(NamedTuple):
    """A compiled model, and the file its weights are mapped from, which it does not keep alive."""

    model: openvino.CompiledModel
    blob: NDArray[np.uint8] | None


class OpenVinoBackend:
    """An open OpenVINO model. Thread-safe: every run has requests of its own."""

    def __init__(
        self,
        core: openvino.Core,
        bundle: Bundle,
        options: Options,
        engine: Path | None,
        reason: str,
    ) -> None:
        """Use `load`, which checks the arguments."""
        self._bundle = bundle
        self._options = options
        self._engine = engine
        if engine is None:
            opened = _Opened(devices.compile_model(core, bundle, options), None)
        else:
            blob = np.memmap(engine / BLOB_NAME, np.uint8, mode="c")  # "r" is refused; not written
            opened = _Opened(devices.import_blob(core, bundle, options, blob), blob)
        self._images_at_once = 1 if options.static else bundle.manifest.max_batch
        precision = bundle.manifest.precision
        self.facts: Mapping[str, str] = {
            "backend": "openvino",
            "runtime": f"openvino {version()}",
            "device": devices.device_name(core, options),
            "provider": options.device,
            "precision": precision,
            **devices.granted(opened.model, options),
            "mode": options.mode,
            "images_at_once": str(self._images_at_once),
            **({} if options.split_tokens is None else {"split_tokens": str(options.split_tokens)}),
            "engine": f"none ({reason.partition(';')[0]})" if engine is None else engine.name,
            **({"accuracy_level": str(options.accuracy_level)} if precision in WEIGHT_ONLY else {}),
            **({"simulated": SIMULATED[precision]} if precision in SIMULATED else {}),
        }
        self._opened: _Opened | None = opened

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickled backend reopens its bundle, with what was asked for, not what it got here."""
        engine = None if self._engine is None else self._engine.resolve()
        return (_reopen, (str(self._bundle.path.resolve()), self._options, engine))

    def run(self, pixels: NDArray[np.generic]) -> dict[str, NDArray[np.float32]]:
        """See vit_edge.backends.Backend."""
        opened = self._opened  # held until the answers are copied, whoever closes meanwhile
        if opened is None:
            raise UsageError("this backend is closed")
        manifest = self._bundle.manifest
        check_pixels(pixels, manifest)
        requests = []
        with refusals("OpenVINO failed while running"):
            for start in range(0, len(pixels), self._images_at_once):
                images = np.ascontiguousarray(pixels[start : start + self._images_at_once])
                request = opened.model.create_infer_request()  # takes 8 us: none is kept
                request.start_async({manifest.input.name: images})  # copies them
                requests.append(request)
            for request in requests:
                request.wait()
            return {
                tensor.name: np.concatenate([r.get_tensor(tensor.name).data for r in requests])
                for tensor in manifest.outputs
            }

    def close(self) -> None:
        """Give the model back, and its weights unmapped, as soon as no run needs them."""
        self._opened = None


def _reopen(path: str, options: Options, engine: Path | None) -> OpenVinoBackend:
    again = dataclasses.asdict(options) | {
        "engine": "never" if engine is None else "auto",
        "engines_dir": None if engine is None else engine.parent,
    }
    return load(Bundle.read(path), **again)


def _key_parts(bundle: Bundle, options: BuildOptions) -> dict[str, str]:
    own = {
        "runtime": f"openvino {version()}",
        "execution_precision": options.execution_precision,
        "images": "one" if options.one_by_one else "any",
    }
    if bundle.manifest.precision in WEIGHT_ONLY:
        own["accuracy_level"] = str(options.accuracy_level)
    if options.split_tokens is not None:
        own["split_tokens"] = str(options.split_tokens)
    return own | engines.machine_parts(bundle)


def _has_bf16() -> bool:
    return not _HAS_BF16.isdisjoint(cpus.cpu_features())
