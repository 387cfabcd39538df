"""ONNX files of one product, written without the onnx package.

What a runtime makes of them are the kernels that it runs a ViT's Linears with.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vit_edge.onnxfile.writer import model, node

INPUT, OUTPUT = "x", "y"
_LEVELS = 255  # of 8 bits


def product(m: int, k: int, n: int) -> bytes:
    """Multiply: y = x @ w, x float32[m, k], w float32[k, n] a constant."""
    random = np.random.default_rng(0)
    weights = random.random((k, n), np.float32)
    return model(
        [node("MatMul", [INPUT, "w"], OUTPUT)], {INPUT: (m, k)}, {OUTPUT: (m, n)}, {"w": weights}
    )


def quantized_product(m: int, k: int, n: int) -> bytes:
    """The same with Q/DQ on both factors, as vit_edge.export's int8 graphs have it.

    Activations uint8, in steps of 1/255, weights int8 with a scale for each column; zero points are
    explicit (without, ONNX Runtime does not fuse: https://github.com/microsoft/onnxruntime,
    qdq_transformer).
    """
    random = np.random.default_rng(0)
    constants: dict[str, NDArray[np.generic]] = {
        "w": random.integers(-127, 128, (k, n), np.int8),
        "w_scale": np.full(n, 1 / _LEVELS, np.float32),
        "w_zero": np.zeros(n, np.int8),
        "x_scale": np.asarray(1 / _LEVELS, np.float32),
        "x_zero": np.asarray(0, np.uint8),
    }
    nodes = [
        node("QuantizeLinear", [INPUT, "x_scale", "x_zero"], "x_q"),
        node("DequantizeLinear", ["x_q", "x_scale", "x_zero"], "x_dq"),
        node("DequantizeLinear", ["w", "w_scale", "w_zero"], "w_dq", axis=1),
        node("MatMul", ["x_dq", "w_dq"], OUTPUT),
    ]
    return model(nodes, {INPUT: (m, k)}, {OUTPUT: (m, n)}, constants)


def largest(rows: int, columns: int) -> bytes:
    """Reduce: y = the largest of each row of x, float32[rows, columns]; everything is read once."""
    maximum = node("ReduceMax", [INPUT], OUTPUT, axes=(1,))
    return model([maximum], {INPUT: (rows, columns)}, {OUTPUT: (rows, 1)}, {})
