"""Integer arithmetic of ONNX QuantizeLinear / DequantizeLinear, in NumPy, and those nodes.

    q = saturate(round_half_even(x / scale) + zero_point)        x^ = (q - zero_point) scale

(https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx_ir
from numpy.typing import NDArray

from vit_edge.graphs.building import add_constant
from vit_edge.graphs.names import Names
from vit_edge.quantize.linears import Linear

LARGEST = 127  # symmetric weights: -128 is left out, so that both signs round alike
LARGEST_REDUCED = 63  # U8 x S8 in 16-bit pairs saturates on AVX2 and AVX-512 without VNNI
SMALLEST_SCALE = 1e-12  # of a channel that is zero; any positive number does


@dataclass(frozen=True)
class Format:
    """An integer type and how it is used."""

    dtype: str  # NumPy's name
    low: int
    high: int
    symmetric: bool  # zero point 0 (int8) or in the middle

    def parameters(self, low: float, high: float) -> tuple[np.float32, int]:
        """Scale and zero point that cover low..high; 0 is always covered, and exact.

        Returns:
            The scale as float32, and the zero point.
        """
        low, high = min(low, 0.0), max(high, 0.0)
        if low == -high and not self.symmetric:
            # Both ends on a level. Of rows that were divided by their largest value, one end is
            # in each; half way between two levels, runtimes would round it to different ones.
            half = (self.high - self.low) // 2
            return np.float32(max(high / half, SMALLEST_SCALE)), self.low + half + 1
        if self.symmetric:
            middle = (self.low + self.high + 1) // 2
            scale = max(-low / (middle - self.low or 1), high / (self.high - middle))
            return np.float32(max(scale, SMALLEST_SCALE)), middle
        scale = max((high - low) / (self.high - self.low), SMALLEST_SCALE)
        zero_point = round(self.low - low / scale)
        return np.float32(scale), int(min(max(zero_point, self.low), self.high))

    def fake(
        self, x: NDArray[np.float32], scale: np.float32, zero_point: int
    ) -> NDArray[np.float32]:
        """Quantize and dequantize x."""
        q: NDArray[np.float32] = np.divide(x, scale, dtype=np.float32)
        np.rint(q, out=q)
        np.clip(q, self.low - zero_point, self.high - zero_point, out=q)
        q *= scale
        return q


class Stored(Protocol):
    """A type of 8 bits, by NumPy's or ml_dtypes' name."""

    @property
    def dtype(self) -> str: ...


UINT8 = Format("uint8", 0, 255, symmetric=False)
INT8 = Format("int8", -128, 127, symmetric=False)
INT8_SYMMETRIC = Format("int8", -128, 127, symmetric=True)


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight matrix as integers, or floats of 8 bits, with one scale per output."""

    values: NDArray[Any]  # int8 or float8_e4m3fn, [in, out]
    scale: NDArray[np.float32]  # [out]

    def dequantize(self) -> NDArray[np.float32]:
        """float32[in, out]."""
        return self.values.astype(np.float32) * self.scale


def unrounded(scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scales that stay float32."""
    return scale


def quantized_weight(
    matrix: NDArray[np.float32],
    largest: int,
    scale_type: Callable[[NDArray[np.float32]], NDArray[np.float32]] = unrounded,
) -> QuantizedWeight:
    """Round a matrix to symmetric integers, one scale per output channel.

    Args:
        matrix: float32[in, out].
        largest: 127, or 63 where the CPU's products of U8 and S8 saturate (reduce_range).
        scale_type: Rounds the scales to the type that they will be stored in.
    """
    scale = np.abs(matrix).max(axis=0) / largest
    scale = scale_type(np.maximum(scale, SMALLEST_SCALE).astype(np.float32))
    values = np.clip(np.rint(matrix / scale), -largest, largest).astype(np.int8)
    return QuantizedWeight(values, scale)


def _quantize_node(
    model: onnx_ir.Model,
    names: Names,
    value: onnx_ir.Value,
    name: str,
    scale: np.float32,
    zero_point: NDArray[Any],
) -> onnx_ir.Node:
    """The QuantizeLinear of a value; the DequantizeLinear are its readers' own."""
    scale_value = add_constant(model, f"{name}.input_scale", np.array(scale, np.float32), names)
    zero_value = add_constant(model, f"{name}.input_zero_point", zero_point, names)
    node = onnx_ir.Node("", "QuantizeLinear", [value, scale_value, zero_value])
    _describe(node, names, name, value.shape, zero_value.dtype)
    return node


def _describe(
    node: onnx_ir.Node,
    names: Names,
    owner: str,
    shape: onnx_ir.Shape | None,
    dtype: onnx_ir.DataType | None,
    suffix: str = "",
) -> None:
    """Name a node after its owner, and the output after the node, and say what it is."""
    assert dtype is not None
    node.name = names.fresh(f"{owner}/{node.op_type}{suffix}")
    node.outputs[0].name = names.fresh(f"{node.name}:0")
    node.outputs[0].shape = shape
    node.outputs[0].type = onnx_ir.TensorType(dtype)


def quantize_linears(
    model: onnx_ir.Model,
    linears: list[Linear],
    weights: dict[str, QuantizedWeight],
    activations: dict[str, tuple[np.float32, int]],
    activation_format: Stored,
) -> None:
    """Put Q/DQ around Linears: on their input, per tensor, and on their weight, per output.

    Linears that read the same value with the same parameters share one QuantizeLinear.

    Args:
        model: Changed in place.
        linears: Those to quantize.
        weights: By the Linear's name.
        activations: Scale and zero point of each input, by the Linear's name.
        activation_format: Their type.
    """
    names = Names.of(model)
    shared: dict[tuple[onnx_ir.Value, float, int], onnx_ir.Value] = {}
    for linear in linears:
        scale, zero_point = activations[linear.name]
        key = (linear.input, float(scale), zero_point)
        if key not in shared:
            zero = np.array(zero_point, activation_format.dtype)
            node = _quantize_node(model, names, linear.input, linear.name, scale, zero)
            model.graph.insert_before(linear.node, node)
            shared[key] = node.outputs[0]
        _dequantize_input(model, names, linear.node, 0, linear.name, shared[key])
        _dequantize_weight(model, names, linear, weights[linear.name])


def quantize_input(
    model: onnx_ir.Model,
    reader: onnx_ir.Node,
    index: int,
    name: str,
    scale: np.float32,
    zero_point: NDArray[Any],
) -> None:
    """Put Q/DQ in front of one input of a node, named after `name`."""
    value = reader.inputs[index]
    assert value is not None
    names = Names.of(model)
    node = _quantize_node(model, names, value, name, scale, zero_point)
    model.graph.insert_before(reader, node)
    _dequantize_input(model, names, reader, index, name, node.outputs[0])


def _dequantize_input(
    model: onnx_ir.Model,
    names: Names,
    reader: onnx_ir.Node,
    index: int,
    name: str,
    quantized: onnx_ir.Value,
) -> None:
    producer = quantized.producer()
    assert producer is not None
    inputs = [quantized, *producer.inputs[1:]]
    node = onnx_ir.Node("", "DequantizeLinear", inputs)
    _describe(node, names, name, quantized.shape, onnx_ir.DataType.FLOAT)
    model.graph.insert_before(reader, node)
    reader.replace_input_with(index, node.outputs[0])


def _dequantize_weight(
    model: onnx_ir.Model, names: Names, linear: Linear, weight: QuantizedWeight
) -> None:
    values = weight.values.T if linear.transposed else weight.values
    axis = 0 if linear.transposed else 1
    stem = str(linear.weight.name)
    inputs = [
        add_constant(model, f"{stem}_quantized", np.ascontiguousarray(values), names),
        add_constant(model, f"{stem}_scale", weight.scale, names),
        add_constant(
            model,
            f"{stem}_zero_point",
            np.zeros(weight.scale.shape, weight.values.dtype),
            names,
        ),
    ]
    node = onnx_ir.Node("", "DequantizeLinear", inputs, [onnx_ir.AttrInt64("axis", axis)])
    _describe(node, names, linear.name, inputs[0].shape, onnx_ir.DataType.FLOAT, "_weight")
    model.graph.insert_before(linear.node, node)
    linear.node.replace_input_with(1, node.outputs[0])
    if not linear.weight.uses() and not linear.weight.is_graph_output():
        del model.graph.initializers[stem]
