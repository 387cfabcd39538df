"""Read .bin, .pt and .pth files: torch pickles, opened so that they cannot run code."""

from __future__ import annotations

import logging
import pickle
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from vit_edge.checkpoints._tensors import LazyTensor
from vit_edge.errors import CheckpointError

log = logging.getLogger(__name__)

_SAFE_TORCH = (2, 10)  # before it, weights_only could be tricked into running code
_NESTS = ("state_dict", "model", "module")


def open_pickled(path: Path) -> dict[str, LazyTensor]:
    """Open a torch pickle with weights_only, mapped from disk where its format allows.

    Raises:
        CheckpointError: torch is too old to do this safely; the file is damaged, holds anything
            but tensors, or wants to run code.
    """
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < _SAFE_TORCH:
        raise CheckpointError(
            f"{path}: pickled weights are only read with torch >= 2.10, this is "
            f"{torch.__version__}. Use the .safetensors file, or: pip install -U torch"
        )
    mapped = zipfile.is_zipfile(path)
    if not mapped:
        log.info("%s: in torch's format from before 1.6, which is read whole", path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(
            f"{path}: refused: no plain dictionary of tensors, or damaged ({reason[0][:300]}). "
            "Only tensors are loaded, never code; save the state_dict alone, as .safetensors."
        ) from None
    return {name: _lazy(tensor) for name, tensor in _state_dict(loaded, path).items()}


def _state_dict(loaded: object, path: Path) -> dict[str, Tensor]:
    """Find the tensors, below `state_dict`, `model` or `module` if they are nested."""
    while isinstance(loaded, dict):
        nest = next((n for n in _NESTS if isinstance(loaded.get(n), dict)), None)
        if nest is None:
            break
        others = sorted(str(name) for name in loaded if name != nest)
        if others:
            log.info("%s: reading %r, not %s", path, nest, ", ".join(others))
        loaded = loaded[nest]
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path}: holds a {type(loaded).__name__}, expected a state_dict")
    strange = sorted(
        f"{name!r}: {type(value).__name__}"
        for name, value in loaded.items()
        if not (isinstance(name, str) and isinstance(value, Tensor))
    )
    if strange:
        raise CheckpointError(
            f"{path}: expected only named tensors, found {', '.join(strange[:20])}"
        )
    return loaded


def _lazy(tensor: Tensor) -> LazyTensor:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return LazyTensor(tuple(tensor.shape), dtype, lambda: tensor.detach())
