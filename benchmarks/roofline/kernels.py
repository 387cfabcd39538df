"""ONNX files of one product, written without the onnx package. Field numbers: onnx.proto.

What a runtime makes of them are the kernels that it runs a ViT's Linears with.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vit_edge.onnxfile.protobuf import encoded_bytes, encoded_int

INPUT, OUTPUT = "x", "y"
_OPSET, _IR_VERSION = 13, 7  # the first with QuantizeLinear per channel; any runtime reads them
# TensorProto.DataType
_DATA_TYPES = {np.dtype(np.float32): 1, np.dtype(np.uint8): 2, np.dtype(np.int8): 3}
_LEVELS = 255  # of 8 bits


def product(m: int, k: int, n: int) -> bytes:
    """Multiply: y = x @ w, x float32[m, k], w float32[k, n] a constant."""
    random = np.random.default_rng(0)
    weights = random.random((k, n), np.float32)
    return _model([_node("MatMul", [INPUT, "w"], OUTPUT)], {"w": weights}, (m, k), (m, n))


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
        _node("QuantizeLinear", [INPUT, "x_scale", "x_zero"], "x_q"),
        _node("DequantizeLinear", ["x_q", "x_scale", "x_zero"], "x_dq"),
        _node("DequantizeLinear", ["w", "w_scale", "w_zero"], "w_dq", axis=1),
        _node("MatMul", ["x_dq", "w_dq"], OUTPUT),
    ]
    return _model(nodes, constants, (m, k), (m, n))


def largest(rows: int, columns: int) -> bytes:
    """Reduce: y = the largest of each row of x, float32[rows, columns]; everything is read once."""
    node = _node("ReduceMax", [INPUT], OUTPUT, axes=(1,))
    return _model([node], {}, (rows, columns), (rows, 1))


def _model(
    nodes: Sequence[bytes],
    constants: dict[str, NDArray[np.generic]],
    given: tuple[int, int],
    answer: tuple[int, int],
) -> bytes:
    """A ModelProto with one float32 input and one float32 output of these shapes."""
    graph = b"".join(encoded_bytes(1, node) for node in nodes) + encoded_bytes(2, b"kernel")
    graph += b"".join(encoded_bytes(5, _tensor(name, a)) for name, a in constants.items())
    graph += encoded_bytes(11, _value(INPUT, given)) + encoded_bytes(12, _value(OUTPUT, answer))
    return (
        encoded_int(1, _IR_VERSION)
        + encoded_bytes(7, graph)
        + encoded_bytes(8, encoded_int(2, _OPSET))
    )


def _node(
    operator: str,
    inputs: Sequence[str],
    output: str,
    axis: int | None = None,
    axes: Sequence[int] = (),
) -> bytes:
    """A NodeProto with one output."""
    found = b"".join(encoded_bytes(1, name.encode()) for name in inputs)
    found += encoded_bytes(2, output.encode()) + encoded_bytes(4, operator.encode())
    if axis is not None:
        integer = 2  # AttributeProto.AttributeType.INT
        attribute = encoded_bytes(1, b"axis") + encoded_int(3, axis) + encoded_int(20, integer)
        found += encoded_bytes(5, attribute)
    if axes:
        integers = 7  # AttributeProto.AttributeType.INTS
        attribute = encoded_bytes(1, b"axes") + encoded_int(20, integers)
        attribute += b"".join(encoded_int(8, value) for value in axes)
        found += encoded_bytes(5, attribute)
    return found


def _tensor(name: str, array: NDArray[np.generic]) -> bytes:
    """A TensorProto with its data inside."""
    dimensions = b"".join(encoded_int(1, size) for size in array.shape)
    data_type = encoded_int(2, _DATA_TYPES[array.dtype])
    data = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes()
    return dimensions + data_type + encoded_bytes(8, name.encode()) + encoded_bytes(9, data)


def _value(name: str, shape: tuple[int, int]) -> bytes:
    """A ValueInfoProto of float32."""
    sizes = b"".join(encoded_bytes(1, encoded_int(1, size)) for size in shape)
    tensor = encoded_bytes(1, encoded_int(1, 1) + encoded_bytes(2, sizes))
    return encoded_bytes(1, name.encode()) + encoded_bytes(2, tensor)
