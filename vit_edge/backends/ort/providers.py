"""What ONNX Runtime's GPU providers are told, and what must be true before they are asked."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from vit_edge.backends.ort.use import PROVIDERS, Use
from vit_edge.bundle.manifest import Manifest
from vit_edge.errors import BackendError, UsageError
from vit_edge.machine.cuda import Gpu, gpus

_LOG = logging.getLogger(__name__)
_STDOUT = threading.Lock()


def gpu_of(use: Use) -> Gpu:
    """The GPU that was asked for. Asked before the runtime is: some crash without a driver.

    Raises:
        BackendError: There is no GPU; the driver's reason.
        UsageError: There are GPUs, but fewer.
    """
    here = gpus()
    if not here.found:
        raise BackendError(
            f"{PROVIDERS[use.provider]} needs an NVIDIA GPU: {here.reason}. Without one load the "
            'bundle with provider="cpu"'
        )
    if use.gpu.device >= len(here.found):
        names = ", ".join(f"{gpu.index}: {gpu.name}" for gpu in here.found)
        raise UsageError(f"there is no GPU {use.gpu.device}; there are {names}")
    return here.found[use.gpu.device]


def provider_options(use: Use, manifest: Manifest, cache: Path | None) -> dict[str, str]:
    """The provider's options, as ONNX Runtime wants them.

    Args:
        use: How it runs.
        manifest: Of the bundle.
        cache: TensorRT provider: the directory it reads its engine from, or writes it to. None: it
            keeps the engine in memory.

    Raises:
        UsageError: TensorRT provider: an optimum batch that the bundle does not take.
    """
    return _cuda(use) if use.provider == "cuda" else _tensorrt(use, manifest, cache)


def _cuda(use: Use) -> dict[str, str]:
    """Of onnxruntime/core/providers/cuda/cuda_execution_provider_info.cc."""
    options = {
        "device_id": str(use.gpu.device),
        # The default rounds inputs of FP32 products to 10 bits; a graph in FP32 means FP32.
        "use_tf32": "0",
        # The default times every cuDNN kernel anew for each batch size. A ViT has one convolution.
        "cudnn_conv_algo_search": "HEURISTIC",
        # The default doubles what it takes with every step.
        "arena_extend_strategy": "kSameAsRequested",
    }
    if use.gpu.gpu_memory_bytes is not None:
        options["gpu_mem_limit"] = str(use.gpu.gpu_memory_bytes)
    if use.gpu.cuda_graph:
        options["enable_cuda_graph"] = "1"
    return options


def _tensorrt(use: Use, manifest: Manifest, cache: Path | None) -> dict[str, str]:
    """Of onnxruntime/core/providers/tensorrt/tensorrt_execution_provider_info.cc.

    Precision lives in the graph: with neither FP16 nor INT8 asked for, the provider builds a
    strongly typed network (tensorrt_execution_provider.cc: network_flags), in which Q/DQ and FP16
    tensors are what they are; asked for, TensorRT would pick precisions by itself.
    """
    tensor, sizes = manifest.input, manifest.input.shape[1:]
    if use.gpu.optimum_batch > manifest.max_batch:
        raise UsageError(
            f"optimum_batch {use.gpu.optimum_batch} is more than the bundle's largest batch, "
            f"{manifest.max_batch}"
        )

    def shapes(batch: int) -> str:
        return f"{tensor.name}:{'x'.join(str(size) for size in (batch, *sizes))}"

    options = {
        "device_id": str(use.gpu.device),
        "trt_fp16_enable": "False",
        "trt_int8_enable": "False",
        "trt_max_workspace_size": str(use.gpu.workspace_bytes),
        "trt_builder_optimization_level": str(use.gpu.optimization_level),
        # Without them an engine is built when the first batch comes, and again when it grows.
        "trt_profile_min_shapes": shapes(1),
        "trt_profile_opt_shapes": shapes(use.gpu.optimum_batch),
        "trt_profile_max_shapes": shapes(manifest.max_batch),
    }
    if cache is not None:
        options |= {"trt_engine_cache_enable": "True", "trt_engine_cache_path": str(cache)}
    return options


def precision_facts(use: Use, precision: str) -> dict[str, str]:
    """What the provider does with the precisions of the graph."""
    if use.provider == "tensorrt":
        allowed = os.environ.get("NVIDIA_TF32_OVERRIDE") != "0"
        told = "on: TensorRT's default, which onnxruntime cannot change; NVIDIA_TF32_OVERRIDE=0 can"
        return {"tf32": told if allowed else "off"}
    facts = {"tf32": "off"}
    if precision == "int8":  # its Q/DQ fusions are the CPU's: graph_transformer_utils.cc
        facts["simulated"] = "int8 values rounded, products computed in float32"
    return facts


def check_installed(distributions: Mapping[str, str] | None = None) -> None:
    """Say that two packages of ONNX Runtime overwrite each other's files, where both are here.

    Args:
        distributions: Name -> version of what is installed; None: look.
    """
    found = _distributions() if distributions is None else distributions
    if len(found) > 1:
        both = " and ".join(f"{name} {version}" for name, version in found.items())
        _LOG.warning(
            "%s are both installed and overwrite each other's files: uninstall both, then install "
            "onnxruntime-gpu",
            both,
        )


def _distributions() -> dict[str, str]:
    found = {}
    for name in ("onnxruntime", "onnxruntime-gpu"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


@contextlib.contextmanager
def stdout_on_stderr() -> Iterator[None]:
    """Send what the runtime prints, natively or by Python, to stderr: stdout carries our results.

    It holds for the whole process, so one at a time.
    """
    with _STDOUT, contextlib.redirect_stdout(sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # none, or closed
            sys.__stdout__.flush()  # type: ignore[union-attr]  # its buffer belongs to the old one
        try:
            kept = os.dup(1)
        except OSError:  # the process was started without one
            yield
            return
        try:
            os.dup2(2, 1)
            yield
        finally:
            os.dup2(kept, 1)
            os.close(kept)


def explained(error: BackendError, reasons: list[str], runtime: Any) -> BackendError:
    """A refusal with what is behind it: libraries that are missing, or nodes left over."""
    if not reasons:
        return BackendError(
            f"{error}. A node that the provider cannot run would fall to the CPU, which is not "
            "allowed: export with a recipe for GPUs (opset 20, attention in plain operators; INT8 "
            "symmetric for TensorRT)"
        )
    cuda = getattr(runtime, "cuda_version", None)
    made_for = f", built for CUDA {cuda}," if cuda else ""
    return BackendError(
        f"onnxruntime {runtime.__version__}{made_for} cannot load its provider. Missing: "
        + ", ".join(reasons)
        + '. Install them: pip install "onnxruntime-gpu[cuda,cudnn]", or CUDA and cuDNN on '
        "LD_LIBRARY_PATH; on a Jetson the onnxruntime-gpu of its JetPack"
    )
