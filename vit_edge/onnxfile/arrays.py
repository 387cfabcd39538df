"""The tensors of an ONNX file as NumPy arrays, and whether their values are numbers."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vit_edge.errors import ModelError
from vit_edge.onnxfile.checks import external_problems, refuse
from vit_edge.onnxfile.model import ModelFacts, TensorFacts, TypedData
from vit_edge.onnxfile.protobuf import Span

_CHUNK_BYTES = 4 << 20

_PLAIN = {
    "float16", "float32", "float64", "complex64", "complex128", "bool", "int8", "int16", "int32",
    "int64", "uint8", "uint16", "uint32", "uint64",
}  # fmt: skip

# dtype -> unsigned type of its bits, mask, value: (bits & mask) == value is NaN or infinity.
# IEEE 754 types by their exponent; the 8-bit ones as in onnx's "Float stored in 8 bits".
_NOT_FINITE = {
    "float16": ("<u2", 0x7C00, 0x7C00),
    "bfloat16": ("<u2", 0x7F80, 0x7F80),
    "float32": ("<u4", 0x7F80_0000, 0x7F80_0000),
    "float64": ("<u8", 0x7FF0_0000_0000_0000, 0x7FF0_0000_0000_0000),
    "complex64": ("<u4", 0x7F80_0000, 0x7F80_0000),
    "complex128": ("<u8", 0x7FF0_0000_0000_0000, 0x7FF0_0000_0000_0000),
    "float8e4m3fn": ("u1", 0x7F, 0x7F),
    "float8e4m3fnuz": ("u1", 0xFF, 0x80),
    "float8e5m2": ("u1", 0x7C, 0x7C),
    "float8e5m2fnuz": ("u1", 0xFF, 0x80),
    "float8e8m0": ("u1", 0xFF, 0xFF),
}

# Which typed field holds which dtype (onnx.proto, TensorProto): one value of the field per element.
_TYPED: dict[str, tuple[str, ...]] = {
    "float_data": ("float32",),
    "double_data": ("float64",),
    "int64_data": ("int64",),
    "uint64_data": ("uint32", "uint64"),
    "int32_data": ("int32", "int16", "int8", "uint16", "uint8", "bool", "float16", "bfloat16"),
}


def initializer_array(path: str | os.PathLike[str], tensor: TensorFacts) -> NDArray[Any]:
    """Map one tensor's values from its file.

    Args:
        path: The model file that `tensor` was read from.
        tensor: One of the facts' tensors.

    Returns:
        A read-only array of the tensor's shape and dtype: a view of the mapped file, or a small
        copy for values stored one field each, and for bfloat16, which becomes float32.

    Raises:
        ModelError: The external data is unsafe or short, or the dtype is none of NumPy's.
    """
    if tensor.dtype not in _PLAIN | {"bfloat16"}:
        raise ModelError(f"{path}: {tensor.where}: NumPy has no {tensor.dtype}")
    if tensor.typed is not None:
        flat = _typed_values(Path(path), tensor, tensor.typed)
    else:
        flat = _stored_values(Path(path), tensor)
    if tensor.dtype == "bfloat16":
        flat = (flat.astype("<u4") << np.uint32(16)).view("<f4")
    array = flat.reshape(tensor.dims)
    array.flags.writeable = False
    return array


def check_finite(path: str | os.PathLike[str], facts: ModelFacts) -> None:
    """Refuse weights that hold NaN or infinity, reading a few megabytes at a time.

    Raises:
        ModelError: With the name of every initializer concerned and how many values are bad.
    """
    problems = []
    for tensor in facts.initializers:
        if tensor.dtype in _NOT_FINITE:
            bad = _count_not_finite(Path(path), tensor)
            if bad:
                total = math.prod(tensor.dims)
                problems.append(f"{tensor.where}: {bad} of {total} values are not finite")
    refuse(
        path,
        problems,
        "NaN or infinity: the weights are damaged. Export again from a good checkpoint.",
    )


def _count_not_finite(path: Path, tensor: TensorFacts) -> int:
    if tensor.typed is not None:
        return int(np.count_nonzero(~np.isfinite(initializer_array(path, tensor))))
    kind, mask, value = _NOT_FINITE[tensor.dtype]
    bits = np.dtype(kind).type
    return sum(
        int(np.count_nonzero((chunk.view(kind) & bits(mask)) == bits(value)))
        for chunk in _chunks(*_stored(path, tensor))
    )


def _stored(path: Path, tensor: TensorFacts) -> tuple[Path, Span]:
    """The file and the bytes in it that are the tensor's values."""
    nbytes = tensor.nbytes
    assert nbytes is not None
    if tensor.external is None:
        if tensor.raw is None and nbytes:
            raise ModelError(f"{path}: {tensor.where} has no data")
        return path, tensor.raw or Span(0, 0)
    problems = list(external_problems(path, tensor))
    if problems:
        raise ModelError(f"{path}: {tensor.where}: " + "; ".join(problems))
    offset = int(dict(tensor.external.entries).get("offset", 0))
    return path.parent / tensor.external.location, Span(offset, nbytes)


def _chunks(file: Path, span: Span) -> Iterator[NDArray[np.uint8]]:
    """The bytes of the span, a few megabytes at a time; each chunk is gone with the next."""
    left = span.length
    buffer = memoryview(bytearray(min(_CHUNK_BYTES, left)))
    with file.open("rb") as stream:
        stream.seek(span.offset)
        while left:
            chunk = buffer[: min(_CHUNK_BYTES, left)]
            if stream.readinto(chunk) != len(chunk):
                raise ModelError(f"{file}: became shorter while it was read")
            left -= len(chunk)
            yield np.frombuffer(chunk, np.uint8)


def _stored_values(path: Path, tensor: TensorFacts) -> NDArray[Any]:
    file, span = _stored(path, tensor)
    dtype = np.dtype("<u2" if tensor.dtype == "bfloat16" else tensor.dtype).newbyteorder("<")
    if not span.length:
        return np.empty(0, dtype)
    mapped = np.memmap(file, np.uint8, "r", span.offset, (span.length,))
    return mapped.view(dtype)


def _typed_values(path: Path, tensor: TensorFacts, typed: TypedData) -> NDArray[Any]:
    """Decode float_data and its kin: packed fixed-size floats, or packed varints."""
    if tensor.dtype not in _TYPED[typed.field]:
        raise ModelError(f"{path}: {tensor.where}: {typed.field} cannot hold {tensor.dtype}")
    with path.open("rb") as stream:
        pieces = []
        for span in typed.spans:
            stream.seek(span.offset)
            pieces.append(stream.read(span.length))
    data, where = b"".join(pieces), f"{path}: {tensor.where}: {typed.field}"
    values: NDArray[Any]
    if typed.field in ("float_data", "double_data"):
        dtype = "<f4" if typed.field == "float_data" else "<f8"
        if len(data) % np.dtype(dtype).itemsize:
            raise ModelError(f"{where} is cut off")
        values = np.frombuffer(data, dtype)
    else:
        values = _from_varints(np.frombuffer(data, np.uint8), where)
        values = _narrowed(values, tensor.dtype, where)
    if values.size != math.prod(tensor.dims):
        raise ModelError(
            f"{where} has {values.size} values; {list(tensor.dims)} needs {math.prod(tensor.dims)}"
        )
    return values


def _from_varints(data: NDArray[np.uint8], where: str) -> NDArray[np.uint64]:
    """Decode packed varints, all at once: uint8[bytes] -> uint64[values]."""
    ends = np.flatnonzero(data < 0x80)
    if data.size and (not ends.size or ends[-1] != data.size - 1):
        raise ModelError(f"{where} is cut off")
    starts = np.concatenate([np.zeros(min(1, ends.size), np.intp), ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.size and lengths.max() > 10:
        raise ModelError(f"{where} has an integer of more than 64 bits")
    place = np.arange(data.size, dtype=np.uint64) - np.repeat(starts, lengths).astype(np.uint64)
    bits = (data & 0x7F).astype(np.uint64) << (np.uint64(7) * place)
    values: NDArray[np.uint64] = np.bitwise_or.reduceat(bits, starts) if starts.size else bits
    return values


def _narrowed(values: NDArray[np.uint64], dtype: str, where: str) -> NDArray[Any]:
    """Turn decoded varints into `dtype`; 16-bit floats are stored as their bits."""
    signed: Literal["int64", "uint64"] = "uint64" if dtype in ("uint32", "uint64") else "int64"
    wide = values.view(signed)
    target = "uint16" if dtype in ("float16", "bfloat16") else dtype
    limits = (0, 1) if target == "bool" else (np.iinfo(target).min, np.iinfo(target).max)
    if wide.size and (int(wide.min()) < limits[0] or int(wide.max()) > limits[1]):
        raise ModelError(f"{where} has values outside {target}")
    narrow = wide.astype(target)
    return narrow.view(np.float16) if dtype == "float16" else narrow
