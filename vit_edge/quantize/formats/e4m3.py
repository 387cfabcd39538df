"""E4M3, the 8-bit float of ONNX's FLOAT8E4M3FN and TensorRT's FP8, in NumPy.

A sign, 4 bits of exponent, 3 of the significand, no infinities (arXiv:2209.05433, Table 1). A
number keeps three bits behind its first one, whatever its size. So a scale decides where the range
ends and where powers of two fall, not how fine the steps are.

    q = e4m3(saturate(x / scale))        x^ = q scale

rounded half to even (https://onnx.ai/onnx/technical/float8.html); ONNX Runtime's CPU provider does
the same for every number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import ml_dtypes
import numpy as np
import onnx_ir
from numpy.typing import NDArray

from vit_edge.quantize.formats.blocks import Grid, WholeFormat
from vit_edge.quantize.formats.integers import SMALLEST_SCALE, QuantizedWeight

LARGEST = 448.0
SMALLEST_NORMAL = 2.0**-6
_SIGNIFICAND_BITS = 3
# Where the powers of two fall repeats with each doubling, so one octave of scales is tried: for
# weights around the one that covers them, for activations above it. Room for what the calibration
# images do not show costs nothing but subnormals, 2^-14 and less of the largest number.
WEIGHT_SHARES = tuple(2 ** (step / 8) for step in range(-4, 4))
ACTIVATION_SHARES = tuple(2 ** (1 + step / 8) for step in range(8))
SOFTMAX_SCALE = np.float32(1 / LARGEST)  # of numbers in 0 to 1: 1 is the largest


class Float8(NamedTuple):
    """A type to store numbers in."""

    dtype: str  # ml_dtypes' name


E4M3 = Float8("float8_e4m3fn")


def covering_scale(largest: float) -> np.float32:
    """The scale at which the largest |x| becomes the largest number."""
    scale: np.float32 = np.float32(max(largest / LARGEST, SMALLEST_SCALE))
    return scale


def fake(x: NDArray[np.float32], scale: np.float32 | NDArray[np.float32]) -> NDArray[np.float32]:
    """Quantize and dequantize float32 x.

    Adding 1.5 * 2^20 times a number's power of two leaves three bits behind its first one, and
    float32's own rounding is half to even.
    """
    q = x / scale
    np.clip(q, -LARGEST, LARGEST, out=q)
    power = np.maximum(np.abs(q), np.float32(SMALLEST_NORMAL)).view(np.int32) & 0x7F800000
    magic = (power + ((23 - _SIGNIFICAND_BITS) << 23) | 0x00400000).view(np.float32)
    q += magic
    q -= magic
    q *= scale
    return q


def quantized_weight(matrix: NDArray[np.float32], scale: NDArray[np.float32]) -> QuantizedWeight:
    """Round a matrix, float32[in, out], with one scale for each output, float32[out]."""
    values = np.clip(matrix / scale, -LARGEST, LARGEST).astype(ml_dtypes.float8_e4m3fn)
    return QuantizedWeight(values, scale)


@dataclass(frozen=True)
class WholeE4M3(WholeFormat):
    """One scale for each output, and the levels of E4M3 beneath it."""

    @property
    def dtype(self) -> onnx_ir.DataType:
        """The ONNX type of the levels."""
        return onnx_ir.DataType.FLOAT8E4M3FN

    def levels(self, rows: NDArray[np.float32], grid: Grid) -> NDArray[np.float32]:
        """Round float32[n, out] to its nearest levels, as numbers of E4M3."""
        return fake(rows / grid.scale, np.float32(1))


def weight_scale(
    matrix: NDArray[np.float32], importance: NDArray[np.float64] | None
) -> NDArray[np.float32]:
    """The scale of each output that leaves the least weighted squared error.

    Args:
        matrix: float32[in, out].
        importance: float64[in], the mean square of each input; None for the scales that just
            cover the largest weights.

    Returns:
        float32[out].
    """
    covering = np.maximum(np.abs(matrix).max(axis=0) / LARGEST, SMALLEST_SCALE)
    best: NDArray[np.float32] = covering.astype(np.float32)
    if importance is None:
        return best
    least = np.full(matrix.shape[1], np.inf)
    for share in WEIGHT_SHARES:
        scale = (covering * share).astype(np.float32)
        error = importance @ np.square(matrix - fake(matrix, scale), dtype=np.float64)
        better = error < least
        least[better], best[better] = error[better], scale[better]
    return best


def activation_scale(
    rows: NDArray[np.float32], largest: float, weight: NDArray[np.float32] | None = None
) -> np.float32:
    """The scale that leaves the least squared error.

    Args:
        rows: float32[rows, in], a sample.
        largest: The largest |x| of all.
        weight: float32[in, out], if the error of what a Linear makes of the rows counts.
    """
    best, least = covering_scale(largest), np.inf
    for share in ACTIVATION_SHARES:
        scale = np.float32(covering_scale(largest) * share)
        wrong = fake(rows, scale) - rows
        if weight is not None:
            wrong = wrong @ weight
        error = float(np.square(wrong, dtype=np.float64).sum())
        if error < least:
            best, least = scale, error
    return best
