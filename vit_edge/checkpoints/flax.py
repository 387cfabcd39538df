"""Read flax's .msgpack files one array at a time; the names become torch's.

flax.serialization.to_bytes writes maps in maps. An array is an extension of type 1 around a message
of its own: shape, name of the dtype, bytes. One of more than 1 GiB is a map of pieces. Nothing here
can run code, and nothing is taken into memory that the file does not hold.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from vit_edge.checkpoints.tensors import LazyTensor
from vit_edge.checkpoints.text import one_line, reason, refuse_pointer
from vit_edge.errors import CheckpointError

_DTYPES = {
    name: getattr(torch, name)
    for name in (
        *("float64", "float32", "float16", "bfloat16"),
        *("int64", "int32", "int16", "int8", "uint8", "bool"),
    )
}
_NDARRAY, _SCALAR = 1, 3  # flax.serialization._MsgpackExtType
_CHUNKED = "__msgpack_chunked_array__"
_DEEPEST = 64
_MOST_VALUES = 2**20  # a ViT of 1,000 blocks has some 16,000 arrays
_MOST_AXES = 8

_NUMBERS = {
    0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q",
    0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q",
}  # fmt: skip
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
# What is written with a size of 1, 2 or 4 bytes in front: its first code.
_SIZED = {
    code + step: (kind, 1 << (step + first))
    for kind, code, first, codes in (
        ("bytes", 0xC4, 0, 3),
        ("extension", 0xC7, 0, 3),
        ("text", 0xD9, 0, 3),
        ("list", 0xDC, 1, 2),
        ("map", 0xDE, 1, 2),
    )
    for step in range(codes)
}


class _Span(NamedTuple):
    """Bytes of the file; `kind` is None, or the type of an extension."""

    start: int
    size: int
    kind: int | None = None


class _Array(NamedTuple):
    """An array of the file, in one piece or several."""

    shape: tuple[int, ...]
    dtype: str
    pieces: tuple[_Span, ...]


def is_flax(head: bytes) -> bool:
    """True if a file's first bytes open a map whose first key is a text, as flax writes it."""
    keys = head[1:] if b"\x81" <= head[:1] <= b"\x8f" else head[3:] if head[:1] == b"\xde" else b""
    return b"\xa1" <= keys[:1] <= b"\xbf" or b"\xd9" <= keys[:1] <= b"\xdb"


def open_flax(path: Path) -> dict[str, LazyTensor]:
    """List the arrays of a file with their shapes; no data is read yet.

    Raises:
        CheckpointError: Missing, truncated, damaged, or holding something else than arrays.
    """
    refuse_pointer(path)
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            message = _Message(data, 0, len(data))
            tree = message.whole()
            if not isinstance(tree, dict):
                raise ValueError(f"a map was expected, not {type(tree).__name__}")
            arrays = list(_arrays(message, tree, ()))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: truncated, or not a sound file of flax's: {reason(error)}. "
            "Download or save it again."
        ) from None
    tensors: dict[str, LazyTensor] = {}
    for keys, array in arrays:
        name, axes = torch_name(".".join(keys)), None
        if keys[-1] == "kernel":  # [in, out], and [rows, columns, in, out] of a convolution
            axes = {2: (1, 0), 4: (3, 2, 0, 1)}.get(len(array.shape))
        if name in tensors:
            raise CheckpointError(f"{path}: two arrays are called {one_line(name)!r}")
        shape = tuple(array.shape[axis] for axis in axes) if axes else array.shape
        tensors[name] = LazyTensor(shape, array.dtype, partial(_read, path, array, axes))
    return tensors


def torch_name(name: str) -> str:
    """Return a parameter's name in torch: vit/layernorm/scale is vit.layernorm.weight."""
    *modules, leaf = name.replace("/", ".").split(".")
    return ".".join([*modules, "weight" if leaf in ("kernel", "scale", "embedding") else leaf])


def _read(path: Path, array: _Array, axes: tuple[int, ...] | None) -> Tensor:
    """Read one array; it lies in the file as it did when its shape was read."""
    data = bytearray()
    try:
        with path.open("rb") as file:
            for piece in array.pieces:
                file.seek(piece.start)
                data += file.read(piece.size)
    except OSError as error:
        raise CheckpointError(f"{path}: {reason(error)}") from None
    if len(data) != sum(piece.size for piece in array.pieces):
        raise CheckpointError(f"{path}: changed while it was read; it is shorter now")
    kind = _DTYPES[array.dtype]
    flat = torch.frombuffer(data, dtype=kind) if data else torch.empty(0, dtype=kind)
    tensor = flat.reshape(array.shape)
    return tensor.permute(axes) if axes else tensor


def _arrays(
    message: _Message, tree: dict[str, object], above: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], _Array]]:
    """Walk the maps down to the arrays."""
    for key, value in tree.items():
        keys = (*above, key)
        if isinstance(value, dict) and _CHUNKED not in value:
            yield from _arrays(message, value, keys)
        elif value is not None:
            try:
                is_number = isinstance(value, (int, float))  # such as the step of a training
                yield keys, _Array((), "number", ()) if is_number else _array(message, value)
            except ValueError as error:
                raise ValueError(f"{one_line('.'.join(keys))}: {error}") from None


def _array(message: _Message, value: object) -> _Array:
    """Read an array's own message, or those of its pieces."""
    if isinstance(value, dict):
        shape = _shape(list(_numbered(value.get("shape"))))
        pieces = [_array(message, piece) for piece in _numbered(value.get("chunks"))]
        dtypes = {piece.dtype for piece in pieces}
        if len(dtypes) != 1:
            raise ValueError("a chunked array needs pieces of one dtype")
        spans = tuple(span for piece in pieces for span in piece.pieces)
        return _checked(shape, dtypes.pop(), spans)
    if not isinstance(value, _Span) or value.kind not in (_NDARRAY, _SCALAR):
        raise ValueError("an array was expected")
    inner = message.inside(value).whole()
    if not isinstance(inner, list) or len(inner) != 3:
        raise ValueError("an array is a shape, a dtype and its bytes")
    sizes, dtype, buffer = inner
    if not isinstance(dtype, str) or not isinstance(buffer, _Span) or buffer.kind is not None:
        raise ValueError("an array is a shape, a dtype and its bytes")
    return _checked(_shape(sizes), dtype, (buffer,))


def _checked(shape: tuple[int, ...], dtype: str, pieces: tuple[_Span, ...]) -> _Array:
    """Hold a shape against the bytes that are there."""
    if dtype not in _DTYPES:
        raise ValueError(f"dtype {one_line(dtype)[:40]!r}; expected one of {', '.join(_DTYPES)}")
    needed, given = math.prod(shape) * _DTYPES[dtype].itemsize, sum(p.size for p in pieces)
    if needed != given:
        raise ValueError(f"shape {list(shape)} of {dtype} needs {needed} bytes, there are {given}")
    return _Array(shape, dtype, pieces)


def _shape(sizes: object) -> tuple[int, ...]:
    if not isinstance(sizes, list) or len(sizes) > _MOST_AXES:
        raise ValueError("a shape is a list of a few sizes")
    if not all(type(size) is int and 0 <= size < 2**40 for size in sizes):
        raise ValueError("a shape is a list of sizes that are not negative")
    return tuple(sizes)


def _numbered(values: object) -> Iterator[object]:
    """A tuple as flax writes it: a map of "0", "1", ..."""
    if not isinstance(values, dict) or set(values) != {str(i) for i in range(len(values))}:
        raise ValueError('a chunked array has a shape and chunks, numbered "0", "1", ...')
    return (values[str(index)] for index in range(len(values)))


class _Message:
    """One msgpack message: `data[at:end]`. Every damage is a ValueError.

    Bytes and extensions are spans of the file, not read.
    """

    def __init__(self, data: mmap.mmap, at: int, end: int) -> None:
        self.data, self.at, self.end = data, at, end
        self.values = 0

    def inside(self, span: _Span) -> _Message:
        """The message that an extension holds."""
        return _Message(self.data, span.start, span.start + span.size)

    def whole(self) -> object:
        """The one value of the message."""
        value = self.value(0)
        if self.at != self.end:
            raise ValueError(f"{self.end - self.at} bytes are left over at byte {self.at}")
        return value

    def value(self, depth: int) -> object:
        """The next value."""
        self.values += 1
        if depth > _DEEPEST or self.values > _MOST_VALUES:
            raise ValueError(f"more than {_DEEPEST} maps in maps, or {_MOST_VALUES} values")
        code = self.integer(1)
        if code <= 0x7F or code >= 0xE0:
            return code if code <= 0x7F else code - 0x100
        if code in _CONSTANTS:
            return _CONSTANTS[code]
        if code in _NUMBERS:
            form = _NUMBERS[code]
            return struct.unpack(form, self.take(struct.calcsize(form)))[0]
        if code <= 0x8F:
            kind, size = "map", code & 0x0F
        elif code <= 0x9F:
            kind, size = "list", code & 0x0F
        elif code <= 0xBF:
            kind, size = "text", code & 0x1F
        elif 0xD4 <= code <= 0xD8:
            kind, size = "extension", 1 << (code - 0xD4)
        elif code in _SIZED:
            kind, width = _SIZED[code]
            size = self.integer(width)
        else:
            raise ValueError(f"code {code:#x} at byte {self.at - 1} is none of msgpack's")
        return self.sized(kind, size, depth)

    def sized(self, kind: str, size: int, depth: int) -> object:
        """A value of so many bytes, or of so many values."""
        if kind == "map":
            self.check(2 * size)
            return self.mapping(size, depth)
        if kind == "list":
            self.check(size)
            return [self.value(depth + 1) for _ in range(size)]
        if kind == "text":
            return self.take(size).decode()
        extension = self.integer(1) if kind == "extension" else None
        span = _Span(self.at, size, extension)
        self.check(size)
        self.at += size
        return span

    def mapping(self, size: int, depth: int) -> dict[str, object]:
        """A map whose keys are texts."""
        pairs: dict[str, object] = {}
        for _ in range(size):
            key = self.value(depth + 1)
            if not isinstance(key, str) or key in pairs:
                raise ValueError(f"a map at byte {self.at} has a key twice, or one that is no text")
            pairs[key] = self.value(depth + 1)
        return pairs

    def integer(self, width: int) -> int:
        return int.from_bytes(self.take(width), "big")

    def take(self, size: int) -> bytes:
        self.check(size)
        self.at += size
        return self.data[self.at - size : self.at]

    def check(self, size: int) -> None:
        """Refuse a size that the message cannot hold: each value takes a byte at least."""
        if size > self.end - self.at:
            raise ValueError(f"{size} bytes or values at byte {self.at}, {self.end - self.at} left")
