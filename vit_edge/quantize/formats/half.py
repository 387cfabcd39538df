"""float32 graphs into mixed float16 or bfloat16 ones: Casts, and weights of half the size."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx_ir
import onnx_ir.passes.common as onnx_passes
from numpy.typing import NDArray

from vit_edge.errors import ModelError
from vit_edge.graphs.names import Names
from vit_edge.quantize.linears import constant, is_initializer, set_constant
from vit_edge.quantize.parts import USUAL_PARTS, half_nodes, is_float32, stem


@dataclass(frozen=True)
class Half:
    """A floating-point type of 16 bits."""

    name: str
    dtype: onnx_ir.DataType
    largest: float
    smallest_normal: float
    oldest_opset: int  # with LayerNormalization and MatMul of that type


# IEEE 754 binary16, and the upper half of binary32
FLOAT16 = Half("fp16", onnx_ir.DataType.FLOAT16, 65504.0, 2.0**-14, 17)
BFLOAT16 = Half("bf16", onnx_ir.DataType.BFLOAT16, 3.3895313892515355e38, 2.0**-126, 17)
SCALE_OPSET = 19  # from which on QuantizeLinear and DequantizeLinear take 16-bit scales


def prepare(model: onnx_ir.Model) -> None:
    """Make every constant an initializer and find out every type, in place."""
    onnx_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    onnx_passes.IdentityEliminationPass()(model)
    onnx_passes.ShapeInferencePass(check_type=False, strict_mode=False)(model)


def convert(
    model: onnx_ir.Model,
    half: Half,
    parts: Collection[str] = USUAL_PARTS,
    keep_float32: Collection[str] = (),
) -> set[onnx_ir.Node]:
    """Compute the GEMMs of a float32 graph in half precision, in place.

    Inputs and outputs keep their names and stay float32. Q/DQ around the Linears may be there:
    what lies between DequantizeLinear and MatMul is half afterwards, with scales of that type,
    which must have been made by `rounded_scale`.

    Args:
        model: Whatever made it; see `half_nodes`.
        half: FLOAT16 or BFLOAT16.
        parts: What else becomes half; see `parts.PARTS`.
        keep_float32: Names of nodes, or of what they belong to, that do not.

    Returns:
        The nodes that are computed in half precision now.

    Raises:
        ModelError: A node that is not understood, an opset too old, a weight out of range, a name
            to keep that is not there. The model is then of no use.
    """
    prepare(model)
    nodes = half_nodes(model, parts, keep_float32)
    _check_opset(model, half, nodes)
    _convert_constants(model, half, nodes)
    casts = _Casts(model, half)
    for node in list(model.graph):
        casts.widen_or_narrow_inputs(node, nodes)
        if node in nodes:
            casts.mark_outputs(node)
            if node.op_type == "Attention" and "softmax" not in parts:
                # TensorRT's parser refuses the attribute; it gets decomposed attention
                precision = onnx_ir.AttrInt64("softmax_precision", int(onnx_ir.DataType.FLOAT))
                node.attributes.add(precision)
    return nodes


def rounded_scale(scale: NDArray[np.float32], half: Half = FLOAT16) -> NDArray[np.float32]:
    """The next scale up that half precision holds exactly, as float32 of the same shape.

    The values must be quantized by this scale: the graph will dequantize by it. Upwards, so that
    nothing that was covered is clipped.

    Args:
        scale: float32, positive.
        half: The type of the scales in the graph.

    Raises:
        ModelError: A scale beyond the type's range.
    """
    dtype = half.dtype.numpy()
    wide = np.asarray(scale, np.float32)
    with np.errstate(over="ignore", under="ignore"):
        near = wide.astype(dtype)
        bits = near.view(np.uint16) + (near.astype(np.float32) < wide)  # the next number up
    up: NDArray[np.float32] = bits.astype(np.uint16).view(dtype).astype(np.float32)
    if not np.isfinite(up).all():
        raise ModelError(f"a scale of {wide.max():.3g} does not fit {half.name}")
    return up


def _check_opset(model: onnx_ir.Model, half: Half, nodes: set[onnx_ir.Node]) -> None:
    opset = model.opset_imports.get("", 0)
    quantized = any(node.op_type.endswith("QuantizeLinear") for node in nodes)
    quantized |= any(node.op_type == "DequantizeLinear" for node in nodes)
    needed = SCALE_OPSET if quantized else half.oldest_opset
    if opset < needed:
        what = "16-bit scales" if quantized else f"LayerNormalization beside {half.name}"
        raise ModelError(f"{what} need opset {needed} or newer, not {opset}: export it again")


def _convert_constants(model: onnx_ir.Model, half: Half, nodes: set[onnx_ir.Node]) -> None:
    """Give half nodes their weights as half; float32 nodes keep theirs."""
    names = Names.of(model)
    for value in list(model.graph.initializers.values()):
        uses = [use for use in value.uses() if use.node in nodes]
        if not uses or not is_float32(value):
            continue
        narrow = _narrow(value, uses[0].node, half)
        if len(uses) == len(value.uses()) and not value.is_graph_output():
            set_constant(value, narrow)
            value.type = onnx_ir.TensorType(half.dtype)
            continue
        tensor = onnx_ir.tensor(narrow, name=names.fresh(f"{value.name}_{half.name}"))
        copy = onnx_ir.Value(
            name=tensor.name, type=onnx_ir.TensorType(half.dtype), shape=value.shape,
            const_value=tensor,
        )  # fmt: skip
        model.graph.initializers.add(copy)
        for use in uses:
            use.node.replace_input_with(use.idx, copy)


def _narrow(value: onnx_ir.Value, node: onnx_ir.Node, half: Half) -> NDArray[np.generic]:
    wide = constant(value)
    with np.errstate(over="ignore"):
        narrow: NDArray[np.generic] = wide.astype(half.dtype.numpy())
    if not np.isfinite(narrow.astype(np.float32)).all():
        raise ModelError(
            f"{value.name} of {node.name} reaches {np.abs(wide).max():.4g}, beyond {half.name}'s "
            f"{half.largest:.5g}: add {stem(node)} to keep_float32"
        )
    is_scale = node.op_type == "DequantizeLinear" and value is node.inputs[1]
    if is_scale and (narrow.astype(np.float32) != wide).any():
        raise ModelError(
            f"{value.name} of {node.name} is no {half.name} number: what it dequantizes must be "
            "quantized by rounded_scale(scale)"
        )
    return narrow


class _Casts:
    """The Casts between the two types, one for each value."""

    def __init__(self, model: onnx_ir.Model, half: Half) -> None:
        self._graph = model.graph
        self._half = half
        self._made: dict[onnx_ir.Value, onnx_ir.Value] = {}
        self._names = Names.of(model)

    def widen_or_narrow_inputs(self, node: onnx_ir.Node, nodes: set[onnx_ir.Node]) -> None:
        wanted = self._half.dtype if node in nodes else onnx_ir.DataType.FLOAT
        if node.op_type == "Shape":  # takes what there is
            return
        for index, value in enumerate(node.inputs):
            if value is None or is_initializer(value) or value.dtype == wanted:
                continue
            if value.dtype in (self._half.dtype, onnx_ir.DataType.FLOAT):
                node.replace_input_with(index, self._cast(value, wanted))

    def mark_outputs(self, node: onnx_ir.Node) -> None:
        for output in node.outputs:
            if not is_float32(output):
                continue
            output.type = onnx_ir.TensorType(self._half.dtype)
            if output.is_graph_output():
                self._keep_graph_output(output)

    def _keep_graph_output(self, value: onnx_ir.Value) -> None:
        name = str(value.name)
        value.name = self._names.fresh(f"{name}_{self._half.name}")
        wide = self._cast(value, onnx_ir.DataType.FLOAT)
        wide.name = name
        for index, output in enumerate(self._graph.outputs):
            if output is value:
                self._graph.outputs[index] = wide

    def _cast(self, value: onnx_ir.Value, dtype: onnx_ir.DataType) -> onnx_ir.Value:
        if value not in self._made:
            producer = value.producer()
            owner = "input" if producer is None else stem(producer)
            name = self._names.fresh(f"{owner}/Cast")
            node = onnx_ir.Node("", "Cast", [value], [onnx_ir.AttrInt64("to", dtype)], name=name)
            output = node.outputs[0]
            output.name, output.shape = self._names.fresh(f"{name}:0"), value.shape
            output.type = onnx_ir.TensorType(dtype)
            if producer is None:
                self._graph.insert_before(self._graph[0], node)
            else:
                self._graph.insert_after(producer, node)
            self._made[value] = output
        return self._made[value]
