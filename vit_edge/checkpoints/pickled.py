"""Read torch's pickles, such as .bin, .pt, .pth and .ckpt: opened so that they cannot run code."""

from __future__ import annotations

import argparse
import collections
import datetime
import logging
import math
import pathlib
import re
import types
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vit_edge.checkpoints.tensors import LazyTensor, tensor_from_array
from vit_edge.checkpoints.text import one_line, reason, refuse_pointer
from vit_edge.checkpoints.wrappers import (
    below,
    choose,
    is_averaged,
    prefix_of,
    without_marks,
)
from vit_edge.errors import CheckpointError

log = logging.getLogger(__name__)

_SAFE_TORCH = (2, 10)  # before it, weights_only could be tricked into running code
# In this order, if there are several: timm's own loader has the first two (models/_helpers.py).
_NESTS = ("state_dict", "model", "module")
_DTYPES = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
_DTYPES |= {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool}
_SAVE = "torch.save(model.state_dict(), FILE)"
_DEEPEST = 4  # dictionaries in dictionaries, such as ["ema"]["module"]


def _as_dict(*_: object) -> collections.OrderedDict[Any, Any]:
    """Stand in for a dictionary with a default."""
    return collections.OrderedDict()


def _as_list(*_: object) -> list[Any]:
    """Stand in for a deque."""
    return []


_NUMPY_CORES = ("numpy.core", "numpy._core")  # of NumPy 1 and 2
_PATH_MODULES = ("pathlib", "pathlib._local")  # until Python 3.12, and from 3.13 on
_SETTINGS = (  # dictionaries in which training frameworks keep settings
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "easydict.EasyDict",
    "addict.addict.Dict",
    "yacs.config.CfgNode",
)


def _harmless() -> list[Any]:
    """List what training loops save beside tensors, and that holds data and runs nothing.

    A pair is a stand-in and the name that it stands for: paths become pure paths, which touch no
    file and exist on every system; dictionaries of frameworks become plain ones.
    """
    scalar, array = np.float64(0).__reduce__()[0], np.array(0).__reduce__()[0]
    pure = {"Posix": pathlib.PurePosixPath, "Windows": pathlib.PureWindowsPath}
    return [
        argparse.Namespace,
        types.SimpleNamespace,
        *(datetime.date, datetime.time, datetime.datetime, datetime.timedelta),
        *(
            (cls, f"{module}.{kind}{system}Path")
            for module in _PATH_MODULES
            for kind in ("", "Pure")
            for system, cls in pure.items()
        ),
        (_as_dict, "collections.defaultdict"),
        (_as_list, "collections.deque"),
        *((collections.OrderedDict, name) for name in _SETTINGS),
        *((scalar, f"{core}.multiarray.scalar") for core in _NUMPY_CORES),
        *((array, f"{core}.multiarray._reconstruct") for core in _NUMPY_CORES),
        *(np.ndarray, np.dtype),
        *{type(np.dtype(code)) for code in np.typecodes["All"] if code not in "OV"},
        *(dict, float, int, list, str),  # what defaultdict makes
    ]


def open_pickled(path: Path, key: str | None = None) -> tuple[dict[str, LazyTensor], str | None]:
    """Open a torch pickle with weights_only, mapped from disk where its format allows.

    Args:
        path: The file.
        key: Which of several models is meant: an entry of the file, or a prefix of names.

    Returns:
        The tensors of one state_dict, and what of the key is left for their names.

    Raises:
        CheckpointError: torch is too old to do this safely; the file is damaged, holds anything
            but data, or wants to run code; or it is not clear which of its models is meant.
    """
    loaded = _load(path)
    if not zipfile.is_zipfile(path):
        log.info("%s: in torch's format from before 1.6, which is read whole", path)
    models = _models(loaded)
    if not models:
        return _tensors(_only_nest(loaded), path), key
    within = key if key and any(below(key, place) is not None for place in models) else None
    place = _usual(models) if within is None else None
    place = choose(models, within, str(path)) if place is None else place
    rest = key if within is None else (below(within, place) or None)
    _say_what_is_left(loaded, models, place, path)
    return _tensors(models[place], path), rest


def names_in(path: Path) -> list[str]:
    """List the names of the tensors of all models in a torch pickle.

    Raises:
        CheckpointError: As open_pickled, if the file cannot be read.
    """
    return [str(name) for model in _models(_load(path)).values() for name in model]


def entries_in(path: Path) -> Mapping[Any, object]:
    """Return what a torch pickle holds at its top, such as state_dict, arch, epoch.

    Raises:
        CheckpointError: As open_pickled, if the file cannot be read.
    """
    loaded = _load(path)
    return loaded if isinstance(loaded, Mapping) else {}


def _load(path: Path) -> object:
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < _SAFE_TORCH:
        raise CheckpointError(
            f"{path}: pickled weights are only read with torch >= 2.10, this is "
            f"{torch.__version__}. Use the .safetensors file, or: pip install -U torch"
        )
    refuse_pointer(path)
    try:
        mapped = zipfile.is_zipfile(path)
        with torch.serialization.safe_globals(_harmless()):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except Exception as error:  # damaged bytes surface as any kind: AssertionError, TypeError ...
        raise CheckpointError(f"{path}: refused: {_complaint(path, error)}") from None


def _complaint(path: Path, error: Exception) -> str:
    """Say why a pickle is refused, and what to save instead."""
    if "TorchScript" in str(error):
        return (
            f"a TorchScript archive holds code; save its state_dict: {_SAVE}. OpenAI's own files "
            "of CLIP are such: take the same weights from hf:openai/clip-vit-base-patch32, "
            "-base-patch16, -large-patch14 or -large-patch14-336"
        )
    unknown = re.search(r"GLOBAL (\S+)", str(error))
    if unknown is None:
        return (
            f"no plain dictionary of tensors, or damaged ({reason(error)}). "
            "Only tensors are loaded, never code; save the state_dict alone, as .safetensors."
        )
    if _is_whole_model(path):
        return f"a pickled module ({one_line(unknown[1])}) runs code; save its state_dict: {_SAVE}"
    return (
        f"it holds objects of {one_line(unknown[1])}. Only tensors are loaded, never code; save "
        f"the state_dict alone: {_SAVE}"
    )


def _is_whole_model(path: Path) -> bool:
    """True if a file names classes of layers, as torch.save(model) does."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # of the format before 1.6, or damaged
        with path.open("rb") as file:
            names = re.findall(r"torch\.nn\.modules\.\w+\.?", file.read(2**22).decode("latin-1"))
    return any(
        re.match(r"torch\.nn\.modules\.(container|linear|conv|normalization)", n) for n in names
    )


def _models(
    loaded: object, place: str = "", depth: int = 0, seen: set[int] | None = None
) -> dict[str, Mapping[Any, Any]]:
    """Find every dictionary that holds the tensors of a Vision Transformer, by its place.

    What was seen is not entered again: a dictionary may hold itself.
    """
    seen = set() if seen is None else seen
    if id(loaded) in seen:
        return {}
    seen.add(id(loaded))
    if isinstance(loaded, (list, tuple)) and depth <= _DEEPEST:
        loaded = dict(enumerate(loaded[:_DEEPEST]))
    if not isinstance(loaded, Mapping) or depth > _DEEPEST:
        return {}
    names = (name for name, value in loaded.items() if isinstance(value, (Tensor, np.ndarray)))
    if any(prefix_of(without_marks(name)) is not None for name in names if isinstance(name, str)):
        return {place: loaded}
    models: dict[str, Mapping[Any, Any]] = {}
    for name, value in loaded.items():
        models |= _models(value, f"{place}.{name}" if place else str(name), depth + 1, seen)
    return models


def _usual(models: Mapping[str, object]) -> str | None:
    """Return the place that training loops use, if one of them is there."""
    return next((place for place in _NESTS if place in models), None)


def _only_nest(loaded: object) -> object:
    """Return what lies below the usual names, where nothing looks like a Vision Transformer."""
    for _ in range(_DEEPEST):
        if not isinstance(loaded, Mapping):
            break
        nest = next((name for name in _NESTS if isinstance(loaded.get(name), Mapping)), None)
        if nest is None:
            break
        loaded = loaded[nest]
    return loaded


def _say_what_is_left(loaded: object, models: Mapping[str, object], place: str, path: Path) -> None:
    if place and isinstance(loaded, Mapping):
        first = place.split(".")[0]
        others = sorted(one_line(str(name)) for name in loaded if str(name) != first)
        if others:
            log.info("%s: reading %r, not %s", path, place, ", ".join(others))
    averaged = [repr(other) for other in sorted(models) if other != place and is_averaged(other)]
    if averaged and not is_averaged(place):
        log.info(
            "%s: its averaged weights, %s, are there and not used; --key %s takes them",
            path,
            ", ".join(averaged),
            averaged[0].strip("'"),
        )


def _tensors(stored: object, path: Path) -> dict[str, LazyTensor]:
    """Take the tensors out of a state_dict; what is no tensor is left out and said."""
    if not isinstance(stored, Mapping):
        raise CheckpointError(f"{path}: holds a {type(stored).__name__}, expected a state_dict")
    arrays = {
        name: tensor_from_array(value)
        for name, value in stored.items()
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiub"
    }
    kinds = {name: _kind(arrays.get(name, value)) for name, value in stored.items()}
    plain = {name for name, kind in kinds.items() if isinstance(name, str) and kind == "tensor"}
    strange = sorted(f"{name!r}: {kind}" for name, kind in kinds.items() if name not in plain)
    broken = any(isinstance(stored[name], Tensor) for name in kinds.keys() - plain)
    if broken or not plain:
        raise CheckpointError(
            f"{path}: expected only named tensors, found {one_line(', '.join(strange[:20]))}"
        )
    if strange:
        log.info("%s: left out, since no tensors: %s", path, one_line(", ".join(strange[:20])))
    return {name: _lazy(arrays[name] if name in arrays else stored[name]) for name in sorted(plain)}


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
