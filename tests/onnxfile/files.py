"""ONNX files put together field by field, so that they can be wrong in every way."""

from __future__ import annotations

import struct
from pathlib import Path


def varint(value: int) -> bytes:
    """An integer in protobuf's base 128; negative ones take ten bytes."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | str | bytes) -> bytes:
    """One field: an integer as varint, text and bytes with their length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def pair(key: str, value: str) -> bytes:
    return field(1, key) + field(2, value)


def tensor(
    name: str,
    values: bytes = b"",
    *,
    dims: tuple[int, ...] = (2,),
    dtype: int = 1,
    more: bytes = b"",
) -> bytes:
    """A TensorProto; float32 unless another DataType is given."""
    raw = field(9, values) if values else b""
    return b"".join(field(1, d) for d in dims) + field(2, dtype) + field(8, name) + raw + more


def external(*entries: tuple[str, str], name: str = "weight") -> bytes:
    """A float32[2] TensorProto whose data is elsewhere."""
    pairs = b"".join(field(13, pair(key, value)) for key, value in entries)
    return tensor(name, more=pairs + field(14, 1))


def attribute(name: str, number: int, value: bytes) -> bytes:
    return field(1, name) + field(number, value)


def node(op_type: str, *attributes: bytes, domain: str = "", name: str = "n") -> bytes:
    more = b"".join(field(5, item) for item in attributes)
    return field(3, name) + field(4, op_type) + (field(7, domain) if domain else b"") + more


def value(name: str, *dims: int | str, dtype: int = 1) -> bytes:
    shape = b"".join(
        field(1, field(1, dim) if isinstance(dim, int) else field(2, dim)) for dim in dims
    )
    return field(1, name) + field(2, field(1, field(1, dtype) + field(2, shape)))


def graph(
    *, nodes: tuple[bytes, ...] = (), initializers: tuple[bytes, ...] = (), more: bytes = b""
) -> bytes:
    return (
        b"".join(field(1, item) for item in nodes)
        + field(2, "g")
        + b"".join(field(5, item) for item in initializers)
        + field(11, value("pixel_values", "batch", 3, 4, 4))
        + field(12, value("logits", "batch", 10))
        + more
    )


def model(graph_bytes: bytes, *, ir: int = 10, opset: int = 20, more: bytes = b"") -> bytes:
    return (
        field(1, ir)
        + field(8, field(2, opset))
        + field(7, graph_bytes)
        + field(14, pair("labels", "cat,dog"))
        + more
    )


def small_model() -> bytes:
    """A sound model with something of everything the walk knows."""
    inner = graph(nodes=(node("Relu"),), initializers=(tensor("deep", struct.pack("<2f", 5, 6)),))
    sparse = field(1, tensor("sparse", struct.pack("<2f", 7, 8))) + field(
        2, tensor("where", struct.pack("<2q", 0, 1), dtype=7)
    )
    function = field(1, "Twice") + field(7, node("Add", attribute("t", 5, tensor("f", b"\0" * 8))))
    function += field(10, "local") + field(9, field(2, 20))
    return model(
        graph(
            nodes=(
                node("MatMul"),
                node("Twice", domain="local"),
                node("If", attribute("then_branch", 6, inner)),
                node("Constant", attribute("value", 5, tensor("c", struct.pack("<2f", 3, 4)))),
            ),
            initializers=(
                tensor("weight", struct.pack("<2f", 1, 2)),
                tensor("typed", more=field(4, struct.pack("<2f", 9, 10))),
            ),
            more=field(15, sparse),
        ),
        more=field(8, field(1, "local") + field(2, 1)) + field(25, function),
    )


def write(folder: Path, data: bytes, name: str = "model.onnx") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path
