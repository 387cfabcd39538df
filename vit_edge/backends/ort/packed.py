"""Optimized models of ONNX Runtime with prepacked weights: reading and rewriting where weights lie.

Such a model holds each packed weight twice in its data file: as the initializer, and as the blob
`prepacked_N` that its external data names, `key|offset;length;checksum|...`
(onnxruntime/core/framework/prepacked_weights_container.cc). When it is loaded the runtime packs the
initializer all the same, only to make the key, a hash of the result; it then drops what it packed
and maps the blob (SessionState::PrepackConstantInitializedTensors). So whatever initializer has
that key will do, if no other has it: here all of them are zeros but for a single byte, at another
place in each. They share one hole of the file, so it is half as large, and so is what is read.

From onnxruntime 1.32 on this fails, and there is no other way: what is packed at a start is
compared with the blob to the byte, no option leaves that out, and neither form is a part of the
other. Without the blobs the file would be as small, but the packed weights in memory that cannot be
given back. So there the file keeps both, of which one is mapped and used: the process holds as much
memory as before (vit-cifar10 in float32: 5.3 MB with 1.31 and with 1.32).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

from vit_edge.errors import ModelError
from vit_edge.onnxfile import read_model
from vit_edge.onnxfile.protobuf import Field, Reader
from vit_edge.onnxfile.writer import INITIALIZER, field, with_graph_fields

WINDOW = 64  # bytes from one stand-in to the next: a multiple of any element
ALIGNMENT = 4096  # of a page, as the runtime writes them: each blob is mapped by itself
PACKED = "prepacked_"

# onnx.proto: of TensorProto, and of the pairs in it
_EXTERNAL_DATA, _KEY, _VALUE = 13, 1, 2

External = dict[str, str]  # the pairs of a tensor's external_data


class Blob(NamedTuple):
    """A packed weight in the data file."""

    offset: int
    length: int
    checksum: str


def external_data(model: Path) -> dict[str, External]:
    """Where each external initializer of a model lies, by its name.

    Raises:
        ModelError: The file is damaged.
    """
    return {
        tensor.name: dict(tensor.external.entries)
        for tensor in read_model(model).initializers
        if tensor.external is not None
    }


def with_external_data(model: Path, changed: Mapping[str, External]) -> bytes:
    """The bytes of a model, with the external data of some initializers replaced."""

    def initializer(reader: Reader, item: Field) -> bytes | None:
        if item.number != INITIALIZER:
            return None
        name = reader.message("Tensor", item.start, item.end).get("name", "")
        if name not in changed:
            return None
        return field(INITIALIZER, _tensor(reader, item, changed[name]))

    return with_graph_fields(model, initializer)


def blobs(external: External) -> dict[str, tuple[str, list[Blob]]]:
    """The packed forms of an initializer: prepacked_N -> its key and its blobs.

    Raises:
        ModelError: Not as ONNX Runtime writes it.
    """
    packed = {}
    for name, text in external.items():
        if name.startswith(PACKED):
            key, *parts = text.split("|")
            fields = [part.split(";") for part in parts]
            if not parts or any(len(f) != 3 or not (f[0] + f[1]).isdigit() for f in fields):
                raise ModelError(f"packed weights described as {text[:80]!r}")
            packed[name] = key, [Blob(int(f[0]), int(f[1]), f[2]) for f in fields]
    return packed


def with_stand_ins(external: Mapping[str, External], file: Path) -> dict[str, External]:
    """Stand-ins for the initializers that are packed, not packed themselves yet.

    Args:
        external: As `external_data` gives it.
        file: Where to write them, beside the model.
    """
    packed = {name: e for name, e in external.items() if blobs(e)}
    with file.open("wb") as write:
        places = _write_stand_ins(write, packed)
    return {
        name: {"location": file.name, "offset": str(places[name]), "length": e["length"]}
        for name, e in packed.items()
    }


def compacted(
    external: Mapping[str, External], keys: Mapping[str, External], source: Path, target: Path
) -> dict[str, External]:
    """Write a data file with stand-ins for packed initializers.

    Args:
        external: Of the model with its weights.
        keys: Of the same model with stand-ins, after ONNX Runtime packed those.
        source: The data file of the first.
        target: The new data file; to be given the name of the first.

    Returns:
        What the external data becomes.

    Raises:
        ModelError: The two models do not pack the same initializers, or stand-ins share a key.
    """
    changed = {name: dict(old) for name, old in external.items()}
    seen: set[str] = set()
    with source.open("rb") as read, target.open("wb") as write:
        for name, old in external.items():
            packed, stand_in = blobs(old), blobs(keys.get(name, {}))
            own_keys = {key for key, _ in stand_in.values()}
            if packed.keys() != stand_in.keys() or own_keys & seen:
                raise ModelError(f"{name} and its stand-in are not packed alike")
            seen |= own_keys
            if not packed:
                place = _copied(read, write, int(old["offset"]), int(old["length"]))
                changed[name]["offset"] = str(place)
            for form, (_, pieces) in packed.items():
                parts = [
                    f"{_copied(read, write, offset, length)};{length};{checksum}"
                    for offset, length, checksum in pieces
                ]
                changed[name][form] = "|".join([stand_in[form][0], *parts])
        packed_ones = {name: old for name, old in external.items() if blobs(old)}
        for name, place in _write_stand_ins(write, packed_ones).items():
            changed[name]["offset"] = str(place)
        os.fsync(write.fileno())
    return changed


def _write_stand_ins(file: BinaryIO, packed: Mapping[str, External]) -> dict[str, int]:
    """End a file with zeros and a byte that is none, and give each initializer its part of it.

    The first starts WINDOW before that byte, the next 2 WINDOW, and so on.
    """
    start = _aligned(file)
    marker = start + WINDOW * len(packed)
    places = {name: marker - WINDOW * (index + 1) for index, name in enumerate(packed)}
    file.seek(marker)
    file.write(b"\1")
    ends = [place + int(packed[name]["length"]) for name, place in places.items()]
    file.truncate(max(ends, default=start))
    file.flush()
    return places


def _copied(source: BinaryIO, target: BinaryIO, offset: int, length: int) -> int:
    """Copy a piece to the next aligned place of the target, and return that place."""
    place = _aligned(target)
    target.seek(place)
    source.seek(offset)
    left = length
    while left:
        chunk = source.read(min(left, 1 << 22))
        if not chunk:
            raise ModelError(f"{source.name} ends before byte {offset + length}, inside a weight")
        target.write(chunk)
        left -= len(chunk)
    return place


def _aligned(file: BinaryIO) -> int:
    return -(-file.tell() // ALIGNMENT) * ALIGNMENT


def _tensor(reader: Reader, tensor: Field, external: External) -> bytes:
    """A TensorProto with other external data."""
    fields = [
        reader.data[item.at : item.end]
        for item in reader.fields(tensor.start, tensor.end)
        if item.number != _EXTERNAL_DATA
    ]
    fields += [
        field(_EXTERNAL_DATA, field(_KEY, key) + field(_VALUE, value))
        for key, value in external.items()
    ]
    return b"".join(fields)
