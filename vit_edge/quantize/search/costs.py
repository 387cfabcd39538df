"""The time and the bytes that a Linear in float takes more than one in INT8.

A Linear that sees every token is bound by its products, one that sees the class token alone by
reading its weights: float32 in a last block takes a sixth of the time that it takes elsewhere. Its
bytes are the same everywhere, and they are what INT8 is chosen for on small devices. Half of the
cost is time, half is bytes, each beside the largest. Only ratios of the numbers below matter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from vit_edge.quantize.linears import Linear

# ViT-B's GEMMs in ONNX Runtime on two cores with AVX512-VNNI: 0.46 TFLOP/s and 1.6 TOP/s.
FLOAT_PRODUCTS_PER_S = 0.23e12
INT8_PRODUCTS_PER_S = 0.8e12
WEIGHT_BYTES_PER_S = 20e9  # assumed: one channel of memory
MORE_BYTES = 3  # of float32 over int8, for each weight


def float_costs(linears: Sequence[Linear]) -> dict[str, float]:
    """The cost of each Linear in float, in (0, 1]: 1 is the costliest of them."""
    seconds = [_seconds(linear) for linear in linears]
    weights = [linear.matrix().size for linear in linears]
    slowest, widest = max(seconds, default=1.0), max(weights, default=1)
    costs = [time / slowest + size / widest for time, size in zip(seconds, weights, strict=True)]
    largest = max(costs, default=1.0)
    return {linear.name: cost / largest for linear, cost in zip(linears, costs, strict=True)}


def _seconds(linear: Linear) -> float:
    weights = linear.matrix().size
    products = weights * _tokens(linear)
    arithmetic = products / FLOAT_PRODUCTS_PER_S - products / INT8_PRODUCTS_PER_S
    return arithmetic + weights * MORE_BYTES / WEIGHT_BYTES_PER_S


def _tokens(linear: Linear) -> int:
    """Return how many rows of one image enter; where the graph does not say, those of ViT-B."""
    sizes = list(linear.input.shape or [None, None, None])[1:-1]
    known = [size for size in sizes if isinstance(size, int)]
    return math.prod(known) if len(known) == len(sizes) else 197
