"""Weights in blocks: 4 or 8 bits each, one scale (and zero point) for a run of input channels.

    w^[i, j] = (q[i, j] - zero[i // block, j]) * scale[i // block, j]

This is ONNX's DequantizeLinear with axis 0 and `block_size` (opset 21,
https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html). ONNX Runtime makes one MatMulNBits of
it and the MatMul behind it. The last block may be short.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import onnx_ir
from numpy.typing import NDArray

from vit_edge.graphs.building import add_constant
from vit_edge.graphs.names import Names
from vit_edge.quantize.formats.integers import SMALLEST_SCALE
from vit_edge.quantize.linears import Linear

BLOCK_SIZES = (16, 32, 64, 128, 256)  # what onnxruntime's MatMulNBits has kernels for
# Shares of a block's range that are tried. Below 1 the ends are clipped for finer steps; above it
# a symmetric block reaches its positive end, which is one level nearer than the negative one.
SHARES = tuple(round(1.1 - 0.025 * step, 3) for step in range(21))  # 1.1 to 0.6

_TYPES = {
    (4, True): onnx_ir.DataType.INT4,
    (4, False): onnx_ir.DataType.UINT4,
    (8, True): onnx_ir.DataType.INT8,
    (8, False): onnx_ir.DataType.UINT8,
}


@dataclass(frozen=True)
class Grid:
    """The levels of some blocks: one row for each block."""

    scale: NDArray[np.float32]  # [blocks, out]
    zero: NDArray[np.float32]  # [blocks, out], integers

    def of(self, block: int) -> Grid:
        """The levels of one block."""
        return Grid(self.scale[block, None], self.zero[block, None])


@dataclass(frozen=True)
class BlockFormat:
    """A format that weights are stored in."""

    bits: int  # 4 or 8
    symmetric: bool  # signed and without zero points
    block: int  # input channels that share a scale

    @property
    def low(self) -> float:
        """The smallest level."""
        return -(1 << self.bits - 1) if self.symmetric else 0

    @property
    def high(self) -> float:
        """The largest level."""
        return self.low + (1 << self.bits) - 1

    @property
    def dtype(self) -> onnx_ir.DataType:
        """The ONNX type of the levels."""
        return _TYPES[self.bits, self.symmetric]

    def dividing(self, rows: int) -> BlockFormat:
        """Take the largest block that cuts so many channels evenly; the same where none does.

        OpenVINO reads no other. ONNX Runtime pads a short last block.
        """
        even = [size for size in BLOCK_SIZES if size <= self.block and rows % size == 0]
        return dataclasses.replace(self, block=max(even, default=self.block))

    def starts(self, rows: int) -> range:
        """Return the first channel of each block of so many input channels."""
        return range(0, rows, self.block)

    def covering(self, weight: NDArray[np.float32], share: float = 1.0) -> Grid:
        """The levels that cover a share of each block's range.

        Args:
            weight: float32[in, out].
            share: Of the range.
        """
        starts = list(self.starts(len(weight)))
        low = np.minimum(np.minimum.reduceat(weight, starts), 0) * np.float32(share)
        high = np.maximum(np.maximum.reduceat(weight, starts), 0) * np.float32(share)
        if self.symmetric:
            scale = np.maximum(-low, high) / np.float32(-self.low)
        else:
            scale = (high - low) / np.float32(self.high - self.low)
        scale = np.maximum(scale, np.float32(SMALLEST_SCALE))
        zero = np.zeros_like(scale) if self.symmetric else np.rint(-low / scale)
        return Grid(scale, zero)

    def fitting(self, weight: NDArray[np.float32], importance: NDArray[np.float32]) -> Grid:
        """The levels that leave the least squared error in each block.

        Args:
            weight: float32[in, out].
            importance: float32[in], how much the square of each row's error counts.
        """
        starts = list(self.starts(len(weight)))
        best = self.covering(weight)
        least = np.full(best.scale.shape, np.inf, np.float32)
        counts = importance[:, None]
        for share in SHARES:
            grid = self.covering(weight, share)
            wrong = self.nearest(weight, grid)
            wrong -= weight
            wrong *= wrong
            wrong *= counts
            error = np.add.reduceat(wrong, starts)
            better = error < least
            least[better] = error[better]
            best.scale[better] = grid.scale[better]
            best.zero[better] = grid.zero[better]
        return best

    def nearest(self, weight: NDArray[np.float32], grid: Grid) -> NDArray[np.float32]:
        """Round float32[in, out] to the nearest levels of its blocks."""
        left = np.empty_like(weight)
        for block, start in enumerate(self.starts(len(weight))):
            part, levels_at = slice(start, start + self.block), grid.of(block)
            left[part] = self.dequantize(self.levels(weight[part], levels_at), levels_at)
        return left

    def levels(self, rows: NDArray[np.float32], grid: Grid) -> NDArray[np.float32]:
        """Round float32[n, out] of one block to its nearest levels, as integers."""
        q = rows / grid.scale
        np.rint(q, out=q)
        q += grid.zero
        return np.clip(q, self.low, self.high, out=q)

    def dequantize(self, levels: NDArray[np.float32], grid: Grid) -> NDArray[np.float32]:
        """Return the values that levels of one block stand for: float32[n, out]."""
        return (levels - grid.zero) * grid.scale


@dataclass(frozen=True)
class WholeFormat(BlockFormat):
    """One block for the whole input, and no level beyond the largest on either side."""

    largest: float

    @property
    def low(self) -> float:
        """The smallest level."""
        return -self.largest

    @property
    def high(self) -> float:
        """The largest level."""
        return self.largest

    def grid(self, scale: NDArray[np.float32]) -> Grid:
        """The levels of outputs with these scales: float32[out]."""
        return Grid(scale[None], np.zeros_like(scale)[None])


@dataclass(frozen=True)
class BlockWeight:
    """A weight matrix in blocks."""

    levels: NDArray[np.generic]  # [in, out], of the format's type
    grid: Grid
    kind: BlockFormat

    def dequantize(self) -> NDArray[np.float32]:
        """float32[in, out]."""
        rows = len(self.levels)
        zero, scale = (
            np.repeat(part, self.kind.block, axis=0)[:rows]
            for part in (self.grid.zero, self.grid.scale)
        )
        return (self.levels.astype(np.float32) - zero) * scale

    @property
    def stored_bytes(self) -> int:
        """Return its size in the file."""
        zero_bits = 0 if self.kind.symmetric else self.kind.bits
        bits = self.kind.bits * self.levels.size + (32 + zero_bits) * self.grid.scale.size
        return -(-bits // 8)


def rounded(weight: NDArray[np.float32], grid: Grid, kind: BlockFormat) -> BlockWeight:
    """Round each weight by itself to the nearest level."""
    levels = np.empty_like(weight)
    for block, start in enumerate(kind.starts(len(weight))):
        part = slice(start, start + kind.block)
        levels[part] = kind.levels(weight[part], grid.of(block))
    return BlockWeight(levels.astype(kind.dtype.numpy()), grid, kind)


def dequantize_in_graph(model: onnx_ir.Model, linear: Linear, weight: BlockWeight) -> None:
    """Replace a Linear's weight by its levels and a DequantizeLinear.

    The levels are laid out [in, out] whatever the layout was: ONNX Runtime fuses no other.
    """
    stem, names = str(linear.weight.name), Names.of(model)
    kind = weight.kind.dtype.numpy()
    inputs = [
        add_constant(model, f"{stem}_quantized", weight.levels, names),
        add_constant(model, f"{stem}_scale", weight.grid.scale, names),
    ]
    if not weight.kind.symmetric:
        zero = weight.grid.zero.astype(kind)
        inputs.append(add_constant(model, f"{stem}_zero_point", zero, names))
    attributes = [
        onnx_ir.AttrInt64("axis", 0),
        onnx_ir.AttrInt64("block_size", weight.kind.block),
    ]
    name = names.fresh(f"{linear.name}/DequantizeLinear_weight")
    node = onnx_ir.Node("", "DequantizeLinear", inputs, attributes, name=name)
    node.outputs[0].name = names.fresh(f"{name}:0")
    model.graph.insert_before(linear.node, node)
    linear.node.replace_input_with(1, node.outputs[0])
    linear.node.attributes.pop("transB", None)
    if not linear.weight.uses() and not linear.weight.is_graph_output():
        del model.graph.initializers[stem]
