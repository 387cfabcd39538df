"""What is made ahead of `load`: packed weights for the CPU."""

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
    Provider,
    Use,
)
from vit_edge.bundle import Bundle, engines
from vit_edge.bundle.engines import Found
from vit_edge.errors import UsageError
from vit_edge.machine import cpus

BUILD_OPTIONS = frozenset({"accuracy_level", "provider"})


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
    return ways


def find(
    bundle: Bundle,
    engines_dir: Path | None = None,
    *,
    accuracy_level: AccuracyLevel = DEFAULT_LEVEL,
    provider: Provider = "cpu",
) -> Found:
    """The engine that `build` made of this bundle here with the same options, or why there is none.

    The CUDA provider has none: what it opens is the bundle, which is returned.
    """
    use = Use(cpus.usable_cpus(), provider, accuracy_level)
    use.check()
    return Found(bundle.path, "") if provider == "cuda" else found(bundle, engines_dir, use)


def build(
    bundle: Bundle,
    engines_dir: Path | None = None,
    *,
    accuracy_level: AccuracyLevel = DEFAULT_LEVEL,
    provider: Provider = "cpu",
) -> Path:
    """Make what `load` opens faster: packed weights for the CPU.

    Args:
        bundle: The bundle.
        engines_dir: Where to put it; by default the bundle's own engines/, or the user's cache
            where the bundle is read-only.
        accuracy_level: Of weight-only precisions. `load` must be given the same.
        provider: Which provider it is for; the CUDA provider compiles nothing.

    Returns:
        The engine's directory.

    Raises:
        BackendError: ONNX Runtime refuses the model.
        ResourceError: No place to write to.
    """
    use = Use(cpus.usable_cpus(), provider, accuracy_level)
    use.check()
    if provider == "cuda":
        raise UsageError("the CUDA provider runs model.onnx as it is: there is nothing to build")
    return cpu_engine.build(bundle, engines_dir, accuracy_level=accuracy_level)


def found(bundle: Bundle, engines_dir: Path | None, use: Use) -> Found:
    """The engine that a session of this use opens, or why there is none; see `find`."""
    if use.provider == "cuda":
        return Found(None, "the CUDA provider runs model.onnx as it is")
    return cpu_engine.find(bundle, engines_dir, accuracy_level=use.accuracy_level)
