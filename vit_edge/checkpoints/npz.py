"""Read .npz files one array at a time; pickled objects are refused.

NumPy's own NpzFile tells a shape only by reading the array, leaves a damaged file open, and advises
to allow pickles where there are some.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from vit_edge.checkpoints.tensors import LazyTensor, tensor_from_array
from vit_edge.checkpoints.text import one_line, reason, refuse_pointer
from vit_edge.errors import CheckpointError

# NumPy has no bfloat16: it is saved as two raw bytes.
_BFLOAT16 = np.dtype("V2")


def open_npz(path: Path) -> dict[str, LazyTensor]:
    """List the arrays of a .npz with their shapes; no data is read yet.

    Raises:
        CheckpointError: Missing, no .npz, damaged, or holding pickled objects.
    """
    refuse_pointer(path)
    with _sound(f"{path}: not a sound .npz file"), zipfile.ZipFile(path) as archive:
        return {
            name.removesuffix(".npy"): _lazy(path, archive, name) for name in archive.namelist()
        }


@contextmanager
def _sound(complaint: str) -> Iterator[None]:
    """Turn whatever a damaged or hostile archive makes zipfile and NumPy raise into one error.

    Beside BadZipFile that is NotImplementedError (compression), RuntimeError (encryption),
    EOFError, struct.error, zlib.error, MemoryError ...

    Raises:
        CheckpointError: Something was raised.
    """
    try:
        yield
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"{error.filename}: no such file") from None
    except Exception as error:
        raise CheckpointError(f"{complaint}: {reason(error)}") from None


def _lazy(path: Path, archive: zipfile.ZipFile, name: str) -> LazyTensor:
    with archive.open(name) as member:
        version = npy.read_magic(member)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read_header(member)
    if archive.getinfo(name).file_size < math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name} has less data than its shape {list(shape)} needs")
    if dtype != _BFLOAT16 and dtype.kind not in "fiub":
        raise CheckpointError(
            f"{path}: {one_line(name)}: refused: of dtype {dtype}, expected numbers"
        )

    def read() -> Tensor:
        with (
            _sound(f"{path}: {one_line(name)} is damaged"),
            zipfile.ZipFile(path) as again,
            again.open(name) as member,
        ):
            array = npy.read_array(member, allow_pickle=False)
        if array.dtype == _BFLOAT16:
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return tensor_from_array(array)

    return LazyTensor(shape, "bfloat16" if dtype == _BFLOAT16 else dtype.name, read)
