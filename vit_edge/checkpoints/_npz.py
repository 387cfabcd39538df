"""Read .npz files one array at a time; pickled objects are refused."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from vit_edge.checkpoints._tensors import LazyTensor
from vit_edge.errors import CheckpointError

# NumPy has no bfloat16: it is saved as two raw bytes.
_BFLOAT16 = np.dtype("V2")


def npz_names(path: Path) -> Collection[str]:
    """The names of the arrays; empty if this is no .npz."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except (OSError, zipfile.BadZipFile):
        return ()


def open_npz(path: Path) -> dict[str, LazyTensor]:
    """List the arrays of a .npz with their shapes; no data is read yet.

    Raises:
        CheckpointError: Missing, no .npz, damaged, or holding pickled objects.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                name.removesuffix(".npy"): _lazy(path, archive, name) for name in archive.namelist()
            }
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path}: not a sound .npz file: {error}") from None


def _lazy(path: Path, archive: zipfile.ZipFile, name: str) -> LazyTensor:
    with archive.open(name) as member:
        version = npy.read_magic(member)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read_header(member)
    if dtype != _BFLOAT16 and dtype.kind not in "fiub":
        raise CheckpointError(f"{path}: {name}: refused: of dtype {dtype}, expected numbers")

    def read() -> Tensor:
        try:
            with zipfile.ZipFile(path) as again, again.open(name) as member:
                array = npy.read_array(member, allow_pickle=False)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise CheckpointError(f"{path}: {name} is damaged: {error}") from None
        if array.dtype == _BFLOAT16:
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(np.ascontiguousarray(array))

    return LazyTensor(shape, "bfloat16" if dtype == _BFLOAT16 else dtype.name, read)
