"""ONNX to plan: parse, configure, build. What TensorRT answers with None or -1 is an error here.

Runs in a child process (see builder.py), over whichever module is given: `tensorrt` or
`tensorrt_rtx`, whose builder works on machines without a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_edge.backends.trt.library import Library
from vit_edge.backends.trt.messages import create, failure, message_logger, quote
from vit_edge.backends.trt.options import BuildOptions, Profile
from vit_edge.backends.trt.progress import progress_monitor
from vit_edge.errors import BackendError
from vit_edge.machine.paths import path_for

_MB = 10**6
_TOLD_ERRORS = 10  # of a parser that does not stop at the first


@dataclass(frozen=True)
class Job:
    """A graph to compile, and how.

    Attributes:
        model: The ONNX file.
        input_name: Of the tensor with the batch, its first axis.
        image_shape: The other axes.
        profiles: Batch sizes to pick kernels for.
        options: All else.
        workspace_bytes: Limit of one layer's scratch memory; None: TensorRT's own.
        tactic_bytes: Limit of the memory for trying kernels; None: TensorRT's own.
        timing_cache: What was timed before; empty: nothing.
        terminal: Whether progress may rewrite its line.
    """

    model: Path
    input_name: str
    image_shape: tuple[int, ...]
    profiles: tuple[Profile, ...]
    options: BuildOptions
    workspace_bytes: int | None = None
    tactic_bytes: int | None = None
    timing_cache: bytes | None = None
    terminal: bool = False


@dataclass(frozen=True)
class Compiled:
    """A compiled plan, and what it came with.

    Attributes:
        plan: A plain plan, as trtexec and Triton load it.
        timing_cache: What was timed, for the next build; None where it was not asked for.
        layers: Layers of the network before TensorRT fused them, "MATRIX_MULTIPLY HALF" -> count.
        on_gpu: With a DLA: the layers that it cannot run.
    """

    plan: bytes
    timing_cache: bytes | None
    layers: dict[str, int]
    on_gpu: tuple[str, ...]


def compile_plan(library: Library, job: Job) -> Compiled:
    """Compile one model.

    Raises:
        BackendError: TensorRT refuses the model or the options; the message has its words, and
            those of the parser name the node.
        ResourceError: Memory ran out.
    """
    trt = library.trt
    logger = message_logger(trt)
    if job.options.compute_capability is not None:
        _check_target(library, job.options.compute_capability)
    builder = create("builder", logger, lambda: trt.Builder(logger))
    # A flag's number differs between versions: the enumeration is asked.
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = create("network", logger, lambda: builder.create_network(typed))
    parser = create("parser", logger, lambda: trt.OnnxParser(network, logger))
    if not parser.parse_from_file(path_for("TensorRT", job.model)):
        raise BackendError(_refusal(library, job.model, parser, logger))
    config = create("configuration", logger, builder.create_builder_config)
    _configure(library, builder, config, job)
    _add_profiles(builder, config, job, logger)
    on_gpu = _use_dla(library, builder, config, network, job)
    cache = _attach_timing_cache(config, job, logger)
    config.progress_monitor = progress_monitor(trt, job.terminal)
    logger.errors = []
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise failure(f"{job.model}: {library.label} cannot build it", logger)
    timed = None if cache is None else bytes(config.get_timing_cache().serialize())
    return Compiled(bytes(plan), timed, _layers(network), on_gpu)


def _refusal(library: Library, model: Path, parser: Any, logger: Any) -> str:
    """The parser's errors, each with its node."""
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    words = [_parser_words(error) for error in errors[:_TOLD_ERRORS]] or logger.errors
    return (
        f"{model}: {library.label} does not take this graph:{quote(words)}\n"
        "Export it for TensorRT: vit-edge export --recipe gpu-fp16 (or gpu-int8, gpu-fp8)"
    )


def _parser_words(error: Any) -> str:
    name, operator = error.node_name(), error.node_operator()
    where = f"node {name or error.node()} ({operator}): " if operator else ""
    return f"{where}{error.desc()}"


def _configure(library: Library, builder: Any, config: Any, job: Job) -> None:
    trt, options = library.trt, job.options
    # Keeps what `layers.json` is made of: which layer runs in which precision.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.tf32:
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.hardware_compatibility != "none":
        name = options.hardware_compatibility.replace("-", "_").upper()
        if not hasattr(trt.HardwareCompatibilityLevel, name):
            raise BackendError(
                f"{library.label} has no hardware compatibility {options.hardware_compatibility!r}"
            )
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, name)
    if job.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job.workspace_bytes)
    if job.tactic_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.TACTIC_DRAM, job.tactic_bytes)
    if hasattr(trt.PreviewFeature, "RUNTIME_ACTIVATION_RESIZE_10_10"):
        # Without it a context's scratch memory is that of the largest batch, whatever it runs.
        config.set_preview_feature(trt.PreviewFeature.RUNTIME_ACTIVATION_RESIZE_10_10, True)
    if options.compute_capability is not None and hasattr(trt, "ComputeCapability"):
        target = getattr(trt.ComputeCapability, options.compute_capability)
        config.num_compute_capabilities = 1
        if not config.set_compute_capability(target, 0):
            raise BackendError(f"{library.label} does not build for {options.compute_capability}")


def _check_target(library: Library, name: str) -> None:
    """Refuse a GPU that is not here and that cannot be built for from here.

    Raises:
        BackendError: What can be.
    """
    trt = library.trt
    if not hasattr(trt, "ComputeCapability"):
        raise BackendError(
            f"{library.label} builds for the GPU it stands on only; for another one: build there, "
            "or use TensorRT-RTX (pip install tensorrt-rtx)"
        )
    known = [text for text in trt.ComputeCapability.__members__ if text.startswith("SM")]
    if name not in known:
        raise BackendError(f"{library.label} does not build for {name!r}, only {', '.join(known)}")


def _add_profiles(builder: Any, config: Any, job: Job, logger: Any) -> None:
    for sizes in job.profiles:
        profile = create("optimization profile", logger, builder.create_optimization_profile)
        profile.set_shape(job.input_name, *((batch, *job.image_shape) for batch in sizes))
        if config.add_optimization_profile(profile) < 0:
            raise failure(f"{job.model}: TensorRT refuses the batch sizes {sizes}", logger)


def _use_dla(
    library: Library, builder: Any, config: Any, network: Any, job: Job
) -> tuple[str, ...]:
    """Give a Deep Learning Accelerator what it can run; return what it cannot."""
    trt, core = library.trt, job.options.dla_core
    if core is None:
        return ()
    there = builder.num_DLA_cores
    if core >= there:
        raise BackendError(
            f"there is no DLA core {core}: {library.label} sees {there} here. AGX Orin and Orin NX "
            "have them, Orin Nano, Thor and desktop GPUs do not; TensorRT serves them up to 10.7, "
            "and from 11.4.1 on AGX Orin"
        )
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    every = [network.get_layer(index) for index in range(network.num_layers)]
    left = tuple(layer.name for layer in every if not config.can_run_on_DLA(layer))
    if len(left) == len(every):
        raise BackendError(
            f"{job.model}: DLA {core} can run none of its {len(every)} layers: it takes FP16 of "
            "fixed shapes; export that, or build for the GPU"
        )
    return left


def _attach_timing_cache(config: Any, job: Job, logger: Any) -> Any:
    """Give the builder what was timed before; start anew where it is of another build."""
    if job.timing_cache is None:
        return None
    for known in dict.fromkeys((job.timing_cache, b"")):
        cache = config.create_timing_cache(known)
        if cache is not None and config.set_timing_cache(cache, False):
            return cache
    raise failure(f"{job.model}: TensorRT takes no timing cache", logger)


def _layers(network: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        name = f"{layer.type.name} {_dtype(layer)}".rstrip()
        counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items()))


def _dtype(layer: Any) -> str:
    tensors: Sequence[Any] = [layer.get_output(index) for index in range(layer.num_outputs)]
    return str(tensors[0].dtype.name) if tensors else ""
