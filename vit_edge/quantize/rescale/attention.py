"""The products of decomposed attention: q k^T and p v, where p = softmax(q k^T).

They are found by structure: a Softmax over a MatMul of two activations of rank 4, and the MatMul
that reads it. A block that answers for the class token alone multiplies tensors of rank 3, which is
next to no work, and is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx_ir

from vit_edge.errors import ModelError
from vit_edge.graphs.names import tell_apart
from vit_edge.graphs.workspace import Workspace
from vit_edge.quantize import Progress
from vit_edge.quantize.calibration import Calibration
from vit_edge.quantize.linears import Linear, block_linears, constant, is_initializer, set_constant
from vit_edge.quantize.parts import stem
from vit_edge.quantize.rounding.samples import collect_samples

_RANK = 4  # [N, heads, tokens, head_dim or tokens]


@dataclass(frozen=True, eq=False)
class Operand:
    """One side of a MatMul between activations."""

    name: str  # blocks.3.attention.k
    node: onnx_ir.Node
    index: int

    @property
    def input(self) -> onnx_ir.Value:
        """The activations: float32[N, heads, ..., ...]."""
        value = self.node.inputs[self.index]
        assert value is not None
        return value


@dataclass(frozen=True, eq=False)
class Products:
    """Both products of one attention."""

    name: str  # blocks.3.attention.products
    q: Operand
    k: Operand  # transposed
    p: Operand  # what softmax makes: 0 to 1
    v: Operand

    @property
    def measured(self) -> tuple[Operand, ...]:
        """The operands whose range must be seen."""
        return self.q, self.k, self.v


def attention_products(model: onnx_ir.Model) -> list[Products]:
    """Every attention of a graph, in its order.

    Raises:
        ModelError: One is a single operator, whose products cannot be reached; it is named.
    """
    for node in model.graph:
        if node.op_type == "Attention":
            raise ModelError(
                f"{node.name}: the products inside an Attention operator cannot be quantized; take "
                'a recipe for GPUs, whose attention is "decomposed"; one with a mask is not taken '
                "apart: export the model with opset 18 to 22"
            )
    found = list(_found(model))
    names = tell_apart(
        [stem(each.softmax) for each in found], [str(each.softmax.name) for each in found]
    )
    return [_products(name, each) for name, each in zip(names, found, strict=True)]


class _Found(NamedTuple):
    """The nodes of an attention."""

    scores: onnx_ir.Node
    softmax: onnx_ir.Node
    mixing: onnx_ir.Node


def _found(model: onnx_ir.Model) -> Iterator[_Found]:
    for node in model.graph:
        if node.op_type != "Softmax" or node.domain:
            continue
        scores = node.inputs[0].producer() if node.inputs[0] is not None else None
        if scores is not None and scores.op_type == "Add" and scores.inputs[0] is not None:
            scores = scores.inputs[0].producer()  # a bias of the scores: of merged tokens
        uses = tuple(node.outputs[0].uses())
        if scores is None or not _multiplies_activations(scores) or len(uses) != 1:
            continue
        mixing, index = uses[0].node, uses[0].idx
        if index == 0 and _multiplies_activations(mixing):
            yield _Found(scores, node, mixing)


def _products(name: str, nodes: _Found) -> Products:
    return Products(
        f"{name}.products",
        Operand(f"{name}.q", nodes.scores, 0),
        Operand(f"{name}.k", nodes.scores, 1),
        Operand(f"{name}.p", nodes.mixing, 0),
        Operand(f"{name}.v", nodes.mixing, 1),
    )


def _multiplies_activations(node: onnx_ir.Node) -> bool:
    return node.op_type == "MatMul" and all(
        value is not None and not is_initializer(value) and len(value.shape or ()) == _RANK
        for value in node.inputs
    )


def centre_keys(
    model: onnx_ir.Model, workspace: Workspace, calibration: Calibration, progress: Progress
) -> list[str]:
    """Make the keys of our own graphs zero-mean, in place; other exporters' are left as they are.

    The common part of a head's keys adds the same number to every score of a query, which softmax
    ignores. It is taken out of the bias of qkv, and rounding has less to round.

    Args:
        model: float32, settled in the workspace.
        workspace: Where to run it.
        calibration: The images whose means are taken.
        progress: Shown while they run.

    Returns:
        The names of the keys that were shifted.
    """
    makers = {linear.name: linear for linear in block_linears(model)}
    key_linears = {}
    for attention in attention_products(model):
        linear = makers.get(f"{attention.name.removesuffix('.products')}.qkv")
        if linear is not None and linear.bias is not None and _is_fused(linear):
            key_linears[attention.k.name] = linear
    operands = [_Made(name, linear.output) for name, linear in key_linears.items()]
    samples = collect_samples(workspace, model, operands, calibration, progress)
    for linear in key_linears.values():
        assert linear.bias is not None
        width = linear.matrix().shape[0]
        keys = slice(width, 2 * width)
        bias = constant(linear.bias).copy()
        bias[keys] -= samples[linear.output].rows[:, keys].mean(axis=0, dtype=np.float64)
        set_constant(linear.bias, bias)
    return list(key_linears)


def _is_fused(qkv: Linear) -> bool:
    width, outputs = qkv.matrix().shape
    return bool(outputs == 3 * width)


class _Made(NamedTuple):
    """A value to sample."""

    name: str
    input: onnx_ir.Value
