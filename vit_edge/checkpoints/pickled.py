"""Read .bin, .pt and .pth files: torch pickles, opened so that they cannot run code."""

from __future__ import annotations

import argparse
import logging
import math
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from vit_edge.checkpoints.tensors import LazyTensor
from vit_edge.checkpoints.text import one_line, reason
from vit_edge.errors import CheckpointError

log = logging.getLogger(__name__)

_SAFE_TORCH = (2, 10)  # before it, weights_only could be tricked into running code
_NESTS = ("state_dict", "model", "module")
_DTYPES = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
_DTYPES |= {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool}
_AVERAGED = "state_dict_ema"  # of timm's training


Say = Callable[..., None]  # a method of a logger: a message, and what to put into it


def open_pickled(path: Path, say: Say = log.info) -> dict[str, LazyTensor]:
    """Open a torch pickle with weights_only, mapped from disk where its format allows.

    argparse.Namespace is let through: the checkpoints of timm's training hold their arguments as
    one. It is a bag of attributes and runs no code.

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
    try:
        mapped = zipfile.is_zipfile(path)
        if not mapped:
            say("%s: in torch's format from before 1.6, which is read whole", path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except Exception as error:  # damaged bytes surface as any kind: AssertionError, TypeError ...
        raise CheckpointError(
            f"{path}: refused: no plain dictionary of tensors, or damaged ({reason(error)}). "
            "Only tensors are loaded, never code; save the state_dict alone, as .safetensors."
        ) from None
    return {name: _lazy(tensor) for name, tensor in _state_dict(loaded, path, say).items()}


def _state_dict(loaded: object, path: Path, say: Say) -> dict[str, Tensor]:
    """Find the tensors, below `state_dict`, `model` or `module` if they are nested."""
    while isinstance(loaded, dict):
        nest = next((n for n in _NESTS if isinstance(loaded.get(n), dict)), None)
        if nest is None:
            break
        others = sorted(one_line(str(name)) for name in loaded if name != nest)
        if others:
            say("%s: reading %r, not %s", path, nest, ", ".join(others))
        if _AVERAGED in loaded:
            say("%s: its averaged weights, %r, are there and not used", path, _AVERAGED)
        loaded = loaded[nest]
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path}: holds a {type(loaded).__name__}, expected a state_dict")
    strange = sorted(
        f"{name!r}: {_kind(value)}"
        for name, value in loaded.items()
        if not isinstance(name, str) or _kind(value) != "tensor"
    )
    if strange:
        raise CheckpointError(
            f"{path}: expected only named tensors, found {', '.join(strange[:20])}"
        )
    return loaded


def _kind(value: object) -> str:
    """Name what this is: a tensor that lies whole in the file, or something else."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    if value.layout != torch.strided or value.dtype not in _DTYPES:
        return f"tensor of {value.dtype}, {value.layout}"
    if value.device.type != "cpu":
        return f"tensor on {value.device}, without data"
    if value.untyped_storage().nbytes() < math.prod(value.shape) * value.element_size():
        return f"tensor {list(value.shape)} with less data than that"
    return "tensor"


def _lazy(tensor: Tensor) -> LazyTensor:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return LazyTensor(tuple(tensor.shape), dtype, lambda: tensor.detach())
