"""Options for ONNX Runtime's CUDA provider, and the checks before it is loaded."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

from vit_edge.backends.ort.options import PROVIDERS, LoadOptions
from vit_edge.errors import BackendError, UsageError
from vit_edge.machine.cuda import Gpu, gpus

_LOG = logging.getLogger(__name__)
_STDOUT = threading.Lock()


def gpu_of(use: LoadOptions) -> Gpu:
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
    if use.device >= len(here.found):
        names = ", ".join(f"{gpu.index}: {gpu.name}" for gpu in here.found)
        raise UsageError(f"there is no GPU {use.device}; there are {names}")
    return here.found[use.device]


def provider_options(use: LoadOptions) -> dict[str, str]:
    """Return the provider's options: names of onnxruntime's cuda_execution_provider_info.cc."""
    options = {
        "device_id": str(use.device),
        # The default rounds inputs of FP32 products to 10 bits; a graph in FP32 means FP32.
        "use_tf32": "0",
        # The default times every cuDNN kernel anew for each batch size. A ViT has one convolution.
        "cudnn_conv_algo_search": "HEURISTIC",
        # The default doubles what it takes with every step.
        "arena_extend_strategy": "kSameAsRequested",
    }
    if use.gpu_memory_bytes is not None:
        options["gpu_mem_limit"] = str(use.gpu_memory_bytes)
    if use.cuda_graph:
        options["enable_cuda_graph"] = "1"
    return options


def precision_facts(precision: str) -> dict[str, str]:
    """Return what the provider does with the precisions of the graph."""
    facts = {"tf32": "off"}
    if precision == "int8":  # its Q/DQ fusions are the CPU's: graph_transformer_utils.cc
        facts["simulated"] = "int8 values rounded, products computed in float32"
    return facts


def check_installed(distributions: Mapping[str, str] | None = None) -> None:
    """Say that two packages of ONNX Runtime overwrite each other's files, where both are here.

    Args:
        distributions: Name -> version of what is installed; None: look.
    """
    installed = _distributions() if distributions is None else distributions
    if len(installed) > 1:
        both = " and ".join(f"{name} {version}" for name, version in installed.items())
        _LOG.warning(
            "%s are both installed and overwrite each other's files: uninstall both, then install "
            "onnxruntime-gpu",
            both,
        )


def _distributions() -> dict[str, str]:
    versions = {}
    for name in ("onnxruntime", "onnxruntime-gpu"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


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


def explain(error: BackendError, reasons: list[str], runtime: Any) -> BackendError:
    """A refusal with what is behind it: libraries that are missing, or nodes left over."""
    if not reasons:
        return BackendError(
            f"{error}. A node that the provider cannot run would fall to the CPU, which is not "
            "allowed: export with a recipe for GPUs (opset 20, attention in plain operators)"
        )
    cuda = getattr(runtime, "cuda_version", None)
    made_for = f", built for CUDA {cuda}," if cuda else ""
    return BackendError(
        f"onnxruntime {runtime.__version__}{made_for} cannot load its provider. Missing: "
        + ", ".join(reasons)
        + '. Install them: pip install "onnxruntime-gpu[cuda,cudnn]", or CUDA and cuDNN on '
        "LD_LIBRARY_PATH; on a Jetson the onnxruntime-gpu of its JetPack"
    )
