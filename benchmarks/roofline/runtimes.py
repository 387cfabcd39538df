"""A runtime around an ONNX file of one kernel, to see what it reaches on this machine's CPU."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from roofline import kernels
from vit_edge.bench.run.scenarios import Query
from vit_edge.machine import cpus

Kind = Literal["fp32", "bf16", "int8", "read"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Runtime(NamedTuple):
    """What a runtime can do here, and how to have it do it."""

    kinds: tuple[Kind, ...]
    query: Callable[[bytes, Kind, tuple[int, int]], Query]  # an ONNX file, and the shape of its x


def ort() -> Runtime:
    """ONNX Runtime, whose CPU provider has no product of bfloat16 numbers."""
    runtime: Any = importlib.import_module("onnxruntime")

    def query(model: bytes, kind: Kind, shape: tuple[int, int]) -> Query:
        options = runtime.SessionOptions()
        options.intra_op_num_threads = cpus.usable_cpus()
        session = runtime.InferenceSession(model, options, ["CPUExecutionProvider"])
        given = {kernels.INPUT: _input(shape)}
        return lambda: session.run(None, given)

    return Runtime(("fp32", "int8", "read"), query)


def openvino() -> Runtime:
    """OpenVINO, with the execution precision set: by itself it takes bf16 where there is."""
    runtime: Any = importlib.import_module("openvino")
    core = runtime.Core()

    def query(model: bytes, kind: Kind, shape: tuple[int, int]) -> Query:
        properties = {
            "INFERENCE_PRECISION_HINT": "bf16" if kind == "bf16" else "f32",
            "INFERENCE_NUM_THREADS": cpus.usable_cpus(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        request = core.compile_model(core.read_model(model), "CPU", properties)
        made = request.create_infer_request()
        given = {0: _input(shape)}
        return lambda: made.infer(given, share_inputs=True, share_outputs=True)

    has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return Runtime(tuple(kind for kind in KINDS if kind != "bf16" or has_bf16), query)


RUNTIMES: dict[str, Callable[[], Runtime]] = {"ort": ort, "openvino": openvino}


def _input(shape: tuple[int, int]) -> Any:
    """Numbers in 0..1, float32 of this shape."""
    return np.random.default_rng(0).random(shape, np.float32)
