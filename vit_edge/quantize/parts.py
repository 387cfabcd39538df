"""The nodes of a ViT that are computed in half precision, wherever the graph came from.

GEMMs are, and what only moves or combines their results. LayerNormalization, softmax, the residual
stream, the patch embedding and all that no LayerNormalization follows (the readout) stay in
float32, and so does every operator that is not listed here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

import onnx_ir

from vit_edge.errors import ModelError, UsageError
from vit_edge.quantize.linears import ahead_of_norms, is_initializer

# What may be computed in half precision beside the GEMMs.
Part = Literal["gelu", "softmax", "residual", "patch"]
PARTS: tuple[Part, ...] = ("gelu", "softmax", "residual", "patch")
USUAL_PARTS = ("gelu",)  # those that are, unless told otherwise

GEMMS = ("MatMul", "Gemm", "Attention")
# They compute nothing: their result is as wide as what they move.
MOVES = (
    "Concat", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice", "Split",
    "Squeeze", "Tile", "Transpose", "Unsqueeze",
)  # fmt: skip
_GELU = ("Gelu", "Erf", "Tanh", "Sigmoid")  # the operator, or what other exporters make of it
# A bias, a scale, LayerScale, the rest of a decomposed GELU.
_ELEMENTWISE = ("Add", "Sub", "Mul", "Div", "Relu", "Where")
_OPERATOR = re.compile(r"/[^/]*$")  # at the end of a node's name


@dataclass(frozen=True)
class HalfSettings:
    """The choices of half precision.

    Attributes:
        also_half: What becomes half beside the GEMMs, of gelu, softmax, residual, patch.
        keep_float32: Nodes or Linears that do not, such as blocks.0.mlp.fc2.
        centre: Shift what enters the Linears to zero mean first, which is exact, if there are
            calibration images.
    """

    also_half: tuple[str, ...] = USUAL_PARTS
    keep_float32: tuple[str, ...] = ()
    centre: bool = True

    def problems(self) -> list[str]:
        """List everything that cannot be followed; empty if nothing."""
        return [
            f"also_half: {name!r} is not one of {', '.join(PARTS)}"
            for name in self.also_half
            if name not in PARTS
        ]


def half_nodes(
    model: onnx_ir.Model, parts: Collection[str], keep_float32: Collection[str]
) -> set[onnx_ir.Node]:
    """The nodes to compute in half precision.

    Args:
        model: With float32 activations; it may have Q/DQ around its Linears.
        parts: Those of PARTS that are computed in half precision too.
        keep_float32: Nodes that are not, by their name or by the part in front of its last slash:
            blocks.3.mlp.fc2 keeps blocks.3.mlp.fc2/MatMul and blocks.3.mlp.fc2/Add.

    Raises:
        ModelError: A node that cannot be understood, or no LayerNormalization to follow.
        UsageError: A name to keep that no node has.
    """
    for node in model.graph:
        _refuse_unknown(node)
    kept = set(_named(model, keep_float32))
    ahead = ahead_of_norms(model)
    if not ahead:
        raise ModelError(
            "the graph has no LayerNormalization, or has it decomposed, and its squares overflow "
            "half precision: export it with opset 17 or newer"
        )
    kept |= _around_exp(model)
    half: set[onnx_ir.Node] = set()
    for node in model.graph:  # in topological order
        if node in ahead and node not in kept and _is_half(node, half, parts):
            half.add(node)
    for node in reversed(list(model.graph)):
        if node in ahead and node not in kept and _only_serves(node, half):
            half.add(node)
    return {node for node in half if not _ends_in_float32(node, half)}


def is_float32(value: onnx_ir.Value | None) -> bool:
    """True if a value is a float32 tensor."""
    return value is not None and value.dtype == onnx_ir.DataType.FLOAT


def stem(node: onnx_ir.Node) -> str:
    """The name without the operator: blocks.3.mlp.fc2 of blocks.3.mlp.fc2/MatMul."""
    return _OPERATOR.sub("", node.name or "")


def _is_half(node: onnx_ir.Node, half: set[onnx_ir.Node], parts: Collection[str]) -> bool:
    """True if a node is half by what it is, or by what it reads."""
    if node.op_type in GEMMS:
        return True
    if node.op_type in ("Conv", "Softmax"):
        return ("patch" if node.op_type == "Conv" else "softmax") in parts
    if node.op_type in _GELU and "gelu" not in parts:
        return False
    if node.op_type not in (*MOVES, *_GELU, *_ELEMENTWISE, "QuantizeLinear"):
        return False
    tensors = [
        value.producer() in half and not _is_patches(value)
        for value in node.inputs
        if value is not None and is_float32(value)
        if not is_initializer(value) and not _is_scalar(value)
    ]
    if node.op_type == "Add" and "residual" in parts:
        return any(tensors)
    return bool(tensors) and all(tensors)


def _around_exp(model: onnx_ir.Model) -> set[onnx_ir.Node]:
    """Find what lies between an Exp and the next Linear, and the products that make its exponent.

    It is Performer's attention: exp(-|k|^2 / 2) of a key of any length leaves half precision, and
    so does a sum over tokens.
    """
    around: set[onnx_ir.Node] = set()
    for node in model.graph:  # in topological order
        makers = {value.producer() for value in node.inputs if value is not None}
        if node.op_type == "Exp":
            exponent = next(iter(makers))
            products = [] if exponent is None else [v.producer() for v in exponent.inputs if v]
            around |= {node, *(each for each in products if each and each.op_type in GEMMS)}
        elif around & makers and not _has_weight(node):
            around.add(node)
    return around


def _has_weight(node: onnx_ir.Node) -> bool:
    weight = node.inputs[1] if node.op_type in GEMMS else None
    return weight is not None and is_initializer(weight)


def _is_patches(value: onnx_ir.Value) -> bool:
    """True if a value leaves the patch embedding: half or not, what follows it is float32."""
    producer = value.producer()
    return producer is not None and producer.op_type == "Conv"


def _only_serves(node: onnx_ir.Node, half: set[onnx_ir.Node]) -> bool:
    """True if a node moves or dequantizes something that half nodes alone read.

    It is cheaper, and shares more casts, to convert in front of it.
    """
    if node.op_type not in (*MOVES, "DequantizeLinear") or not is_float32(node.outputs[0]):
        return False
    if any(output.is_graph_output() for output in node.outputs):
        return False
    readers = [use.node for output in node.outputs for use in output.uses()]
    return bool(readers) and all(reader in half for reader in readers)


def _ends_in_float32(node: onnx_ir.Node, half: set[onnx_ir.Node]) -> bool:
    """True if a node adds a constant to what float32 nodes alone read.

    These are the biases of the Linears that write to the residual stream. Added in float32 they
    cost nothing, as the next sum is float32, and save a rounding where values are largest.
    """
    if node.op_type not in _ELEMENTWISE or len(node.outputs) != 1:
        return False
    constants = [value for value in node.inputs if value is not None and is_initializer(value)]
    readers = [use.node for use in node.outputs[0].uses()]
    return bool(constants) and not any(reader in half for reader in readers)


def _is_scalar(value: onnx_ir.Value) -> bool:
    """True if a value is one number, such as a computed attention scale."""
    return value.shape is not None and all(size == 1 for size in value.shape)


def _refuse_unknown(node: onnx_ir.Node) -> None:
    name = node.name or node.op_type
    if node.domain not in ("", "ai.onnx"):
        raise ModelError(
            f"{name}: {node.domain}.{node.op_type} is no standard operator; its precision cannot "
            "be changed. Export the model without fusions of a runtime"
        )
    if any(attribute.type.name in ("GRAPH", "GRAPHS") for attribute in node.attributes.values()):
        raise ModelError(f"{name}: {node.op_type} has a graph of its own, which no ViT needs")
    for output in node.outputs:
        if output.dtype is None and output.uses():
            raise ModelError(f"{name}: the type of its output {output.name} cannot be inferred")
        if output.dtype in (onnx_ir.DataType.FLOAT16, onnx_ir.DataType.BFLOAT16):
            raise ModelError(
                f"{name}: its output {output.name} is {output.dtype.name} already; "
                "start from a float32 model"
            )


def _named(model: onnx_ir.Model, names: Collection[str]) -> Iterator[onnx_ir.Node]:
    missing = set(names)
    for node in model.graph:
        matches = {str(node.name), stem(node)} & set(names)
        if matches:
            missing -= matches
            yield node
    if missing:
        known = sorted({stem(node) for node in model.graph if node.op_type in GEMMS})
        raise UsageError(
            f"no node to keep in float32 is called {', '.join(sorted(missing))}; "
            f"the GEMMs are {', '.join(known)}"
        )
