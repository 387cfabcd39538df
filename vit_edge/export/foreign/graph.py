"""Another exporter's graph: run as it came, rewritten into one form, and run again."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx_ir
import onnxruntime
from numpy.typing import NDArray

from vit_edge.errors import ModelError
from vit_edge.export.foreign.interface import LOGITS, Interface
from vit_edge.graphs.exactness import EXACT_RELATIVE, relative_difference
from vit_edge.graphs.mapped import load_mapped
from vit_edge.graphs.names import Names
from vit_edge.graphs.normalise import normalise
from vit_edge.graphs.versions import MINIMUM_IR
from vit_edge.graphs.workspace import Workspace
from vit_edge.machine import cpus
from vit_edge.machine.paths import path_for

_LOG = logging.getLogger(__name__)

_SHAPES_ONLY = {"Identity", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Dropout", "Cast"}
# Operator at the end of a graph -> what vit_edge applies itself, to be asked for.
_PROBABILITIES = {"Softmax": "softmax", "LogSoftmax": "softmax", "Sigmoid": "sigmoid"}
_OF_SEVERAL = {"Add", "Sub", "Sum", "Mean", "Concat"}  # of answers of several heads
_SCALINGS = {"Add", "Cast", "Clip", "Div", "Identity", "Log", "Mul", "Reshape", "Round", "Squeeze"}


def load_normalised(path: Path, interface: Interface, scratch: Path) -> tuple[onnx_ir.Model, int]:
    """Normalise a checked file, and prove that it computes what it did, whatever the batch.

    Returns:
        The model, its only output named as in `interface.kept_as`, and how many values it has.

    Raises:
        ModelError: It runs at one batch size only, mixes the images of a batch, or changed.
    """
    expected = _answers_of_file(path, interface)
    model = load_mapped(path)
    _keep_output(model, interface, expected.shape[1], str(path))
    normalise(model)
    # the oldest that will do: runtimes refuse newer ones, and nothing here needs them
    model.ir_version = MINIMUM_IR.get(model.opset_imports[""], model.ir_version)
    workspace = Workspace(scratch / "foreign")
    model = workspace.settle(model)
    (actual,) = workspace.observe(model, model.graph.outputs, [_noise(interface)])
    relative = relative_difference(actual[interface.kept_as], expected)
    if not relative <= EXACT_RELATIVE:
        raise ModelError(
            f"{path}: rewritten, its {interface.kept_as} differ by {relative:.1e} of the largest, "
            f"allowed {EXACT_RELATIVE:.0e}; this is a fault of vit_edge: please report it with the "
            "file"
        )
    return model, expected.shape[1]


def _answers_of_file(path: Path, interface: Interface) -> NDArray[np.float32]:
    """Run noise at batch 3, 2 and 1: float32[3, values].

    Raises:
        ModelError: A batch fails, or its size changes an answer.
    """
    session = open_session(path)
    noise = _noise(interface)
    answers: list[NDArray[np.float32]] = []
    for size in (3, 2, 1):
        try:
            (values,) = session.run([interface.output], {interface.input: noise[:size]})
        except Exception as error:  # the runtime's exceptions have no common base but this
            raise ModelError(
                f"{path}: does not run with {size} image(s) at once, so the batch it was exported "
                f"with is baked in: {_first_line(error)}. Export it again with an example batch "
                "of 2 and a dynamic batch axis"
            ) from error
        if values.ndim != 2 or len(values) != size or not np.isfinite(values).all():
            raise ModelError(
                f"{path}: {interface.output} is {list(values.shape)} for {size} image(s), or not "
                f"finite; [{size}, classes] is needed"
            )
        answers.append(values)
    together = answers[0]
    if any(relative_difference(a, together[: len(a)]) > EXACT_RELATIVE for a in answers):
        raise ModelError(
            f"{path}: the answer to an image depends on how many others are in its batch; export "
            "the model in evaluation mode (model.eval()), without quantizing it dynamically"
        )
    return together


def _keep_output(model: onnx_ir.Model, interface: Interface, size: int, where: str) -> None:
    """Drop the other outputs, and give what is kept its name."""
    name = interface.kept_as
    outputs = model.graph.outputs
    (kept,) = (value for value in outputs if value.name == interface.output)
    producer = _origin(kept).producer()
    scores = _PROBABILITIES.get("" if producer is None or producer.domain else producer.op_type)
    if producer is not None and scores is not None and name == LOGITS:
        raise ModelError(
            f"{where}: {interface.output} comes out of a {producer.op_type}, so these are no "
            f"logits; export the model without it and say --scores {scores}: vit_edge applies it "
            "itself"
        )
    dropped = [str(value.name) for value in outputs if value is not kept]
    if dropped:
        _LOG.info("%s: keeping %s, dropping %s", where, interface.output, ", ".join(dropped))
    outputs[:] = [kept]
    if kept.name != name:
        _LOG.info("%s: its output %s is called %s from here on", where, kept.name, name)
    named = [value for node in model.graph for value in node.outputs]
    for value in (*named, *model.graph.initializers.values()):
        if value.name == name and value is not kept:
            value.name = Names.of(model).fresh(f"{name}_inner")
    kept.name = name
    kept.shape = onnx_ir.Shape(["batch", size])


def comes_out_of_head(value: onnx_ir.Value) -> bool:
    """Tell whether Linears with a bias make this output, as classification heads do.

    Several heads may be averaged (a distilled DeiT, an ensemble), set side by side, or scaled by a
    constant (a temperature). Embeddings come out of a LayerNormalization, a pooling, a tanh, a
    division by their norm, or a projection without a bias.
    """
    node = value.producer()
    while node is not None and node.op_type in (*_SHAPES_ONLY, "Mul", "Div"):
        computed = _computed(node)
        node = computed[0].producer() if len(computed) == 1 else None
    if node is None:
        return False
    computed = _computed(node)
    if node.op_type in _OF_SEVERAL and len(computed) > 1:
        return all(comes_out_of_head(each) for each in computed)
    if node.op_type == "ReduceMean" and _is_of(computed[0], "Concat"):
        return comes_out_of_head(computed[0])
    constant = [source is not None and _is_constant(source) for source in node.inputs]
    if node.op_type == "Gemm":  # exporters drop a bias of zeros, and write MatMul without any
        return all(constant[1:])
    if node.op_type != "Add" or sum(constant) != 1:
        return False
    producer = computed[0].producer()
    while producer is not None and producer.op_type in _SHAPES_ONLY:
        product = producer.inputs[0]
        producer = None if product is None else product.producer()
    if producer is None or producer.op_type not in ("MatMul", "Gemm"):
        return False
    weight = producer.inputs[1]
    return weight is not None and _is_constant(weight)


def _computed(node: onnx_ir.Node) -> list[onnx_ir.Value]:
    """What goes into a node and is no constant."""
    return [each for each in node.inputs if each is not None and not _is_constant(each)]


def _is_of(value: onnx_ir.Value, operator: str) -> bool:
    node = value.producer()
    return node is not None and node.op_type == operator


def _is_constant(value: onnx_ir.Value) -> bool:
    """A weight, or one that a Transpose, an Identity or a Constant node makes."""
    node = value.producer()
    if node is None:
        return value.const_value is not None
    if node.op_type in ("Transpose", "Identity", "Cast"):
        return node.inputs[0] is not None and _is_constant(node.inputs[0])
    return node.op_type == "Constant"


def _origin(value: onnx_ir.Value) -> onnx_ir.Value:
    """Follow a value back to where it was before it was scaled by constants, as to per cent."""
    while (node := value.producer()) is not None and node.op_type in _SCALINGS and not node.domain:
        computed = _computed(node)
        if len(computed) != 1:
            break
        value = computed[0]
    return value


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """Open a checked file in ONNX Runtime's CPU provider.

    Raises:
        ModelError: ONNX Runtime refuses it.
        BackendError: It cannot take the path.
    """
    location = path_for("onnxruntime", path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cpus.default_threads()
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(location, options, ["CPUExecutionProvider"])
    except Exception as error:  # the runtime's exceptions have no common base but this
        raise ModelError(f"{path}: onnxruntime refuses it: {_first_line(error)}") from error


def _noise(interface: Interface) -> NDArray[np.float32]:
    shape = (3, 3, *interface.image_hw)
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
