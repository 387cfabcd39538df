"""Write an ONNX model without ever holding its weights twice.

onnx.save builds the whole file in memory once or twice more. Here only the graph is serialized by
protobuf; the weights are streamed behind it from where they are. The wire format is that of
https://protobuf.dev/programming-guides/encoding, the fields those of onnx.proto.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
import onnx_ir

# protobuf refuses messages of 2 GiB and more; some room for the graph itself
SINGLE_FILE_LIMIT_BYTES = 2**31 - 2**24
ALIGNMENT_BYTES = 4096  # a page, so that a runtime can map each tensor
EXTERNAL_NAME = "model.onnx.data"
EXTERNAL_MINIMUM_BYTES = 1024  # shapes and the like stay inline: shape inference reads them

_MODEL_GRAPH = b"\x3a"  # ModelProto.graph, field 7, length-delimited
_GRAPH_INITIALIZER = b"\x2a"  # GraphProto.initializer, field 5
_TENSOR_RAW_DATA = b"\x4a"  # TensorProto.raw_data, field 9


def write_model(
    model: onnx_ir.Model, folder: Path, *, single_file_limit: int = SINGLE_FILE_LIMIT_BYTES
) -> list[str]:
    """Write `folder`/model.onnx, with its weights in model.onnx.data if they exceed the limit.

    Args:
        model: Left as it is.
        folder: An existing folder.
        single_file_limit: Bytes of weights from which on they go into a file of their own.

    Returns:
        The names of the files written.
    """
    initializers = dict(model.graph.initializers)
    tensors = {name: _value(value) for name, value in initializers.items()}
    model.graph.initializers.clear()
    proto = onnx_ir.to_proto(model)
    model.graph.initializers.update(initializers)
    graph = proto.graph.SerializeToString()
    proto.ClearField("graph")
    external = sum(tensor.nbytes for tensor in tensors.values()) > single_file_limit
    fields = []
    offset = 0
    for name, tensor in tensors.items():
        if external and not _stays_inline(tensor):
            fields.append(_Field.external(name, tensor, offset))
            offset += _aligned(tensor.nbytes)
        else:
            fields.append(_Field.inline(name, tensor))
    with (folder / "model.onnx").open("wb") as file:
        file.write(proto.SerializeToString())
        file.write(_MODEL_GRAPH + _varint(len(graph) + sum(field.size for field in fields)) + graph)
        for field in fields:
            file.write(field.head)
            if field.body is not None:
                _write_array(file, field.body)
    if not external:
        return ["model.onnx"]
    with (folder / EXTERNAL_NAME).open("wb") as file:
        for tensor in tensors.values():
            if not _stays_inline(tensor):
                _write_array(file, tensor)
                file.write(bytes(_aligned(tensor.nbytes) - tensor.nbytes))
    return ["model.onnx", EXTERNAL_NAME]


def skeleton(model: onnx_ir.Model) -> onnx.ModelProto:
    """The model with its weights declared as inputs: all that the checker needs, at no size.

    Small integer constants (the shapes of Reshape, Split, ...) stay, because shape inference reads
    them. Large ones (the indices of Gather) may lie in a file.
    """
    weights = {
        name: value
        for name, value in model.graph.initializers.items()
        if _value(value).dtype == onnx_ir.DataType.FLOAT
        or (_value(value).dtype == onnx_ir.DataType.INT64 and not _stays_inline(_value(value)))
    }
    for name in weights:
        del model.graph.initializers[name]
    proto: onnx.ModelProto = onnx_ir.to_proto(model)
    model.graph.initializers.update(weights)
    for name, value in weights.items():
        tensor = _value(value)
        info = onnx.helper.make_tensor_value_info(name, int(tensor.dtype), tensor.shape.numpy())
        proto.graph.input.append(info)
    return proto


def _value(initializer: onnx_ir.Value) -> onnx_ir.TensorProtocol:
    if initializer.const_value is None:
        raise AssertionError(f"initializer {initializer.name} has no value")
    return initializer.const_value


def _stays_inline(tensor: onnx_ir.TensorProtocol) -> bool:
    return tensor.nbytes < EXTERNAL_MINIMUM_BYTES


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


@dataclass(frozen=True)
class _Field:
    """GraphProto.initializer: the bytes in front of a tensor's data, and the data if inline."""

    head: bytes
    body: onnx_ir.TensorProtocol | None

    @property
    def size(self) -> int:
        return len(self.head) + (0 if self.body is None else self.body.nbytes)

    @classmethod
    def inline(cls, name: str, tensor: onnx_ir.TensorProtocol) -> _Field:
        tensor_head = _tensor_proto(name, tensor).SerializeToString()
        tensor_head += _TENSOR_RAW_DATA + _varint(tensor.nbytes)
        length = _varint(len(tensor_head) + tensor.nbytes)
        return cls(_GRAPH_INITIALIZER + length + tensor_head, tensor)

    @classmethod
    def external(cls, name: str, tensor: onnx_ir.TensorProtocol, offset: int) -> _Field:
        proto = _tensor_proto(name, tensor)
        proto.data_location = onnx.TensorProto.EXTERNAL
        proto.external_data.add(key="location", value=EXTERNAL_NAME)
        proto.external_data.add(key="offset", value=str(offset))
        proto.external_data.add(key="length", value=str(tensor.nbytes))
        data = proto.SerializeToString()
        return cls(_GRAPH_INITIALIZER + _varint(len(data)) + data, None)


def _tensor_proto(name: str, tensor: onnx_ir.TensorProtocol) -> onnx.TensorProto:
    dims = tensor.shape.numpy()
    return onnx.TensorProto(name=name, data_type=int(tensor.dtype), dims=dims)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def _write_array(file: BinaryIO, tensor: onnx_ir.TensorProtocol) -> None:
    if tensor.dtype.bitwidth < 8:  # NumPy holds one value a byte, the file two or four
        file.write(tensor.tobytes())
        return
    array = np.ascontiguousarray(tensor.numpy())
    file.write(array.reshape(-1).view(np.uint8).data)
