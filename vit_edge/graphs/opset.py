"""A graph of an older operator set, made to fit a quantizer that needs a newer one."""

from __future__ import annotations

import logging

import onnx
import onnx_ir

from vit_edge.errors import ModelError
from vit_edge.graphs.exactness import prove_same
from vit_edge.graphs.normalise import normalise
from vit_edge.graphs.versions import MINIMUM_IR
from vit_edge.graphs.workspace import Workspace
from vit_edge.graphs.write import skeleton

_LOG = logging.getLogger(__name__)


def with_opset(model: onnx_ir.Model, opset: int, workspace: Workspace) -> onnx_ir.Model:
    """Convert a model to a newer operator set by onnx's own converter, and prove it unchanged.

    The converter sees the graph without its weights, so their size does not matter.

    Args:
        model: Settled; left as it is.
        opset: At least this; a newer model is returned as it is.
        workspace: Where to run both.

    Returns:
        A model that shares the weights of the other.

    Raises:
        ModelError: The converter refuses the graph, or what it made computes something else.
    """
    before = model.opset_imports[""]
    if before >= opset:
        return model
    remedy = f"Export the model again with opset {opset}."
    try:
        proto = onnx.version_converter.convert_version(skeleton(model), opset)
    except Exception as error:  # the converter's exceptions have no common base but this
        raise ModelError(
            f"onnx cannot convert the graph from opset {before} to {opset}: {error}. {remedy}"
        ) from error
    converted = onnx_ir.from_proto(proto)
    _take_weights(converted, model)
    converted.ir_version = max(model.ir_version, MINIMUM_IR[opset])
    converted.metadata_props.update(model.metadata_props)
    normalise(converted)
    prove_same(model, converted, workspace, f"converted to opset {opset}", remedy)
    _LOG.info("converted the graph from opset %d to %d", before, opset)
    return converted


def _take_weights(converted: onnx_ir.Model, model: onnx_ir.Model) -> None:
    """Turn the inputs that stood for weights into initializers again."""
    graph = converted.graph
    for value in list(graph.inputs):
        weight = model.graph.initializers.get(str(value.name))
        if weight is not None:
            graph.inputs.remove(value)
            value.const_value = weight.const_value
            graph.register_initializer(value)
