"""One way of writing a graph, whoever exported it; no value changes.

Afterwards there are neither Constant nor Identity nodes nor local functions. A constant is an
initializer, and one that may be rewritten has a single reader. Every node has a name, and shapes
are known as far as ONNX can infer them.
"""

from __future__ import annotations

import numpy as np
import onnx_ir
from onnx_ir.passes import Sequential, common

from vit_edge.graphs.building import add_constant
from vit_edge.graphs.readable import SCOPES, name_by_module


def normalise(model: onnx_ir.Model) -> None:
    """Rewrite a graph of TorchScript's or dynamo's exporter in place.

    Args:
        model: Without subgraphs; its input and output keep their names.
    """
    Sequential(
        common.InlinePass(),
        common.RemoveInitializersFromInputsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.IdentityEliminationPass(),
    )(model)
    fold_transposed_constants(model)
    Sequential(
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        common.RemoveUnusedOpsetsPass(),
        common.NameFixPass(),
    )(model)
    if any(SCOPES in node.metadata_props for node in model.graph):
        name_by_module(model)
    common.ClearMetadataAndDocStringPass()(model)
    unshare_constants(model)
    common.ShapeInferencePass(data_prop=True)(model)
    complete_shapes(model)


def fold_transposed_constants(model: onnx_ir.Model) -> None:
    """Transpose weights here instead of at every start: Transpose(initializer) -> initializer."""
    for node in list(model.graph):
        source = node.inputs[0] if node.inputs else None
        if node.op_type != "Transpose" or node.domain or source is None:
            continue
        if source.const_value is None or source.is_graph_input():
            continue
        output = node.outputs[0]
        if output.is_graph_output():
            continue
        order = node.attributes["perm"].as_ints() if "perm" in node.attributes else None
        array = np.ascontiguousarray(source.const_value.numpy().transpose(order))
        name, output.name = str(output.name), None
        output.replace_all_uses_with(add_constant(model, name, array))
        model.graph.remove(node, safe=True)


def unshare_constants(model: onnx_ir.Model) -> None:
    """Give each reader of a float tensor its own copy, so that one can be rewritten alone.

    Exporters merge constants that happen to be equal, such as the biases of a fresh model.
    """
    taken = set(model.graph.initializers)
    for name, value in list(model.graph.initializers.items()):
        if value.const_value is None or value.dtype != onnx_ir.DataType.FLOAT:
            continue
        if not value.const_value.shape.rank():  # a scalar belongs to no channel
            continue
        for number, use in enumerate(list(value.uses())[1:], 1):
            copy_name = f"{name}.{number}"
            while copy_name in taken:
                copy_name += "_"
            taken.add(copy_name)
            copy = add_constant(model, copy_name, value.const_value.numpy())
            use.node.replace_input_with(use.idx, copy)


def complete_shapes(model: onnx_ir.Model) -> None:
    """Read off the weights how many channels enter a MatMul, where shape inference lost count."""
    for node in model.graph:
        if node.op_type != "MatMul" or node.domain:
            continue
        value, weight = node.inputs
        if value is None or weight is None or weight.const_value is None or value.shape is None:
            continue
        if len(weight.const_value.shape) == 2 and not isinstance(value.shape[-1], int):
            known = onnx_ir.Shape(value.shape)
            known[-1] = weight.const_value.shape.numpy()[0]
            value.shape = known
