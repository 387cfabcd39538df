"""A half-precision graph as float32 arithmetic with its roundings, for runtimes that lack the type.

ONNX Runtime's CPU provider has no bfloat16 MatMul, and runs float16 ones in float32 while leaving
out the roundings between them, so that an overflow at 65504 goes unseen. Here every value that the
graph stores in half precision is rounded to it, by a Cast there and back. Sums inside an operator
are float32, as on tensor cores, unless a kernel accumulates in float16 itself.
"""

from __future__ import annotations

import numpy as np
import onnx_ir

from vit_edge.graphs.names import Names
from vit_edge.quantize.formats.half import Half
from vit_edge.quantize.linears import constant, set_constant
from vit_edge.quantize.parts import MOVES


def simulate(model: onnx_ir.Model, half: Half) -> onnx_ir.Model:
    """A float32 graph that rounds wherever the given one stores half precision.

    Args:
        model: What `formats.half.convert` has made; left as it is.
        half: Its type.

    Returns:
        A graph with the same input and outputs, twice the size.
    """
    copy = model.clone()
    names = Names.of(copy)
    for value in copy.graph.initializers.values():
        if value.dtype == half.dtype:
            set_constant(value, constant(value).astype(np.float32))
            value.type = onnx_ir.TensorType(onnx_ir.DataType.FLOAT)
    for node in list(copy.graph):
        if _is_widening(node, half):
            _replace_by_input(copy, node)
            continue
        for output in node.outputs:
            if output.dtype == half.dtype:
                _round(copy, names, node, output, half)
    return copy


def sentence(half: Half) -> str:
    """Describe the simulation, for the manifest."""
    return (
        f"float32 arithmetic on onnxruntime's CPU provider, every value that the graph stores in "
        f"{half.name} rounded to it, sums inside operators in float32"
    )


def _is_widening(node: onnx_ir.Node, half: Half) -> bool:
    value = node.inputs[0] if node.op_type == "Cast" else None
    # its input has been made float32 before, with its roundings behind it
    return value is not None and value.meta.get(half.name) is True


def _replace_by_input(model: onnx_ir.Model, node: onnx_ir.Node) -> None:
    value, output = node.inputs[0], node.outputs[0]
    assert value is not None
    if output.is_graph_output():
        node.op_type = "Identity"  # the output's name is a promise
        node.attributes.clear()
        return
    output.replace_all_uses_with(value)
    model.graph.remove(node, safe=True)


def _round(
    model: onnx_ir.Model, names: Names, node: onnx_ir.Node, output: onnx_ir.Value, half: Half
) -> None:
    """Make an output float32, holding only what half precision can hold."""
    wide = onnx_ir.TensorType(onnx_ir.DataType.FLOAT)
    if node.op_type in MOVES:  # what it moves is rounded already
        output.type = wide
        output.meta[half.name] = True
        return
    uses = tuple(output.uses())
    narrow = output
    if node.op_type != "Cast":
        output.type = wide
        down = onnx_ir.Node("", "Cast", [output], [onnx_ir.AttrInt64("to", half.dtype)])
        down.name, narrow = names.fresh(f"{output.name}/round"), down.outputs[0]
        narrow.name, narrow.shape = names.fresh(f"{output.name}/rounded"), output.shape
        narrow.type = onnx_ir.TensorType(half.dtype)
        model.graph.insert_after(node, down)
        node = down
    up = onnx_ir.Node("", "Cast", [narrow], [onnx_ir.AttrInt64("to", onnx_ir.DataType.FLOAT)])
    up.name = names.fresh(f"{output.name}/widen")
    up.outputs[0].name = names.fresh(f"{output.name}/widened")
    up.outputs[0].shape = output.shape
    up.outputs[0].type = wide
    up.outputs[0].meta[half.name] = True
    model.graph.insert_after(node, up)
    for use in uses:
        use.node.replace_input_with(use.idx, up.outputs[0])
