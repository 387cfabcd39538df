"""ONNX Runtime sessions: on exactly the provider that was asked for, with stated options."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from vit_edge.backends.ort.options import PROVIDERS, LoadOptions, Provider
from vit_edge.backends.ort.version import WEIGHT_ONLY
from vit_edge.errors import BackendError, ResourceError
from vit_edge.machine.paths import path_for

if TYPE_CHECKING:
    import onnxruntime

# what the runtime says of operator sets, operators and files that came after it
_NEWER = ("opset", "ir version", "ir_version", "not a registered", "not_implemented")
_M_MMAP_THRESHOLD = -3  # malloc.h of glibc
SIMULATED = {"fp8": "float8 values rounded, products computed in float32 (disable_quant_qdq)"}


def precision_facts(precision: str, use: LoadOptions) -> dict[str, str]:
    """What the runtime is told to do with this precision."""
    facts = {"accuracy_level": str(use.accuracy_level)} if precision in WEIGHT_ONLY else {}
    if precision in SIMULATED:
        facts["simulated"] = SIMULATED[precision]
    return facts


def session_options(
    runtime: Any, use: LoadOptions, precision: str, *, optimize: bool
) -> onnxruntime.SessionOptions:
    """The runtime's options for one session.

    `optimize` is False for a graph that was optimized, and its weights packed, before.
    """
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors; they are raised as well
    options.intra_op_num_threads = use.thread_count
    options.inter_op_num_threads = 1
    # Places that are laid out for a whole run, or shared by plan, stay taken throughout it. Without
    # both, the runtime's arena gives a tensor's place on after its last use: as fast, in less.
    options.enable_mem_pattern = options.enable_mem_reuse = use.arena and not use.trim
    options.enable_cpu_mem_arena = not use.trim
    levels = runtime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    # onnxruntime_session_options_config_keys.h has them all
    if not use.spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if precision in WEIGHT_ONLY:
        level = str(use.accuracy_level)
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", level)
    if precision in SIMULATED:  # the default optimizations fail on float8
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if use.provider != "cpu":  # otherwise nodes fall back to the CPU one by one, unseen
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return options


def check_present(runtime: Any, provider: Provider) -> None:
    """Refuse a runtime that was built without the provider.

    Raises:
        BackendError: What it was built with, and what to install.
    """
    wanted, present = PROVIDERS[provider], runtime.get_available_providers()
    if wanted not in present:
        raise BackendError(
            f"onnxruntime {runtime.__version__} here has no {wanted}, only {', '.join(present)}: "
            'pip install "vit-edge[gpu]" in an environment without plain onnxruntime'
        )


def open_session(
    runtime: Any,
    path: Path,
    options: Any,
    provider: Provider,
    provider_options: Mapping[str, str] = MappingProxyType({}),
) -> onnxruntime.InferenceSession:
    """Open a session on exactly this provider.

    Raises:
        BackendError: The provider is not there or does not load, or refuses the model.
        ResourceError: The disk that the optimized model goes to is full.
    """
    check_present(runtime, provider)
    wanted = PROVIDERS[provider]
    location = path_for("onnxruntime", path)
    try:
        session = runtime.InferenceSession(
            location,
            options,
            providers=[(wanted, dict(provider_options))],
            enable_fallback=0,  # otherwise it is opened again on the CPU, and the reason lost
        )
    except Exception as error:  # the runtime's exceptions have no common base but this
        _refuse_full_disk(options.optimized_model_filepath)
        raise BackendError(
            f"{path}: onnxruntime {runtime.__version__} refuses it: {error}{_remedy(str(error))}"
        ) from error
    _return_freed_memory()
    if session.get_providers()[0] != wanted:
        raise BackendError(
            f"asked onnxruntime for {wanted}, got {session.get_providers()[0]}: the provider's "
            "libraries (CUDA, cuDNN) did not load; see the runtime's requirements"
        )
    return session


def _remedy(reason: str) -> str:
    """Say what helps, where the runtime's reason tells."""
    text = reason.lower()
    if "pre-packed" in text:
        return (
            ". The weights were packed by another version, or for another CPU: make the engine "
            "again (vit-edge build --help)"
        )
    if any(word in text for word in _NEWER):
        return (
            ". It is newer than the runtime: update that, or export it again with a lower --opset "
            "(vit-edge export --help)"
        )
    return ""


def _refuse_full_disk(output: str) -> None:
    """The runtime does not say why it could not write its output."""
    import shutil  # with its archives, what a start need not load

    if output and shutil.disk_usage(Path(output).parent).free < 2**20:
        raise ResourceError(f"{Path(output).parent}: the disk is full; use another --out")


def return_large_blocks() -> None:
    """Have malloc hand blocks from 128 KiB on back to the system once freed, in this process.

    glibc raises that threshold with each larger block that is freed, unless it is set: mallopt(3).
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 128 << 10)


def _return_freed_memory() -> None:
    """Hand the parsed file's memory back to the system: 230 MB for base in float32.

    glibc keeps freed blocks for itself once the first large one was freed (mallopt(3)).
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
