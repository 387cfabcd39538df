"""What is made ahead of `load`: packed weights for the CPU, TensorRT's plan for a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from vit_edge.backends import Option
from vit_edge.backends.ort import engine as cpu_engine
from vit_edge.backends.ort.session import SIMULATED
from vit_edge.backends.ort.use import (
    DEFAULT_LEVEL,
    PROVIDERS,
    AccuracyLevel,
    GpuUse,
    Provider,
    Use,
)
from vit_edge.bundle import Bundle, engines
from vit_edge.bundle.engines import Found
from vit_edge.errors import UsageError
from vit_edge.machine import cpus

BUILD_OPTIONS = frozenset(
    {"accuracy_level", "provider", "device", "workspace_bytes", "optimization_level",
     "optimum_batch"}
)  # fmt: skip


def key(bundle: Bundle, accuracy_level: AccuracyLevel = DEFAULT_LEVEL) -> str:
    """What packed weights depend on: the model, the runtime, the CPU and its features."""
    return engines.key_of(cpu_engine.key_parts(bundle, accuracy_level))


def configurations(bundle: Bundle) -> Sequence[Mapping[str, Option]]:
    """What is worth trying here: see `Use` and `GpuUse` for what each is good for."""
    precision = bundle.manifest.precision
    ways: list[Mapping[str, Option]] = []
    if precision not in ("bf16", *SIMULATED):
        ways = [{}, {"micro_batch": 1}, {"micro_batch": 1, "arena": False}]
    from vit_edge.machine.cuda import gpus

    if not gpus().found:
        return ways
    import onnxruntime

    present = onnxruntime.get_available_providers()
    if PROVIDERS["cuda"] in present and precision not in ("int8", *SIMULATED):  # not multiplied
        ways += [{"provider": "cuda"}, {"provider": "cuda", "cuda_graph": True}]
    if PROVIDERS["tensorrt"] in present:
        ways.append({"provider": "tensorrt"})
    return ways


def find(
    bundle: Bundle,
    engines_dir: Path | None = None,
    *,
    accuracy_level: AccuracyLevel = DEFAULT_LEVEL,
    provider: Provider = "cpu",
    device: int = GpuUse.device,
    workspace_bytes: int = GpuUse.workspace_bytes,
    optimization_level: int = GpuUse.optimization_level,
    optimum_batch: int = GpuUse.optimum_batch,
) -> Found:
    """The engine that `build` made of this bundle here with the same options, or why there is none.

    The CUDA provider has none: what it opens is the bundle, which is returned.

    Raises:
        BackendError: TensorRT provider: no GPU, or no TensorRT.
    """
    gpu = GpuUse(device, None, False, workspace_bytes, optimization_level, optimum_batch)
    use = Use(cpus.usable_cpus(), provider, accuracy_level, gpu=gpu)
    use.check()
    return Found(bundle.path, "") if provider == "cuda" else found(bundle, engines_dir, use)


def build(
    bundle: Bundle,
    engines_dir: Path | None = None,
    *,
    accuracy_level: AccuracyLevel = DEFAULT_LEVEL,
    provider: Provider = "cpu",
    device: int = GpuUse.device,
    workspace_bytes: int = GpuUse.workspace_bytes,
    optimization_level: int = GpuUse.optimization_level,
    optimum_batch: int = GpuUse.optimum_batch,
) -> Path:
    """Make what `load` opens faster: packed weights for the CPU, or TensorRT's plan.

    Args:
        bundle: The bundle.
        engines_dir: Where to put it; by default the bundle's own engines/, or the user's cache
            where the bundle is read-only.
        accuracy_level: Of weight-only precisions. `load` must be given the same, here and below.
        provider: Which provider it is for; the CUDA provider compiles nothing.
        device: See `GpuUse`, as for the following.
        workspace_bytes: What one layer may take.
        optimization_level: How long TensorRT searches.
        optimum_batch: What it searches for.

    Returns:
        The engine's directory.

    Raises:
        BackendError: ONNX Runtime refuses the model, there is no GPU, or a library is missing.
        ResourceError: No place to write to.
    """
    gpu = GpuUse(device, None, False, workspace_bytes, optimization_level, optimum_batch)
    use = Use(cpus.usable_cpus(), provider, accuracy_level, gpu=gpu)
    use.check()
    if provider == "cpu":
        return cpu_engine.build(bundle, engines_dir, accuracy_level=accuracy_level)
    if provider == "cuda":
        raise UsageError("the CUDA provider runs model.onnx as it is: there is nothing to build")
    from vit_edge.backends.ort import tensorrt

    return tensorrt.build(bundle, engines_dir, use)


def found(bundle: Bundle, engines_dir: Path | None, use: Use) -> Found:
    """The engine that a session of this use opens, or why there is none; see `find`."""
    if use.provider == "cpu":
        return cpu_engine.find(bundle, engines_dir, accuracy_level=use.accuracy_level)
    if use.provider == "cuda":
        return Found(None, "the CUDA provider runs model.onnx as it is")
    from vit_edge.backends.ort import tensorrt

    return tensorrt.find(bundle, engines_dir, use)
