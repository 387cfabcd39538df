"""A model with more outputs, or with some of its tensors given instead of computed.

Both are for looking into a graph on a device without onnx: the wire format is copied field by
field, and nothing but what is named changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vit_edge.errors import ModelError
from vit_edge.onnxfile.protobuf import Entry, Field, Reader, encoded_bytes, encoded_int

FLOAT = 1  # TensorProto.DataType
_INT_ATTRIBUTE = 2  # AttributeProto.AttributeType

# onnx.proto: numbers of the fields that are read or written here.
_GRAPH = 7  # of ModelProto
_NODE, _INITIALIZER, _OUTPUT = 1, 5, 12  # of GraphProto
_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _OP_TYPE, _ATTRIBUTE = 1, 2, 3, 4, 5  # of NodeProto
_SCHEMA = {
    "model": {_GRAPH: Entry("graph", "graph")},
    "graph": {_NODE: Entry("nodes", "node", many=True)},
    "node": {_NODE_OUTPUT: Entry("outputs", "text", many=True)},
}


def tensor_names(model: Path) -> list[str]:
    """What the nodes of the graph compute, in their order; not inside subgraphs.

    Raises:
        ModelError: Damaged.
    """
    content = model.read_bytes()
    read = Reader(content, model, _SCHEMA).message("model", 0, len(content))
    return [name for node in read["graph"]["nodes"] for name in node["outputs"] if name]


def with_outputs(model: Path, outputs: Mapping[str, Sequence[str | int]]) -> bytes:
    """The model with more outputs: tensors of the graph, cast to float32.

    Args:
        model: The .onnx file.
        outputs: The tensor's name -> its dimensions; a name stands for any size. The output of
            `X` is called `tap/X`.

    Raises:
        ModelError: Damaged, or without such a tensor.
    """
    _check_known(model, outputs)
    nodes = [_node("Cast", [name], tap_name(name), to=FLOAT) for name in outputs]
    values = [_value(tap_name(name), shape) for name, shape in outputs.items()]
    added = b"".join(encoded_bytes(_NODE, node) for node in nodes)
    added += b"".join(encoded_bytes(_OUTPUT, value) for value in values)
    return _with_graph(model, {}, added)


def with_values(model: Path, values: Mapping[str, NDArray[np.float32]]) -> bytes:
    """The model with given values in place of tensors that it computes.

    Args:
        model: The .onnx file.
        values: The tensor's name -> float32 of its shape; cast to the type it had.

    Raises:
        ModelError: Damaged, or without such a tensor.
    """
    _check_known(model, values)
    tensors = [_tensor(_given(name), value) for name, value in values.items()]
    replaced = {name: _node("CastLike", [_given(name), _computed(name)], name) for name in values}
    added = b"".join(encoded_bytes(_INITIALIZER, tensor) for tensor in tensors)
    return _with_graph(model, replaced, added)


def tap_name(tensor: str) -> str:
    """What `with_outputs` calls the output of a tensor."""
    return f"tap/{tensor}"


def _given(tensor: str) -> str:
    return f"given/{tensor}"


def _computed(tensor: str) -> str:
    return f"computed/{tensor}"


def _check_known(model: Path, names: Mapping[str, object]) -> None:
    unknown = sorted(set(names) - set(tensor_names(model)))
    if unknown:
        raise ModelError(f"{model}: computes no {', '.join(unknown)}")


def _with_graph(model: Path, replaced: Mapping[str, bytes], added: bytes) -> bytes:
    """The model with nodes behind those that compute what is replaced, and more at the end."""
    content = model.read_bytes()
    reader = Reader(content, model, _SCHEMA)
    parts = []
    for item in reader.fields(0, len(content)):
        if item.number != _GRAPH:
            parts.append(content[item.at : item.end])
            continue
        graph = [
            _rewritten(reader, field, replaced) for field in reader.fields(item.start, item.end)
        ]
        parts.append(encoded_bytes(_GRAPH, b"".join([*graph, added])))
    return b"".join(parts)


def _rewritten(reader: Reader, item: Field, replaced: Mapping[str, bytes]) -> bytes:
    """A field of the graph again; of a node that computes what is replaced, that under its name."""
    whole = bytes(reader.data[item.at : item.end])
    if item.number != _NODE or not replaced:
        return whole
    outputs = reader.message("node", item.start, item.end)["outputs"]
    ours = [name for name in outputs if name in replaced]
    if not ours:
        return whole
    parts = []
    for field in reader.fields(item.start, item.end):
        part = bytes(reader.data[field.at : field.end])
        if field.number == _NODE_OUTPUT:
            name = bytes(reader.data[field.start : field.end]).decode()
            part = encoded_bytes(_NODE_OUTPUT, (_computed(name) if name in ours else name).encode())
        parts.append(part)
    after = (encoded_bytes(_NODE, replaced[name]) for name in ours)
    return encoded_bytes(_NODE, b"".join(parts)) + b"".join(after)


def _node(op_type: str, inputs: Sequence[str], output: str, **attributes: int) -> bytes:
    """A NodeProto with whole numbers for attributes."""
    parts = [encoded_bytes(_NODE_INPUT, name.encode()) for name in inputs]
    parts.append(encoded_bytes(_NODE_OUTPUT, output.encode()))
    parts.append(encoded_bytes(_NODE_NAME, f"{op_type}/{output}".encode()))
    parts.append(encoded_bytes(_OP_TYPE, op_type.encode()))
    for name, value in attributes.items():  # AttributeProto: name = 1, i = 3, type = 20
        text = encoded_bytes(1, name.encode()) + encoded_int(3, value)
        parts.append(encoded_bytes(_ATTRIBUTE, text + encoded_int(20, _INT_ATTRIBUTE)))
    return b"".join(parts)


def _value(name: str, shape: Sequence[str | int]) -> bytes:
    """A ValueInfoProto of a float32 tensor: name = 1, type = 2."""
    dimensions = b"".join(  # TensorShapeProto.dim = 1: dim_value = 1, dim_param = 2
        encoded_bytes(1, encoded_int(1, d) if isinstance(d, int) else encoded_bytes(2, d.encode()))
        for d in shape
    )
    tensor = encoded_int(1, FLOAT) + encoded_bytes(2, dimensions)  # elem_type, shape
    return encoded_bytes(1, name.encode()) + encoded_bytes(2, encoded_bytes(1, tensor))


def _tensor(name: str, value: NDArray[np.float32]) -> bytes:
    """A TensorProto of float32: dims = 1, data_type = 2, name = 8, raw_data = 9."""
    data = np.ascontiguousarray(value, dtype="<f4")
    dims = b"".join(encoded_int(1, size) for size in data.shape)
    return (
        dims
        + encoded_int(2, FLOAT)
        + encoded_bytes(8, name.encode())
        + encoded_bytes(9, data.tobytes())
    )
