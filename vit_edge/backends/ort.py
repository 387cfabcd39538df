"""ONNX Runtime: the CPU provider, and the CUDA and TensorRT providers where they are installed."""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from vit_edge import cpus, engines, verify, wire
from vit_edge.backends import Availability, check_pixels
from vit_edge.bundle import MODEL_NAME, Bundle
from vit_edge.choose import Option
from vit_edge.engines import Found
from vit_edge.errors import BackendError, EngineError, ResourceError, UsageError

if TYPE_CHECKING:
    import onnxruntime

_LOG = logging.getLogger(__name__)

MINIMUM_VERSION = (1, 23)  # the first with a CPU kernel for opset-23 Attention, the last for 3.10
WEIGHTS_NAME = "model.onnx.data"
ENGINE_FILES = (MODEL_NAME, WEIGHTS_NAME)
BUILD_OPTIONS = frozenset({"accuracy_level"})

Provider = Literal["cpu", "cuda", "tensorrt"]
EngineUse = Literal["auto", "never", "required"]
# How MatMulNBits, which weight-only precisions become, computes: 0 in float32, 4 with inputs
# rounded to int8 by blocks. 4 is the runtime's own default, and a fifth faster: base in 4 bits
# takes 334 and 268 ms on one AVX512-VNNI thread, float32 328.
AccuracyLevel = Literal[0, 4]
DEFAULT_LEVEL: AccuracyLevel = 4
# The first version that fuses such weights into it: 1.23.2, 1.24.2, 1.25.0, 1.26.0, 1.31.1 tried.
WEIGHT_ONLY = {"int4": (1, 23), "int8-weights": (1, 25)}
SIMULATED = {"fp8": "float8 values rounded, products computed in float32 (disable_quant_qdq)"}

_PROVIDERS: dict[Provider, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}


def available() -> Availability:
    """Whether onnxruntime is installed, without importing it."""
    if importlib.util.find_spec("onnxruntime") is None:
        return Availability(False, 'onnxruntime is not installed: pip install "vit-edge[cpu]"')
    version = _version()
    if _release(version) < MINIMUM_VERSION:
        return Availability(
            False,
            f'onnxruntime {version} is too old, 1.23 is needed: pip install -U "vit-edge[cpu]"',
        )
    return Availability(True, f"onnxruntime {version}")


def key(bundle: Bundle, accuracy_level: AccuracyLevel = DEFAULT_LEVEL) -> str:
    """What prepacked weights depend on: the model, the runtime, the CPU and its features."""
    return engines.key_of(_key_parts(bundle, accuracy_level))


def configurations(bundle: Bundle) -> Sequence[Mapping[str, Option]]:
    """What is worth trying here; see the measurements in docs/cpu.md."""
    if bundle.manifest.precision in ("bf16", *SIMULATED):
        return []
    return [{}]


def find(
    bundle: Bundle,
    engines_dir: Path | None = None,
    *,
    accuracy_level: AccuracyLevel = DEFAULT_LEVEL,
) -> Found:
    """The engine that `build` made of this bundle here, or why there is none."""
    parts = _key_parts(bundle, accuracy_level)
    return engines.find(bundle, "ort", parts, ENGINE_FILES, engines_dir)


def build(
    bundle: Bundle,
    engines_dir: Path | None = None,
    *,
    accuracy_level: AccuracyLevel = DEFAULT_LEVEL,
) -> Path:
    """Write the optimized graph with prepacked weights, ready to be mapped.

    Args:
        bundle: The bundle.
        engines_dir: Where to put it; by default the bundle's own engines/, or the user's cache
            where the bundle is read-only.
        accuracy_level: Of weight-only precisions; `load` must be given the same.

    Returns:
        The engine's directory. It is made aside and moved into place: there is never half of one.

    Raises:
        BackendError: ONNX Runtime refuses the model, or would rebuild float weights at every run.
        ResourceError: No place to write to.
    """
    import onnxruntime

    _check_level(accuracy_level)
    _check_version(bundle)
    _check_provider(bundle, "cpu")
    verify.ensure_verified(bundle, full=True)
    needed_bytes = 2 * bundle.model_bytes  # the graph, the weights as they are, and packed
    parts = _key_parts(bundle, accuracy_level)
    with engines.made(bundle, "ort", parts, ENGINE_FILES, engines_dir, needed_bytes) as (
        stage,
        target,
    ):
        options = _options(onnxruntime, None, bundle, accuracy_level)
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.optimized_model_filepath = str(stage / MODEL_NAME)
        weight_only = bundle.manifest.precision in WEIGHT_ONLY
        # onnxruntime 1.31 crashes in MatMulNBits on packed weights that it maps: packed at load
        prepacked = "0" if weight_only else "1"
        for name, value in (
            ("session.save_external_prepacked_constant_initializers", prepacked),
            ("session.optimized_model_external_initializers_file_name", WEIGHTS_NAME),
            ("session.optimized_model_external_initializers_min_size_in_bytes", "1024"),
        ):
            options.add_session_config_entry(name, value)
        _session(onnxruntime, bundle.model_path, options, "cpu")
        if weight_only:
            _check_fusion(bundle.model_path, stage / MODEL_NAME)
    return target


def load(
    bundle: Bundle,
    *,
    threads: int | None = None,
    provider: Provider = "cpu",
    engine: EngineUse = "auto",
    engines_dir: Path | None = None,
    accuracy_level: AccuracyLevel = DEFAULT_LEVEL,
) -> OrtBackend:
    """Open a bundle in ONNX Runtime.

    Args:
        bundle: The bundle; its files are hashed at the first load on this machine.
        threads: Of one run; by default what affinity and cgroup allow.
        provider: What must run the graph, every node of it.
        engine: Whether to use what `build` made: if it is there, never, or insist on it.
        engines_dir: Where `build` was told to put it.
        accuracy_level: Of weight-only precisions: 4 rounds inputs to int8 by blocks, 0 does not.

    Raises:
        IntegrityError: A file of the bundle is not what its manifest says.
        EngineError: `engine="required"` and there is none for this model, runtime and CPU.
        BackendError: The provider is not there, refuses the model, or is too old for its precision.
    """
    if threads is not None and threads < 1:
        raise UsageError(f"threads must be at least 1, not {threads}")
    if provider not in _PROVIDERS:
        raise UsageError(f"no provider {provider!r}; there are: {', '.join(_PROVIDERS)}")
    if engine not in ("auto", "never", "required"):
        raise UsageError(f'engine must be "auto", "never" or "required", not {engine!r}')
    _check_level(accuracy_level)
    _check_version(bundle)
    _check_provider(bundle, provider)
    verify.ensure_verified(bundle)
    found: Path | None = None
    if engine == "never":
        reason = "not asked for"
    elif provider != "cpu":
        reason = "prepacked weights are for the CPU provider"
    else:
        found, reason = find(bundle, engines_dir, accuracy_level=accuracy_level)
    if engine == "required" and found is None:
        raise EngineError(f"{bundle.path}: {reason}")
    threads = threads or cpus.usable_cpus()
    return OrtBackend(bundle, found, reason, threads, provider, accuracy_level)


class OrtBackend:
    """An open ONNX Runtime session. Thread-safe, as sessions are."""

    def __init__(
        self,
        bundle: Bundle,
        engine: Path | None,
        reason: str,
        threads: int,
        provider: Provider,
        accuracy_level: AccuracyLevel = DEFAULT_LEVEL,
    ) -> None:
        """Use `load`, which checks the arguments."""
        import onnxruntime

        self._bundle = bundle
        self._arguments = (engine, reason, threads, provider, accuracy_level)
        options = _options(onnxruntime, threads, bundle, accuracy_level)
        if engine is not None:  # optimized and packed already
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        path = bundle.model_path if engine is None else engine / MODEL_NAME
        self._session: onnxruntime.InferenceSession | None = _session(
            onnxruntime, path, options, provider
        )
        self._outputs = [tensor.name for tensor in bundle.manifest.outputs]
        self.facts: Mapping[str, str] = {
            "backend": "ort",
            "runtime": f"onnxruntime {onnxruntime.__version__}",
            "device": cpus.cpu_model() if provider == "cpu" else provider,
            "provider": self._session.get_providers()[0],
            "precision": bundle.manifest.precision,
            "threads": str(threads),
            "engine": f"none ({reason.partition(';')[0]})" if engine is None else engine.name,
        } | _precision_facts(bundle.manifest.precision, accuracy_level)

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickled backend reopens its bundle."""
        return (_reopen, (str(self._bundle.path.resolve()), *self._arguments))

    def run(self, pixels: NDArray[np.generic]) -> dict[str, NDArray[np.float32]]:
        """See vit_edge.backends.Backend."""
        if self._session is None:
            raise UsageError("this backend is closed")
        check_pixels(pixels, self._bundle.manifest)
        feed = {self._bundle.manifest.input.name: np.ascontiguousarray(pixels)}
        try:
            answers = self._session.run(self._outputs, feed)
        except Exception as error:  # the runtime's exceptions have no common base but this
            raise BackendError(f"onnxruntime failed while running: {error}") from error
        return dict(zip(self._outputs, answers, strict=True))

    def close(self) -> None:
        """Give the session back."""
        self._session = None


def _reopen(
    path: str,
    engine: Path | None,
    reason: str,
    threads: int,
    provider: Provider,
    accuracy_level: AccuracyLevel,
) -> OrtBackend:
    use: EngineUse = "never" if engine is None else "auto"
    engines_dir = None if engine is None else engine.parent
    return load(
        Bundle.read(path),
        threads=threads,
        provider=provider,
        engine=use,
        engines_dir=engines_dir,
        accuracy_level=accuracy_level,
    )


def _version() -> str:
    from importlib import metadata

    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    import onnxruntime  # built by the board's vendor, without a distribution's metadata

    return str(onnxruntime.__version__)


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def _key_parts(bundle: Bundle, accuracy_level: AccuracyLevel) -> dict[str, str]:
    weight_only = bundle.manifest.precision in WEIGHT_ONLY
    return ({"accuracy_level": str(accuracy_level)} if weight_only else {}) | {
        "model": bundle.model_sha256,
        "runtime": f"onnxruntime {_version()}",
        "cpu": cpus.cpu_model(),
        "features": " ".join(cpus.cpu_features()),
    }


def _check_level(accuracy_level: int) -> None:
    if accuracy_level not in (0, 4):
        raise UsageError(f"accuracy_level must be 0 (float32) or 4 (int8), not {accuracy_level!r}")


def _check_version(bundle: Bundle) -> None:
    """Refuse weights that this version would expand to float32 at every run.

    Here by the version, which costs nothing; `build` looks at the optimized graph itself.
    """
    precision = bundle.manifest.precision
    needed = WEIGHT_ONLY.get(precision, MINIMUM_VERSION)
    if _release(_version()) < needed:
        raise BackendError(
            f"{bundle.path}: onnxruntime {_version()} would expand {precision} to float32 at every "
            f"run; {'.'.join(map(str, needed))} or newer multiplies it as it is. Update it, or "
            "export with --precision int4 or int8"
        )


def _check_provider(bundle: Bundle, provider: Provider) -> None:
    if bundle.manifest.precision == "bf16" and provider == "cpu":
        raise BackendError(
            f"{bundle.path}: onnxruntime's CPU provider has no BF16 MatMul. Run it with "
            'ort.load(bundle, provider="cuda"), on OpenVINO or on TensorRT, or export another '
            "precision for this device; its parity was proven at export (see parity.json)"
        )


def _precision_facts(precision: str, accuracy_level: AccuracyLevel) -> dict[str, str]:
    """What the runtime is told to do with this precision."""
    facts = {"accuracy_level": str(accuracy_level)} if precision in WEIGHT_ONLY else {}
    if precision in SIMULATED:
        facts["simulated"] = SIMULATED[precision]
    return facts


def _check_fusion(path: Path, optimized: Path) -> None:
    """Refuse a graph some of whose weights are expanded to float32 at every run.

    Raises:
        BackendError: Fewer MatMulNBits than the weight-only model has blocks of weights.
    """
    expected = _count(path, "", "DequantizeLinear")
    left = _count(optimized, "", "DequantizeLinear")
    fused = _count(optimized, "com.microsoft", "MatMulNBits")
    if left or fused != expected:
        raise BackendError(
            f"{path}: onnxruntime {_version()} fused {fused} of {expected} DequantizeLinear into "
            f"MatMulNBits and left {left}, which it would expand to float32 at every run: use "
            "another onnxruntime (1.31.1 is known to fuse them) or export another precision"
        )


def _count(path: Path, domain: str, operator: str) -> int:
    return wire.read_model(path).operators.get(domain, Counter())[operator]


def _options(
    runtime: Any, threads: int | None, bundle: Bundle, accuracy_level: AccuracyLevel
) -> onnxruntime.SessionOptions:
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors; they are raised as well
    options.intra_op_num_threads = threads or cpus.usable_cpus()
    options.inter_op_num_threads = 1
    precision = bundle.manifest.precision
    if precision in WEIGHT_ONLY:
        options.add_session_config_entry(
            "session.qdq_matmulnbits_accuracy_level", str(accuracy_level)
        )
    if precision in SIMULATED:  # the default optimizations fail on float8
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options


def _session(
    runtime: Any, path: Path, options: Any, provider: Provider
) -> onnxruntime.InferenceSession:
    """Open a session on exactly this provider."""
    wanted = _PROVIDERS[provider]
    present = runtime.get_available_providers()
    if wanted not in present:
        raise BackendError(
            f"onnxruntime {runtime.__version__} here has no {wanted}, only {', '.join(present)}: "
            'pip install "vit-edge[gpu]" in an environment without plain onnxruntime'
        )
    if provider != "cpu":  # otherwise nodes fall back to the CPU one by one, unseen
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = runtime.InferenceSession(str(path), options, providers=[wanted])
    except Exception as error:  # the runtime's exceptions have no common base but this
        _refuse_full_disk(options.optimized_model_filepath)
        raise BackendError(
            f"{path}: onnxruntime {runtime.__version__} refuses it: {error}. If it is newer than "
            "the runtime, export it again with a lower --opset (python -m vit_edge.export --help)"
        ) from error
    _return_freed_memory()
    if session.get_providers()[0] != wanted:
        raise BackendError(
            f"asked onnxruntime for {wanted}, got {session.get_providers()[0]}: the provider's "
            "libraries (CUDA, cuDNN, TensorRT) did not load; see the runtime's requirements"
        )
    return session


def _refuse_full_disk(output: str) -> None:
    """The runtime does not say why it could not write its output."""
    if output and shutil.disk_usage(Path(output).parent).free < 2**20:
        raise ResourceError(f"{Path(output).parent}: the disk is full; use another --engines-dir")


def _return_freed_memory() -> None:
    """Hand the parsed file's memory back to the system: 230 MB for base in float32.

    glibc keeps freed blocks for itself once the first large one was freed (mallopt(3)).
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
