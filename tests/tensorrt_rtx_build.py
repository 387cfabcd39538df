"""Parse and build ONNX files with TensorRT-RTX on a machine without a GPU (FACTS 5).

It is TensorRT 11's parser and builder; what it refuses, TensorRT refuses. Engines cannot be run or
opened here. Tests that use it declare requires = ("tensorrt_rtx", ...).

    for build in builds(path, ["SM80", "SM89"]):
        assert build.errors == ()
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vit_edge import isolate

ALL = ("SM80", "SM86", "SM89", "SM120")  # names of tensorrt_rtx.ComputeCapability
BATCH_LIMITS = (1, 2, 8)  # min, opt, max of the dynamic axis
TIMEOUT_S = 300


class Build(NamedTuple):
    """What became of one ONNX file on one compute capability."""

    compute_capability: str
    errors: tuple[str, ...]  # the parser's and the builder's, as text; empty: it was built
    plan_bytes: int  # 0 if it was not built
    layers: dict[str, int]  # "MATRIX_MULTIPLY:HALF" -> how many layers make such a tensor


def builds(
    path: Path, compute_capabilities: Sequence[str] = ALL, *, input_name: str | None = None
) -> list[Build]:
    """Parse the file once and build it for each compute capability, in a child process.

    Args:
        path: An ONNX file whose only dynamic axis is the batch.
        compute_capabilities: Such as "SM80"; SM75 refuses FP32 and BF16, FP8 needs SM89.
        input_name: Of the input with the batch; the first one by default.

    Raises:
        ResourceError: The child died.
    """
    target = "tests.tensorrt_rtx_build:builds_here"
    arguments = (str(path), tuple(compute_capabilities), input_name)
    answers = isolate.call_in_child(target, *arguments, timeout_s=TIMEOUT_S)
    return [Build(*answer) for answer in answers]


def builds_here(
    path: str, compute_capabilities: Sequence[str], input_name: str | None
) -> list[tuple[Any, ...]]:
    """The child's side of `builds`."""
    import tensorrt_rtx as trt

    logger = _collecting_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(path):
        errors = tuple(str(parser.get_error(i)) for i in range(parser.num_errors))
        return [
            (name, errors or ("the parser said no more",), 0, {}) for name in compute_capabilities
        ]
    layers = _layers(network)
    return [
        (name, *_build(trt, builder, network, logger, name, input_name), layers)
        for name in compute_capabilities
    ]


def _build(
    trt: Any, builder: Any, network: Any, logger: Any, name: str, input_name: str | None
) -> tuple[tuple[str, ...], int]:
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, name), 0)
    inputs = {network.get_input(i).name: network.get_input(i) for i in range(network.num_inputs)}
    tensor = inputs[input_name or next(iter(inputs))]
    profile = builder.create_optimization_profile()
    profile.set_shape(tensor.name, *((batch, *tuple(tensor.shape)[1:]) for batch in BATCH_LIMITS))
    if config.add_optimization_profile(profile) < 0:
        return ("the builder refuses the optimization profile", *logger.errors), 0
    logger.errors.clear()
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        return tuple(logger.errors) or ("the builder said no more",), 0
    return (), plan.nbytes


def _layers(network: Any) -> dict[str, int]:
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    return dict(Counter(f"{layer.type.name}:{layer.get_output(0).dtype.name}" for layer in layers))


def _collecting_logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        """Keeps what TensorRT says went wrong."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)

    return Logger()
