"""Arrays that live in files without names."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def mapped(scratch: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
    """An array in a file that has no name: paged in and out as needed, gone with the process."""
    with tempfile.TemporaryFile(dir=scratch) as file:  # stays mapped, has no name to clean up
        size = math.prod(shape) * np.dtype(dtype).itemsize
        os.posix_fallocate(file.fileno(), 0, size)  # a full disk says so here, not as SIGBUS later
        return np.memmap(file, dtype, "w+", shape=shape)
