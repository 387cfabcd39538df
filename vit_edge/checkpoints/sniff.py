"""Look at what a path holds, to recognise its kind; the unreadable is recognised as nothing."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from vit_edge.checkpoints.adapter import refuse_adapter
from vit_edge.checkpoints.files import (
    WEIGHT_FILES,
    is_weight_file,
    open_weights,
    read_json,
    tensor_names,
)
from vit_edge.checkpoints.npz import open_npz
from vit_edge.errors import CheckpointError


def config_of(path: Path) -> dict[str, Any]:
    """config.json of a directory, or beside a file; empty if there is none that can be read."""
    config = (path if path.is_dir() else path.parent) / "config.json"
    try:
        return read_json(config) if config.is_file() else {}
    except CheckpointError:
        return {}


def is_open_clips(path: Path) -> bool:
    """True for a directory with open_clip's config, unless another's lies there with weights."""
    others = config_of(path) and any((path / name).is_file() for name in WEIGHT_FILES)
    return (path / "open_clip_config.json").is_file() and not others


def holds(path: Path, *names: str) -> bool:
    """True if these tensors are in a directory's weights or in a file, whatever wraps them."""
    try:
        if not path.is_dir() and not is_weight_file(path):
            return False
        files = [path] if path.is_file() else sorted(path.iterdir())
        stored = _names(path, tuple((file.name, file.stat().st_mtime_ns) for file in files))
    except (CheckpointError, OSError):
        return False
    return all(any(f".{s}".endswith(f".{name}") for s in stored) for name in names)


def raise_reason(path: Path) -> None:
    """Look once more at what no source recognised, if it is of a kind that one should.

    Raises:
        CheckpointError: It is damaged or refused, and here is why.
    """
    refuse_adapter(path)
    if path.is_dir():
        if (path / "config.json").is_file():
            read_json(path / "config.json")
        if any((path / name).is_file() for name in WEIGHT_FILES):
            open_weights(path)
    elif path.suffix == ".npz":
        open_npz(path)
    elif is_weight_file(path):
        open_weights(path)


@lru_cache(maxsize=8)
def _names(path: Path, stamps: tuple[tuple[str, int], ...]) -> tuple[str, ...]:
    """The names alone, kept: every source asks for them, and old pickles are read whole."""
    return tuple(tensor_names(path))
