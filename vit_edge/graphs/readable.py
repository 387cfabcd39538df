"""Names and attributes that a reader of the graph expects."""

from __future__ import annotations

import ast

import onnx_ir

from vit_edge.graphs.names import Names

SCOPES = "pkg.torch.onnx.name_scopes"  # ["", "blocks.0", ..., "blocks.0.mlp.fc1", "matmul_2"]


def name_by_module(model: onnx_ir.Model) -> None:
    """Name each node and its outputs after the module it comes from.

    `blocks.0.mlp.fc1/MatMul` instead of `node_matmul_2`, and drop the tracer's notes that said so.
    Graph inputs and outputs keep their names.
    """
    module_of: dict[onnx_ir.Value | None, str] = {}
    kept = {value.name for value in (*model.graph.inputs, *model.graph.outputs)}
    names = Names(kept.union(model.graph.initializers))
    for node in model.graph:
        scopes = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
        # a node that an operator's decomposition added has no scope: it stays with its input's
        module = scopes[-2] if len(scopes) > 1 else module_of.get(node.inputs[0], "")
        node.name = names.fresh(f"{module}/{node.op_type}" if module else node.op_type)
        for index, value in enumerate(node.outputs):
            module_of[value] = module
            if value.name not in kept:
                value.name = names.fresh(f"{node.name}:{index}")
        node.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    for node in model.graph:
        for value in node.outputs:
            value.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.graph.name = "vit"


def unshare_parameters(model: onnx_ir.Model) -> None:
    """Give each module parameters of its own, called by its name; after `name_by_module`.

    torch.onnx makes one of small parameters that hold the same numbers, such as biases of zeros.
    Who changes one would change all, and who looks for one by name would not find it.
    """
    for value in tuple(model.graph.initializers.values()):
        uses, tensor = tuple(value.uses()), value.const_value
        if len(uses) < 2 or tensor is None or not str(value.name).endswith((".weight", ".bias")):
            continue
        for node, index in uses:
            is_weight = node.op_type != "Add" and index == 1
            name = f"{str(node.name).partition('/')[0]}.{'weight' if is_weight else 'bias'}"
            if name != value.name and name not in model.graph.initializers:
                own = onnx_ir.Value(
                    name=name, type=value.type, shape=value.shape, const_value=tensor
                )
                model.graph.register_initializer(own)
                node.replace_input_with(index, own)


def drop_allowzero(model: onnx_ir.Model) -> None:
    """Remove `allowzero` from Reshape nodes, which have no 0 in their shape; -1 is the batch."""
    for node in model.graph:
        if node.op_type == "Reshape":
            shape = node.inputs[1]
            constant = None if shape is None else shape.const_value
            if constant is not None and 0 not in constant.numpy():
                node.attributes.pop("allowzero", None)
