"""Read .safetensors files one tensor at a time, by the library of the same name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from vit_edge.checkpoints.tensors import LazyTensor
from vit_edge.checkpoints.text import reason, refuse_pointer
from vit_edge.errors import CheckpointError

# The types that weights may have, as the format calls them and as torch does.
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def open_safetensors(path: Path) -> dict[str, LazyTensor]:
    """Check the header of a .safetensors file and list its tensors; no data is read yet.

    Raises:
        CheckpointError: The file is truncated, or its header is no safetensors header: bad JSON,
            unknown dtypes, offsets that overlap, leave holes or contradict a shape.
    """
    refuse_pointer(path)
    with _opened(path) as file:
        names = file.keys()
        slices = [file.get_slice(name) for name in names]
        return {
            name: _lazy_tensor(path, name, tuple(part.get_shape()), part.get_dtype())
            for name, part in zip(names, slices, strict=True)
        }


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Map the file: a `safe_open`, whose methods have no types. It has checked the whole header."""
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: truncated, or not a sound safetensors file: {reason(error)}. "
            "Download or save it again."
        ) from None


def _lazy_tensor(path: Path, name: str, shape: tuple[int, ...], dtype: str) -> LazyTensor:
    return LazyTensor(shape, _DTYPES.get(dtype, dtype), partial(_read, path, name, dtype))


def _read(path: Path, name: str, dtype: str) -> Tensor:
    """Read one tensor; the file is mapped anew, so that pages of others take no memory."""
    if dtype not in _DTYPES:
        raise CheckpointError(
            f"{path}: weights of dtype {dtype} cannot be read; expected one of {', '.join(_DTYPES)}"
        )
    with _opened(path) as file:
        tensor: Tensor = file.get_tensor(name)
        return tensor
