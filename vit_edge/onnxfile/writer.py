"""ONNX messages as bytes, written without the package onnx. Field numbers: onnx.proto.

A message is its fields, one behind the other: `field(1, "name") + field(2, 3)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vit_edge.onnxfile.protobuf import BYTES, VARINT, Field, Reader
from vit_edge.onnxfile.schema import ELEMENT_TYPES, SCHEMA

GRAPH = 7  # of ModelProto
NODE, INITIALIZER, INPUT, OUTPUT = 1, 5, 11, 12  # of GraphProto
FLOAT = 1  # TensorProto.DataType

# What any runtime reads: the first opset with QuantizeLinear per channel, and its IR version.
_OPSET, _IR_VERSION = 13, 7
_INT_ATTRIBUTE, _INTS_ATTRIBUTE = 2, 7  # AttributeProto.AttributeType
_DATA_TYPES = {name: number for number, (name, _) in ELEMENT_TYPES.items()}

Shape = Sequence[int | str]  # a name stands for any size


def field(number: int, value: int | str | bytes) -> bytes:
    """One field: a number of at least 0, or a text, bytes or message with its length."""
    if isinstance(value, int):
        return _varint(number << 3 | VARINT) + _varint(value)
    payload = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | BYTES) + _varint(len(payload)) + payload


def model(
    nodes: Sequence[bytes],
    inputs: Mapping[str, Shape],
    outputs: Mapping[str, Shape],
    constants: Mapping[str, NDArray[np.generic]],
) -> bytes:
    """A ModelProto: opset 13, float32 inputs and outputs.

    Args:
        nodes: As `node` gives them, in the order of computation.
        inputs: By name.
        outputs: By name.
        constants: The initializers, by name.
    """
    fields = [field(NODE, item) for item in nodes]
    fields.append(field(2, "graph"))
    fields += [field(INITIALIZER, tensor(name, array)) for name, array in constants.items()]
    fields += [field(INPUT, value(name, shape)) for name, shape in inputs.items()]
    fields += [field(OUTPUT, value(name, shape)) for name, shape in outputs.items()]
    return field(1, _IR_VERSION) + field(GRAPH, b"".join(fields)) + field(8, field(2, _OPSET))


def node(
    op_type: str, inputs: Sequence[str], output: str, **attributes: int | Sequence[int]
) -> bytes:
    """A NodeProto with one output, and whole numbers or lists of them for attributes."""
    fields = [field(1, name) for name in inputs]
    fields += [field(2, output), field(3, f"{op_type}/{output}"), field(4, op_type)]
    for name, given in attributes.items():
        if isinstance(given, int):
            content = field(3, given) + field(20, _INT_ATTRIBUTE)
        else:
            content = b"".join(field(8, item) for item in given) + field(20, _INTS_ATTRIBUTE)
        fields.append(field(5, field(1, name) + content))
    return b"".join(fields)


def value(name: str, shape: Shape) -> bytes:
    """A ValueInfoProto of a float32 tensor."""
    # TensorShapeProto.dim = 1: dim_value = 1, dim_param = 2
    sizes = b"".join(field(1, field(1 if isinstance(size, int) else 2, size)) for size in shape)
    return field(1, name) + field(2, field(1, field(1, FLOAT) + field(2, sizes)))


def tensor(name: str, array: NDArray[np.generic]) -> bytes:
    """A TensorProto with its data inside."""
    sizes = b"".join(field(1, size) for size in array.shape)
    data = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    return sizes + field(2, _DATA_TYPES[array.dtype.name]) + field(8, name) + field(9, data)


def with_graph_fields(
    path: Path, replaced: Callable[[Reader, Field], bytes | None], added: bytes = b""
) -> bytes:
    """Copy a model field by field, with other fields in its graph.

    Args:
        path: The .onnx file.
        replaced: Returns the bytes that take the place of a field, or None to keep it.
        added: More fields for the end of the graph.

    Raises:
        ModelError: Damaged.
    """
    content = path.read_bytes()
    reader = Reader(content, path, SCHEMA)

    def copied(item: Field) -> bytes:
        changed = replaced(reader, item)
        return content[item.at : item.end] if changed is None else changed

    parts = []
    for item in reader.fields(0, len(content)):
        part = content[item.at : item.end]
        if item.number == GRAPH:
            graph = [copied(below) for below in reader.fields(item.start, item.end)]
            part = field(GRAPH, b"".join([*graph, added]))
        parts.append(part)
    return b"".join(parts)


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])
