"""The Linears and attention products of a graph in FP8, and putting them there."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import ml_dtypes
import numpy as np
import onnx_ir
from numpy.typing import NDArray

from vit_edge.quantize import Progress
from vit_edge.quantize.formats.e4m3 import (
    E4M3,
    LARGEST,
    SOFTMAX_SCALE,
    WholeE4M3,
    activation_scale,
    covering_scale,
    quantized_weight,
    weight_scale,
)
from vit_edge.quantize.formats.half import rounded_scale
from vit_edge.quantize.formats.integers import QuantizedWeight, quantize_input, quantize_linears
from vit_edge.quantize.linears import Linear, block_linears
from vit_edge.quantize.rescale.attention import Products, attention_products
from vit_edge.quantize.rounding.gptq import by_output
from vit_edge.quantize.rounding.moments import Moment, Runs
from vit_edge.quantize.rounding.samples import Sample

ScaleMethod = Literal["largest", "search"]


@dataclass(frozen=True)
class RoundedLinear:
    """A Linear, rounded."""

    weight: QuantizedWeight
    input_scale: np.float32


@dataclass(frozen=True)
class Rounded:
    """The Linears and products of a graph, rounded."""

    linears: Mapping[str, RoundedLinear]
    products: Mapping[str, Mapping[str, np.float32]]  # name -> operand's name -> scale

    @property
    def names(self) -> list[str]:
        """List everything that can be quantized or kept in float."""
        return [*self.linears, *self.products]

    def scales(self, name: str) -> dict[str, float]:
        """The activation scales of a Linear or of the products of an attention."""
        scales = self.products.get(name) or {name: self.linears[name].input_scale}
        return {operand: float(scale) for operand, scale in scales.items()}

    def apply(self, model: onnx_ir.Model, names: Collection[str]) -> onnx_ir.Model:
        """A copy of the model with those of these names quantized."""
        copy = model.clone()
        for products in attention_products(copy) if self.products else []:
            if products.name in names:
                _quantize_products(copy, products, self.products[products.name])
        chosen = [linear for linear in block_linears(copy) if linear.name in names]
        weights = {linear.name: self.linears[linear.name].weight for linear in chosen}
        inputs = {linear.name: (self.linears[linear.name].input_scale, 0) for linear in chosen}
        quantize_linears(copy, chosen, weights, inputs, E4M3)
        return copy


def round_all(
    runs: Runs,
    products: Sequence[Products],
    samples: Mapping[onnx_ir.Value, Sample],
    method: ScaleMethod,
    progress: Progress,
) -> Rounded:
    """Round every Linear by itself, and choose the scales of every attention.

    Args:
        runs: The Linears of the blocks. Weights make up for each other where the moments of what
            enters are given; the others are rounded each by itself.
        products: Of the attentions that are to be quantized.
        samples: Of what enters them.
        method: Cover the largest number seen, or search the scale of least error.
        progress: Shown meanwhile.
    """
    rounded: dict[str, RoundedLinear] = {}
    for run, moments in runs:
        with progress("rounding", len(run), "Linear") as bar:
            for linear in run:
                moment = moments.get(str(linear.undivided.name))
                sample = samples[linear.input]
                rounded[linear.name] = _round_linear(linear, sample, moment, method)
                bar.update(1)
    scales = {}
    for attention in products:
        inputs = {o.name: _input_scale(samples[o.input], method) for o in attention.measured}
        scales[attention.name] = {**inputs, attention.p.name: _storable(SOFTMAX_SCALE)}
    return Rounded(rounded, scales)


def _round_linear(
    linear: Linear, sample: Sample, moment: Moment | None, method: ScaleMethod
) -> RoundedLinear:
    matrix = linear.matrix().astype(np.float32)
    importance = sample.mean_square if method == "search" else None
    scale = rounded_scale(weight_scale(matrix, importance))
    if moment is None:
        weight = quantized_weight(matrix, scale)
    else:
        weight = by_output(matrix, moment.second, scale, LARGEST, WholeE4M3)
    return RoundedLinear(weight, _input_scale(sample, method, matrix))


def _input_scale(
    sample: Sample, method: ScaleMethod, weight: NDArray[np.float32] | None = None
) -> np.float32:
    largest = float(max(-sample.low.min(), sample.high.max()))
    if method == "largest":
        return _storable(covering_scale(largest))
    return _storable(activation_scale(sample.rows, largest, weight))


def _storable(scale: np.float32) -> np.float32:
    """The next scale that FP16 surroundings can hold; it costs nothing in FP32 ones."""
    storable: np.float32 = np.float32(rounded_scale(np.array(scale)))
    return storable


def _quantize_products(
    model: onnx_ir.Model, products: Products, scales: Mapping[str, np.float32]
) -> None:
    zero = np.array(0, ml_dtypes.float8_e4m3fn)
    for operand in (products.q, products.k, products.p, products.v):
        scale = scales[operand.name]
        quantize_input(model, operand.node, operand.index, operand.name, scale, zero)
