"""Tensors of KServe's protocol: in JSON, or as bytes behind it."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_edge.errors import BackendError

TYPES = {"float32": "FP32", "uint8": "UINT8"}  # of a bundle's input
_READ = {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8"}  # of an output that we can judge


def input_of_pixels(
    name: str, pixels: NDArray[np.generic], *, binary: bool
) -> tuple[dict[str, Any], bytes]:
    """Describe a batch of pixels as a request's input, and give the bytes that follow the JSON."""
    tensor = {"name": name, "datatype": TYPES[pixels.dtype.name], "shape": list(pixels.shape)}
    if not binary:
        values = pixels.astype(np.float64) if pixels.dtype.kind == "f" else pixels
        return {**tensor, "data": values.ravel().tolist()}, b""
    data = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("<")).tobytes()
    return {**tensor, "parameters": {"binary_data_size": len(data)}}, data


def input_of_files(
    name: str, files: Sequence[bytes], rank: int, *, binary: bool
) -> tuple[dict[str, Any], bytes]:
    """Describe encoded files as a request's input, likewise.

    Without bytes behind the JSON they are base64, and said to be: what MLServer expects.
    """
    tensor = {"name": name, "datatype": "BYTES", "shape": [len(files), *[1] * (rank - 1)]}
    if not binary:
        text = [base64.b64encode(file).decode() for file in files]
        return {**tensor, "parameters": {"content_type": "base64"}, "data": text}, b""
    data = b"".join(struct.pack("<I", len(file)) + file for file in files)
    return {**tensor, "parameters": {"binary_data_size": len(data)}}, data


def outputs_from_reply(
    head: dict[str, Any], data: bytes, names: Sequence[str], where: str
) -> dict[str, NDArray[np.float32]]:
    """Read the outputs of a reply, in the server's shapes.

    Raises:
        BackendError: One is missing, of a type that is no float, or has another number of values
            than its shape.
    """
    outputs, start = {}, 0
    for output in head["outputs"]:
        try:
            name, datatype, shape = output["name"], output["datatype"], output["shape"]
            size = (output.get("parameters") or {}).get("binary_data_size")
            part = data[start : start + size] if size is not None else b""
            start += size or 0
            if name not in names:
                continue
            if datatype not in _READ:
                raise BackendError(f"{where}: output {name} is {datatype}, not FP32")
            values = (
                np.array(output["data"], np.float64)
                if size is None
                else np.frombuffer(part, _READ[datatype])
            )
            outputs[name] = values.astype(np.float32).reshape(shape)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise BackendError(f"{where}: an output cannot be read: {error}") from None
    if missing := [name for name in names if name not in outputs]:
        raise BackendError(f"{where}: the answer lacks {', '.join(missing)}")
    return outputs
