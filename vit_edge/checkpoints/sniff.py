"""Look at what a path holds, to recognise its kind; the unreadable is recognised as nothing."""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from pathlib import Path
from typing import Any

from vit_edge.checkpoints.files import PICKLES, WEIGHT_FILES, open_weights, read_json
from vit_edge.checkpoints.npz import open_npz
from vit_edge.checkpoints.tensors import without_wrapper
from vit_edge.errors import CheckpointError


def config_of(path: Path) -> dict[str, Any]:
    """config.json of a directory; empty if there is none or it cannot be read."""
    try:
        return read_json(path / "config.json") if (path / "config.json").is_file() else {}
    except CheckpointError:
        return {}


def tensor_names(path: Path) -> Collection[str]:
    """Names of the tensors of a directory or weight file, without wrappers; empty if unreadable."""
    if not path.is_dir() and path.suffix not in (".safetensors", *PICKLES):
        return ()
    try:
        files = [path] if path.is_file() else sorted(path.iterdir())
        return _names(path, tuple((file.name, file.stat().st_mtime_ns) for file in files))
    except (CheckpointError, OSError):
        return ()


def raise_reason(path: Path) -> None:
    """Look once more at what no source recognised, if it is of a kind that one should.

    Raises:
        CheckpointError: It is damaged or refused, and here is why.
    """
    if path.is_dir():
        if (path / "config.json").is_file():
            read_json(path / "config.json")
        if any((path / name).is_file() for name in WEIGHT_FILES):
            open_weights(path, _say_nothing)
    elif path.suffix == ".npz":
        open_npz(path)
    elif path.suffix in (".safetensors", *PICKLES):
        open_weights(path, _say_nothing)


@lru_cache(maxsize=8)
def _names(path: Path, stamps: tuple[tuple[str, int], ...]) -> tuple[str, ...]:
    """The names alone, kept: every source asks for them, and old pickles are read whole."""
    return tuple(without_wrapper(open_weights(path, _say_nothing).tensors))


def _say_nothing(message: str, *arguments: object) -> None:
    """Looking is not reading: what is chosen is said when the checkpoint is loaded."""
