"""Find a checkpoint, the weights in it, and what every read file hashes to."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from vit_edge.bundle.bundle import sha256_of
from vit_edge.checkpoints.pickled import Say, open_pickled
from vit_edge.checkpoints.safetensors import open_safetensors
from vit_edge.checkpoints.tensors import LazyTensor
from vit_edge.errors import CheckpointError

log = logging.getLogger(__name__)

PICKLES = (".bin", ".pt", ".pth", ".tar")  # .pth.tar is what timm's training writes
# In the order in which they are looked for: safetensors first, whole before sharded.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


@dataclass(frozen=True)
class Place:
    """The place of a checkpoint's files on this machine."""

    path: Path  # a directory, or a weight file in it
    name: str  # what to call the bundle if no variant fits
    revision: str | None = None  # the commit, if it came from the hub


@dataclass(frozen=True)
class Weights:
    """The tensors of one checkpoint, and the files they lie in."""

    path: Path  # to name in errors
    tensors: dict[str, LazyTensor]
    files: tuple[Path, ...]


def stem(path: Path) -> str:
    """The name of a folder, or that of a file without its ending."""
    resolved = path.resolve()
    return resolved.name if resolved.is_dir() else resolved.stem.removesuffix(".pth")


def open_weights(path: Path, say: Say = log.info) -> Weights:
    """Open the weights of a directory, or one weight file.

    Args:
        path: The directory or file.
        say: Where to log what was chosen.

    Raises:
        CheckpointError: There are none, or they are damaged.
    """
    if path.is_file():
        return _open_file(path, say)
    present = [name for name in WEIGHT_FILES if (path / name).is_file()]
    if not present:
        raise CheckpointError(
            f"{path}: no weights found; expected one of {', '.join(WEIGHT_FILES)}. "
            f"There are: {', '.join(sorted(p.name for p in path.iterdir())) or 'no files'}"
        )
    if len(present) > 1:
        say("%s: reading %s, not %s", path, present[0], ", ".join(present[1:]))
    chosen = path / present[0]
    return _open_sharded(chosen, say) if chosen.suffix == ".json" else _open_file(chosen, say)


def shards_of_index(path: Path) -> dict[str, list[str]]:
    """Read an index of shards: file name -> the tensors it should hold.

    Raises:
        CheckpointError: Not such an index, or a shard lies outside its directory.
    """
    index = read_json(path)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(file, str) for file in weight_map.values()
    ):
        raise CheckpointError(f"{path}: weight_map: expected an object, tensor name -> file name")
    outside = sorted({file for file in weight_map.values() if not _is_plain_name(file)})
    if outside:
        raise CheckpointError(
            f"{path}: shards must be plain file names beside the index, found "
            f"{', '.join(map(repr, outside))}. Do not trust this checkpoint."
        )
    shards: dict[str, list[str]] = {}
    for tensor, file in weight_map.items():
        shards.setdefault(file, []).append(tensor)
    return shards


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: It is missing or not a JSON object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: missing. Looked in {path.parent.resolve()} for {path.name}, which belongs to "
            "the checkpoint; download the whole directory."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(data).__name__}")
    return data


def hashes_of(files: Iterable[Path]) -> dict[str, str]:
    """File name -> sha256 of its bytes."""
    return {path.name: sha256_of(path) for path in files}


def _open_file(path: Path, say: Say) -> Weights:
    if path.suffix == ".safetensors":
        return Weights(path, open_safetensors(path), (path,))
    if path.suffix in PICKLES:
        return Weights(path, open_pickled(path, say), (path,))
    raise CheckpointError(
        f"{path}: not a kind of weight file; expected .safetensors, {', '.join(PICKLES)}"
    )


def _open_sharded(index: Path, say: Say) -> Weights:
    shards = shards_of_index(index)
    missing = sorted(name for name in shards if not (index.parent / name).is_file())
    if missing:
        raise CheckpointError(f"{index}: shards are missing: {', '.join(missing)}")
    tensors: dict[str, LazyTensor] = {}
    problems = []
    for name, expected in shards.items():
        shard = _open_file(index.parent / name, say).tensors
        contradictions = {
            "is missing": set(expected) - shard.keys(),
            "is not in the index": shard.keys() - set(expected),
            "is in another shard too": shard.keys() & tensors,
        }
        problems += [
            f"{name}: {tensor} {what}"
            for what, names in contradictions.items()
            for tensor in sorted(names)
        ]
        tensors |= shard
    if problems:
        raise CheckpointError(f"{index}: the shards contradict it:\n  " + "\n  ".join(problems))
    return Weights(index, tensors, (index, *(index.parent / name for name in shards)))


def _is_plain_name(name: str) -> bool:
    """True if a shard name stays in its directory, on POSIX and on Windows."""
    return (
        name not in ("", ".", "..")
        and "\0" not in name
        and PurePosixPath(name).name == name
        and PureWindowsPath(name).name == name
    )
