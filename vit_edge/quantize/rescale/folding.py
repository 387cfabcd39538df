"""Exact rescaling of activations: y = s y' + z, folded into the weights around them.

What enters a Linear may be scaled and shifted channel by channel if what makes it can undo it:

- a LayerNormalization: gamma / s, (beta - z) / s, and W s, b + z W in every Linear that reads it
  (SmoothQuant, arXiv:2211.10438; the shift is Outlier Suppression+, arXiv:2304.09145);
- the values of an attention, whose weights sum to 1: the value columns of qkv, and W of the
  projection behind it. What lies between softmax and projection only mixes tokens.

fc1 -> GELU -> fc2 cannot be rescaled: GELU is not linear.

Here groups are found by structure, and values by the names that our own export gives. `values`
finds the values of other exporters' graphs; `proving` tries every group before it is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx_ir
from numpy.typing import NDArray

from vit_edge.quantize.linears import Linear, constant, norms, set_constant


class Factor(NamedTuple):
    """A part of an initializer that follows the scale s of a group."""

    value: onnx_ir.Value
    part: tuple[slice, ...]  # the region concerned
    shape: tuple[int, ...]  # to which s[C] is reshaped to broadcast over that region
    inverse: bool  # divided by s, not multiplied
    shifted: bool = False  # a bias, from which z is subtracted first


@dataclass(frozen=True, eq=False)
class Group:
    """Channels that enter one or more Linears and can be rescaled exactly."""

    name: str  # of what makes the channels
    linears: tuple[Linear, ...]  # that read them
    factors: tuple[Factor, ...]
    can_shift: bool

    def fold(self, scale: NDArray[np.float64], shift: NDArray[np.float64]) -> None:
        """Rewrite the weights so that the Linears see (y - shift) / scale.

        Args:
            scale: float64[C], positive.
            shift: float64[C]; zero unless `can_shift`.
        """
        if shift.any() and not self.can_shift:
            raise AssertionError(f"{self.name} cannot be shifted")
        for linear in self.linears:
            if shift.any() and linear.bias is not None:
                moved = shift @ linear.matrix().astype(np.float64)
                set_constant(linear.bias, (constant(linear.bias) + moved).astype(np.float32))
        for factor in self.factors:
            array = constant(factor.value).astype(np.float64)
            region = array[factor.part]
            if factor.shifted:
                region -= shift.reshape(factor.shape)
            factors = scale.reshape(factor.shape)
            region *= 1 / factors if factor.inverse else factors
            set_constant(factor.value, array.astype(np.float32))


def groups(model: onnx_ir.Model, linears: list[Linear]) -> list[Group]:
    """Every group that structure and names show; a Linear is in one of them at most."""
    by_node = {linear.node: linear for linear in linears}
    return [*_norm_groups(model, by_node), *_value_groups(model, linears)]


def rows(linear: Linear) -> Factor:
    """The weights that meet a Linear's input channels."""
    shape = (1, -1) if linear.transposed else (-1, 1)
    return Factor(linear.weight, (slice(None), slice(None)), shape, inverse=False)


def columns(linear: Linear, start: int, stop: int) -> Iterator[Factor]:
    """The weights and biases that make a Linear's outputs start:stop."""
    part = slice(start, stop)
    everything = slice(None)
    if linear.transposed:
        yield Factor(linear.weight, (part, everything), (-1, 1), inverse=True)
    else:
        yield Factor(linear.weight, (everything, part), (1, -1), inverse=True)
    if linear.bias is not None:
        yield Factor(linear.bias, (part,), (-1,), inverse=True, shifted=True)


def _norm_groups(model: onnx_ir.Model, by_node: dict[onnx_ir.Node, Linear]) -> Iterator[Group]:
    for norm in norms(model):
        output = norm.outputs[0]
        gamma, beta = norm.inputs[1], norm.inputs[2]
        assert gamma is not None
        assert beta is not None
        if output.is_graph_output() or len(gamma.uses()) > 1 or len(beta.uses()) > 1:
            continue
        # Shape reads no value; graphs of TorchScript's exporter are full of it
        readers = [use.node for use in output.uses() if use.node.op_type != "Shape"]
        linears = [by_node[node] for node in readers if node in by_node]
        others = [node for node in readers if node not in by_node]
        class_token = _class_token_factors(model, others, by_node) if others else ([], [])
        if class_token is None or not (linears or class_token[0]):
            continue
        linears += class_token[0]
        everything = (slice(None),)
        factors = [
            Factor(gamma, everything, (-1,), inverse=True),
            Factor(beta, everything, (-1,), inverse=True, shifted=True),
            *(rows(linear) for linear in linears),
            *class_token[1],
        ]
        can_shift = not others and all(linear.bias is not None for linear in linears)
        yield Group(str(norm.name), tuple(linears), tuple(factors), can_shift)


def _class_token_factors(
    model: onnx_ir.Model, readers: list[onnx_ir.Node], by_node: dict[onnx_ir.Node, Linear]
) -> tuple[list[Linear], list[Factor]] | None:
    """Find what reads the norm of a block of export.graph.ClsAttention; None if it is another.

    The query's Linear reads one token of it, the keys and values meet it in two products whose
    weights are `key` [heads, head_dim, D] and `value` [heads, D, head_dim].
    """
    initializers = model.graph.initializers
    linears = [
        by_node[use.node]
        for reader in readers
        if reader.op_type == "Slice"
        for use in reader.outputs[0].uses()
        if use.node in by_node
    ]
    if len(linears) != 1 or not linears[0].name.endswith(".q"):
        return None
    stem = linears[0].name.removesuffix(".q")
    key, value = initializers.get(f"{stem}.key"), initializers.get(f"{stem}.value")
    if sorted(r.op_type for r in readers) != ["MatMul", "Slice", "Transpose"]:
        return None
    if key is None or value is None:
        return None
    everything = (slice(None),) * 3
    return linears, [
        Factor(key, everything, (1, 1, -1), inverse=False),
        Factor(value, everything, (1, -1, 1), inverse=False),
    ]


def _value_groups(model: onnx_ir.Model, linears: list[Linear]) -> Iterator[Group]:
    """Values and the projection behind them, in a graph of ours."""
    named = {linear.name: linear for linear in linears}
    for name, out in named.items():
        if not name.endswith(".attention.out"):
            continue
        stem = name.removesuffix(".out")
        width = out.matrix().shape[0]
        qkv = named.get(f"{stem}.qkv")
        value = model.graph.initializers.get(f"{stem}.value")
        if qkv is not None and qkv.matrix().shape[1] == 3 * width:
            factors = tuple(columns(qkv, 2 * width, 3 * width))
            can_shift = qkv.bias is not None and out.bias is not None
        elif value is not None:
            heads, _, head_dim = constant(value).shape
            factors = (Factor(value, (slice(None),) * 3, (heads, 1, head_dim), inverse=True),)
            can_shift = False
        else:
            continue
        yield Group(f"{stem}.value", (out,), (*factors, rows(out)), can_shift)
