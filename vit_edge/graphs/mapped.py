"""Arrays that live in files: without names, or those of a model's weights."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
from numpy.typing import NDArray


def mapped(scratch: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
    """An array in a file that has no name: paged in and out as needed, gone with the process."""
    with tempfile.TemporaryFile(dir=scratch) as file:  # stays mapped, has no name to clean up
        size = math.prod(shape) * np.dtype(dtype).itemsize
        os.posix_fallocate(file.fileno(), 0, size)  # a full disk says so here, not as SIGBUS later
        return np.memmap(file, dtype, "w+", shape=shape)


def load_mapped(path: Path) -> onnx_ir.Model:
    """Load a model with its weights mapped, each file once.

    onnx_ir maps the file again for every tensor, and each mapping holds a file descriptor: a model
    and some variants of it would need more than a process may have.
    """
    model = onnx_ir.load(path)
    mappings: dict[str, mmap.mmap] = {}
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if not isinstance(tensor, onnx_ir.ExternalTensor) or not tensor.nbytes:
            continue
        if tensor.path not in mappings:
            tensor.numpy()  # it also checks that the file lies where it may
            assert tensor.raw is not None
            mappings[tensor.path] = tensor.raw
        elif tensor.dtype.bitwidth >= 8:
            tensor.raw = mappings[tensor.path]
            kind = np.dtype(tensor.dtype.numpy()).newbyteorder("<")
            flat = np.frombuffer(tensor.raw, kind, tensor.size, tensor.offset or 0)
            tensor._array = flat.reshape(tensor.shape.numpy())
    return model
