"""Look at what a path holds, to recognise its kind; the unreadable is recognised as nothing."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from vit_edge.checkpoints._files import PICKLES, open_weights, read_json
from vit_edge.checkpoints._tensors import without_wrapper
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
        return without_wrapper(open_weights(path).tensors).keys()
    except CheckpointError:
        return ()


def stem(path: Path) -> str:
    """The name of a folder, or that of a file without its ending."""
    resolved = path.resolve()
    return resolved.name if resolved.is_dir() else resolved.stem
