"""Read .safetensors files one tensor at a time, without mapping or copying the rest.

The format (https://github.com/huggingface/safetensors#format): 8 bytes header length N, little
endian; N bytes of JSON, name -> {dtype, shape, data_offsets}; then the data, without holes.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vit_edge.checkpoints.tensors import LazyTensor
from vit_edge.errors import CheckpointError

_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library

# NumPy has no bfloat16: its bits are read as int16 and viewed by torch.
_DTYPES: dict[str, tuple[type[np.generic], torch.dtype]] = {
    "F64": (np.float64, torch.float64),
    "F32": (np.float32, torch.float32),
    "F16": (np.float16, torch.float16),
    "BF16": (np.int16, torch.bfloat16),
}
_BYTES = {name: np.dtype(numpy_type).itemsize for name, (numpy_type, _) in _DTYPES.items()}
# Seen beside weights (counters, masks) or not readable here: sized, so that the header is checked.
_BYTES |= {"I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1}
_BYTES |= {"BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}


def open_safetensors(path: Path) -> dict[str, LazyTensor]:
    """Check the header of a .safetensors file and list its tensors; no data is read yet.

    Raises:
        CheckpointError: The file is truncated, or its header is no safetensors header: bad JSON,
            unknown dtypes, offsets that overlap, leave holes or contradict a shape.
    """
    header, data_start = _read_header(path)
    header.pop("__metadata__", None)
    problems: list[str] = []
    spans: list[tuple[int, int, str]] = []
    tensors: dict[str, LazyTensor] = {}
    for name, entry in header.items():
        problem = _entry_problem(entry)
        if problem:
            problems.append(f"{name}: {problem}")
            continue
        begin, end = entry["data_offsets"]
        spans.append((begin, end, name))
        tensors[name] = _lazy(path, entry["dtype"], tuple(entry["shape"]), data_start + begin)
    if not problems:
        problems = _span_problems(sorted(spans), path.stat().st_size - data_start)
    if problems:
        raise CheckpointError(
            f"{path}: not a sound safetensors file:\n  " + "\n  ".join(problems) + "\n"
            "Download or save it again."
        )
    return tensors


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The JSON header, and where the data starts."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(_MAX_HEADER_BYTES, size - 8):
            raise CheckpointError(
                f"{path}: truncated, or not a safetensors file: {size} bytes, of which the header "
                f"claims {length}. Download or save it again."
            )
        text = file.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the safetensors header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the safetensors header is no JSON object")
    return header, 8 + length


def _entry_problem(entry: object) -> str | None:
    """What is wrong with one entry of the header, looked at alone."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        return "expected exactly dtype, shape and data_offsets"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in _BYTES:
        return f"unknown dtype {dtype!r}"
    for what, numbers in (("shape", shape), ("data_offsets", offsets)):
        if not isinstance(numbers, list) or any(type(n) is not int or n < 0 for n in numbers):
            return f"{what} {numbers!r} is no list of sizes"
    if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * _BYTES[dtype]:
        return f"data_offsets {offsets} do not hold {dtype} {shape}"
    return None


def _span_problems(spans: list[tuple[int, int, str]], data_bytes: int) -> list[str]:
    """Overlaps, holes and a wrong end; `spans` are sorted (begin, end, name)."""
    problems, at = [], 0
    for begin, end, name in spans:
        if begin != at:
            kind = "overlaps the tensor before it" if begin < at else "leaves a hole before it"
            problems.append(f"{name}: starts at byte {begin}, expected {at}: {kind}")
        at = max(at, end)
    if at != data_bytes:
        kind = "truncated" if at > data_bytes else "trailing bytes"
        problems.append(f"the tensors end at byte {at}, the data at {data_bytes}: {kind}")
    return problems


def _lazy(path: Path, dtype: str, shape: tuple[int, ...], offset: int) -> LazyTensor:
    def read() -> Tensor:
        if dtype not in _DTYPES:
            raise CheckpointError(
                f"{path}: weights of dtype {dtype} cannot be read; expected one of "
                f"{', '.join(_DTYPES)}"
            )
        numpy_type, torch_type = _DTYPES[dtype]
        array = np.fromfile(path, numpy_type, count=math.prod(shape), offset=offset)
        return torch.from_numpy(array).view(torch_type).reshape(shape)

    name = str(_DTYPES[dtype][1]).removeprefix("torch.") if dtype in _DTYPES else dtype
    return LazyTensor(shape, name, read)
