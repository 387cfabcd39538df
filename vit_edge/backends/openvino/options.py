"""The options a bundle is opened with, and the properties they give OpenVINO."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from vit_edge.backends import _options as shared
from vit_edge.bundle import Bundle, engines
from vit_edge.errors import UsageError
from vit_edge.machine import cpus

# bf16-products: float32 between products whose inputs are rounded to bf16, see rewrite.py.
ExecutionPrecision = Literal["f32", "bf16", "bf16-products", "f16"]
Mode = Literal["latency", "throughput"]
# How products of weight-only precisions compute: 0 in the execution precision, 4 with inputs
# rounded to int8 by blocks, as ort's option of the same name; both give ort's answers to 1e-5.
# 4 takes half the time of 0 (docs/openvino.md).
AccuracyLevel = Literal[0, 4]
WEIGHT_ONLY = {"int4", "int8-weights"}

# What of a device's OPTIMIZATION_CAPABILITIES each needs.
CAPABILITY: dict[ExecutionPrecision, str] = {
    "f32": "FP32", "bf16": "BF16", "bf16-products": "BF16", "f16": "FP16",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class BuildOptions(shared.BuildOptions):
    """The options a blob depends on; streams and threads are no part of it.

    Attributes:
        execution_precision: What those parts run in that the graph has in float32; "bf16-products":
            its products alone.
        mode: "latency": a batch is answered by all threads together; "throughput": its images one
            by one, as many at once as there are streams.
        accuracy_level: Of weight-only precisions: 4 rounds inputs to int8 by blocks, 0 does not.
        split_tokens: Run so many tokens first and the rest apart, images one by one: the same
            answers, sooner where threads share few rows badly, such as 192 of 197.
    """

    execution_precision: ExecutionPrecision = "f32"
    mode: Mode = "latency"
    accuracy_level: AccuracyLevel = 4
    split_tokens: int | None = None

    @property
    def one_by_one(self) -> bool:
        """True if images go one by one, so that the graph needs no free axis.

        rewrite.split_tokens gains by a graph without; and where images go to several streams
        anyway, it saves a percent (docs/openvino.md).
        """
        return self.mode == "throughput" or self.split_tokens is not None

    @property
    def changed(self) -> dict[str, Any]:
        """The options of this class that are not the default's."""
        own = {field.name: field.default for field in dataclasses.fields(BuildOptions)}
        values = {name: getattr(self, name) for name in sorted(own) if name != "engines_dir"}
        return {name: value for name, value in values.items() if value != own[name]}


@dataclass(frozen=True, kw_only=True)
class Options(BuildOptions):
    """The options a bundle is opened with.

    Attributes:
        device: As OpenVINO names it: CPU, GPU, GPU.1, NPU. It alone runs the graph.
        streams: Of throughput mode; by default OpenVINO's choice.
        threads: Of the CPU, for all streams together; by default what affinity and cgroup allow,
            of which OpenVINO may use fewer (one per core).
        engine: Whether to use what `build` made: if it is there, never, or insist on it.
    """

    device: str = "CPU"
    streams: int | None = None
    threads: int | None = None
    engine: engines.Use = "auto"

    @property
    def precision_hint(self) -> str:
        """The hint for OpenVINO; products in bf16 are in the graph then."""
        return "f32" if self.execution_precision == "bf16-products" else self.execution_precision

    @property
    def family(self) -> str:
        """The device without its number: GPU of GPU.1."""
        return self.device.partition(".")[0]

    @property
    def static(self) -> bool:
        """True if shapes are without a free axis; OpenVINO's documentation asks for it on NPUs."""
        return self.one_by_one or self.family == "NPU"


def check_options(options: Options) -> None:
    """Refuse values out of range, and those that contradict each other.

    Raises:
        UsageError: All problems are listed.
    """
    problems = []
    if options.execution_precision not in CAPABILITY:
        problems.append(
            f"execution_precision must be one of {', '.join(CAPABILITY)}, "
            f"not {options.execution_precision!r}"
        )
    if options.mode not in ("latency", "throughput"):
        problems.append(f'mode must be "latency" or "throughput", not {options.mode!r}')
    for name, value in (("streams", options.streams), ("threads", options.threads)):
        if value is not None and value < 1:
            problems.append(f"{name} must be at least 1, not {value}")
    if options.streams is not None and options.mode == "latency":
        problems.append('streams are for mode="throughput"; latency mode has one')
    if options.threads is not None and options.family != "CPU":
        problems.append(f"threads are for the CPU, not for {options.device}")
    if options.split_tokens is not None and options.family != "CPU":
        problems.append(f"split_tokens is for the CPU, not for {options.device}")
    if options.accuracy_level not in (0, 4):
        problems.append(
            f"accuracy_level must be 0 (as executed) or 4 (int8), not {options.accuracy_level!r}"
        )
    if problems:
        raise UsageError("; ".join(problems))


def properties(bundle: Bundle, options: Options) -> dict[str, str | int]:
    """Return the properties for OpenVINO, by its own names.

    The precision always: its own choice is bf16 wherever the CPU has that, whatever the graph says.
    Hyperthreads and pinning never: without pinning it was no faster on two cores.
    """
    values: dict[str, str | int] = {
        "INFERENCE_PRECISION_HINT": options.precision_hint,
        "PERFORMANCE_HINT": options.mode.upper(),
    }
    if options.mode == "latency":
        values["NUM_STREAMS"] = 1
    elif options.streams is not None:
        values["NUM_STREAMS"] = options.streams
    if options.family == "CPU":
        values["INFERENCE_NUM_THREADS"] = options.threads or cpus.default_threads()
        values["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = _group_size(bundle, options.accuracy_level)
    return values


def _group_size(bundle: Bundle, accuracy_level: AccuracyLevel) -> int:
    """The number of neighbours in a product's input that share a scale; 0: inputs are not rounded.

    OpenVINO's own choice is 32; with the blocks of the weights its answers are ort's.
    """
    if bundle.manifest.precision not in WEIGHT_ONLY or accuracy_level == 0:
        return 0
    settings = (bundle.manifest.quantization or {}).get("settings", {})
    return int(settings.get("block_size", 32))
