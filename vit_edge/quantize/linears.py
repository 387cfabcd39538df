"""The Linears of a graph: y = x W + b with constant W, wherever the graph came from.

A Linear is a MatMul or Gemm whose second operand is an initializer of rank 2, and the Add of its
bias if there is one. Those of the blocks are quantized; those behind the last LayerNormalization
(pre_logits and head) are the readout, a thousandth of the work, and stay in float.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir
from numpy.typing import NDArray

from vit_edge.errors import ModelError, UsageError
from vit_edge.graphs.names import tell_apart

# What may hold weights beside the Linears in a ViT: the patch embedding.
_STEP = re.compile(r"/[^/]*$")  # the operator at the end of a node's name


@dataclass(frozen=True, eq=False)
class Linear:
    """One Linear of a graph."""

    name: str  # blocks.3.mlp.fc2; no other Linear of the graph has it
    node: onnx_ir.Node  # MatMul or Gemm
    weight: onnx_ir.Value  # initializer, [in, out], or [out, in] if transposed
    transposed: bool
    bias: onnx_ir.Value | None
    add: onnx_ir.Node | None  # the Add of the bias; None for Gemm and without a bias

    @property
    def input(self) -> onnx_ir.Value:
        """The activations x: float32[..., in]."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def undivided(self) -> onnx_ir.Value:
        """The input before its rows were divided by their sizes; see `rescale.inserting`."""
        divided = self.input.producer()
        if _row_sizes(self.node) is None or divided is None or divided.inputs[0] is None:
            return self.input
        return divided.inputs[0]

    @property
    def output(self) -> onnx_ir.Value:
        """The result, with the bias."""
        return (self.add or self.node).outputs[0]

    def matrix(self) -> NDArray[np.float32]:
        """The weight as float32[in, out], a view where it can be."""
        array = constant(self.weight)
        return array.T if self.transposed else array

    def set_matrix(self, matrix: NDArray[np.floating]) -> None:
        """Replace the weight: float[in, out]."""
        set_constant(self.weight, matrix.T if self.transposed else matrix)

    def correct_bias(self, bias: NDArray[np.floating] | None) -> None:
        """Replace the bias, float[out], where there is one and it was corrected."""
        if self.bias is not None and bias is not None:
            set_constant(self.bias, bias)


def constant(value: onnx_ir.Value) -> NDArray[np.float32]:
    """The values of an initializer."""
    if value.const_value is None:
        raise AssertionError(f"{value.name} is no initializer")
    return value.const_value.numpy()


def set_constant(value: onnx_ir.Value, array: NDArray[np.generic]) -> None:
    """Give an initializer new values of the same shape."""
    assert value.name is not None
    # not ascontiguousarray, which gives a scalar a dimension
    value.const_value = onnx_ir.tensor(np.asarray(array, order="C"), name=value.name)


def block_linears(model: onnx_ir.Model) -> list[Linear]:
    """Every Linear that a LayerNormalization follows, in the order of the graph.

    Raises:
        ModelError: None is found, or two Linears share a weight; the node is named.
    """
    ahead = ahead_of_norms(model)
    linears = [linear for linear in all_linears(model) if linear.node in ahead]
    if not linears:
        raise ModelError(
            "no Linear lies ahead of a LayerNormalization: this is no pre-norm ViT, or its "
            "LayerNormalization is decomposed (export it with opset 17 or newer)"
        )
    owners: dict[onnx_ir.Value, str] = {}
    for linear in linears:
        if linear.weight in owners:
            raise ModelError(
                f"{linear.name} and {owners[linear.weight]} share the weight {linear.weight.name}"
            )
        owners[linear.weight] = linear.name
    return linears


def check_names(keep_float: Sequence[str], known: Sequence[str]) -> None:
    """See that everything to keep in float is there.

    Raises:
        UsageError: Something is not; what there is is listed.
    """
    unknown = [name for name in keep_float if name not in known]
    if unknown:
        raise UsageError(
            f"keep_float names {', '.join(unknown)}, which the graph does not have; it has "
            f"{', '.join(known)}"
        )


def all_linears(model: onnx_ir.Model) -> list[Linear]:
    """Every Linear of the graph, each with a name of its own.

    Raises:
        ModelError: A MatMul or Gemm with a constant that is none of a ViT; it is named.
    """
    linears = [linear for node in model.graph if (linear := _linear(node)) is not None]
    names = tell_apart([each.name for each in linears], [str(each.node.name) for each in linears])
    return [
        dataclasses.replace(linear, name=name) for linear, name in zip(linears, names, strict=True)
    ]


def _linear(node: onnx_ir.Node) -> Linear | None:
    if node.domain or node.op_type not in ("MatMul", "Gemm") or len(node.inputs) < 2:
        return None
    weight = node.inputs[1]
    if weight is None or not is_initializer(weight) or len(weight.shape or ()) != 2:
        return None
    if node.op_type == "Gemm":
        for key, neutral in (("alpha", 1.0), ("beta", 1.0), ("transA", 0)):
            if key in node.attributes and node.attributes[key].value != neutral:
                raise ModelError(f"{node.name}: Gemm with {key} = {node.attributes[key].value}")
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None and not is_initializer(bias):
            raise ModelError(f"{node.name}: the bias of Gemm is computed, not constant")
        transposed = "transB" in node.attributes and node.attributes["transB"].value == 1
        return Linear(_name(node), node, weight, transposed, bias, None)
    add, bias = _bias(node, weight.shape[1])  # type: ignore[index]
    return Linear(_name(node), node, weight, False, bias, add)


def _bias(node: onnx_ir.Node, outputs: object) -> tuple[onnx_ir.Node | None, onnx_ir.Value | None]:
    """The Add behind a MatMul, and the bias it adds: an initializer [out].

    Where rows were divided by their sizes, the multiplication by these stands between.
    """
    result, sizes = node.outputs[0], _row_sizes(node)
    users = [use.node for use in result.uses()]
    if sizes is not None:
        result = users[0].outputs[0]
        users = [use.node for use in result.uses()]
    if len(users) != 1 or users[0].op_type != "Add" or result.is_graph_output():
        return None, None
    for value in users[0].inputs:
        if value is not None and is_initializer(value) and list(value.shape or ()) == [outputs]:
            return users[0], value
    return None, None


def _row_sizes(node: onnx_ir.Node) -> onnx_ir.Value | None:
    """What divides the rows of a MatMul's input and multiplies its result again, if anything."""
    divided = None if node.inputs[0] is None else node.inputs[0].producer()
    users = [use.node for use in node.outputs[0].uses()]
    if divided is None or divided.op_type != "Div" or len(users) != 1 or users[0].op_type != "Mul":
        return None
    sizes = divided.inputs[1]
    return sizes if any(value is sizes for value in users[0].inputs) else None


def is_initializer(value: onnx_ir.Value) -> bool:
    """True if the value is a constant that no caller can replace."""
    return value.is_initializer() and not value.is_graph_input()


def _name(node: onnx_ir.Node) -> str:
    """`blocks.0.mlp.fc1/MatMul` is called blocks.0.mlp.fc1, if no other Linear is."""
    return _STEP.sub("", node.name or "").strip("/") or str(node.name)


def ahead_of_norms(model: onnx_ir.Model) -> set[onnx_ir.Node]:
    """Every node from which a LayerNormalization can be reached."""
    ahead: set[onnx_ir.Node] = set()
    for node in reversed(list(model.graph)):
        users = [use.node for output in node.outputs for use in output.uses()]
        if any(user in ahead or user.op_type == "LayerNormalization" for user in users):
            ahead.add(node)
    return ahead


def norms(model: onnx_ir.Model) -> Iterator[onnx_ir.Node]:
    """Every LayerNormalization with a constant scale and bias over the last axis."""
    for node in model.graph:
        if node.op_type == "LayerNormalization" and not node.domain and len(node.inputs) == 3:
            axis = node.attributes["axis"].value if "axis" in node.attributes else -1
            gamma, beta = node.inputs[1], node.inputs[2]
            if gamma is None or beta is None or axis not in (-1, 2):  # [N, tokens, D]
                continue
            if is_initializer(gamma) and is_initializer(beta):
                yield node
