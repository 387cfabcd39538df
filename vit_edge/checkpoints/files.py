"""Find a checkpoint, the weights in it, and what every read file hashes to."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from vit_edge.bundle.bundle import sha256_of
from vit_edge.checkpoints.adapter import refuse_adapter, refuse_unmerged
from vit_edge.checkpoints.flax import is_flax, open_flax, torch_name
from vit_edge.checkpoints.pickled import entries_in, names_in, open_pickled
from vit_edge.checkpoints.safetensors import open_safetensors
from vit_edge.checkpoints.tensors import LazyTensor
from vit_edge.checkpoints.text import refuse_pointer
from vit_edge.checkpoints.wrappers import unwrap, without_marks
from vit_edge.errors import CheckpointError

log = logging.getLogger(__name__)

SAFETENSORS, FLAX = ".safetensors", ".msgpack"
# .pth.tar is what timm's training writes, .ckpt Lightning's. Any other name is told by its bytes.
PICKLES = (".bin", ".pt", ".pth", ".tar", ".ckpt", ".pkl", ".pickle")
# In the order in which they are looked for: safetensors first, whole before sharded.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "flax_model.msgpack",
    "flax_model.msgpack.index.json",
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
    tensors: dict[str, LazyTensor]  # by the model's own names, without those of wrappers
    files: tuple[Path, ...]


def stem(path: Path) -> str:
    """The name of a folder, or that of a file without its ending."""
    resolved = path.resolve()
    return resolved.name if resolved.is_dir() else resolved.stem.removesuffix(".pth")


def open_weights(path: Path, key: str | None = None) -> Weights:
    """Open the weights of a directory, or one weight file.

    Args:
        path: The directory or file.
        key: Which of several models in it is meant.

    Raises:
        CheckpointError: There are none, or they are damaged, or it is not clear which are meant.
    """
    refuse_adapter(path)
    file, others = _weight_file(path)
    if others:
        log.info("%s: reading %s, not %s", path, file.name, ", ".join(others))
    if file.suffix == ".json":
        files, tensors, rest = _open_sharded(file, key)
    else:
        files, (tensors, rest) = (file,), _open_file(file, key)
    refuse_unmerged(tensors, str(file))
    return Weights(file, unwrap(tensors, str(file), rest), files)


def tensor_names(path: Path) -> list[str]:
    """List the names of all tensors in a directory's weights or in a file, of whatever model.

    Raises:
        CheckpointError: As open_weights, if there are none or they cannot be read.
    """
    file, _ = _weight_file(path)
    if file.suffix == ".json":
        names = [name for shard in shards_of_index(file).values() for name in shard]
    elif _format_of(file) == SAFETENSORS:
        names = list(open_safetensors(file))
    elif _format_of(file) == FLAX:
        names = list(open_flax(file))
    else:
        names = names_in(file)
    return [without_marks(name) for name in names]


def entries_of(path: Path) -> Mapping[Any, object]:
    """Return what a training loop saved at the top of a pickle; nothing of other formats.

    Raises:
        CheckpointError: As open_weights, if there are none or they cannot be read.
    """
    file, _ = _weight_file(path)
    return entries_in(file) if _format_of(file) == PICKLES[0] else {}


def is_weight_file(path: Path) -> bool:
    """True if this is a file of torch, safetensors or flax, by its name or by its first bytes."""
    return path.is_file() and _format_of(path) is not None


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
        name = torch_name(tensor) if "/" in tensor else tensor
        shards.setdefault(file, []).append(name)
    return shards


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: It is missing or not a JSON object.
    """
    refuse_pointer(path)
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


def _weight_file(path: Path) -> tuple[Path, list[str]]:
    """Return the file to read, and the names of those that are not."""
    if path.is_file():
        return path, []
    present = [name for name in WEIGHT_FILES if (path / name).is_file()]
    if not present:
        raise CheckpointError(
            f"{path}: no weights found; expected one of {', '.join(WEIGHT_FILES)}. "
            f"There are: {', '.join(sorted(p.name for p in path.iterdir())) or 'no files'}"
        )
    return path / present[0], present[1:]


def _format_of(path: Path) -> str | None:
    """Return SAFETENSORS, FLAX or the first of PICKLES; None if the file is of no such kind."""
    refuse_pointer(path)
    with path.open("rb") as file:
        head = file.read(9)
    header_bytes = int.from_bytes(head[:8], "little")
    is_safetensors = head[8:] == b"{" and header_bytes <= path.stat().st_size
    if is_safetensors or path.suffix == SAFETENSORS:
        return SAFETENSORS
    if path.suffix == FLAX or is_flax(head):
        return FLAX
    is_pickle = re.match(rb"PK|\x80[\x02-\x05]", head) is not None
    if path.suffix in PICKLES or (is_pickle and path.suffix != ".npz"):
        return PICKLES[0]
    return None


def _open_file(path: Path, key: str | None) -> tuple[dict[str, LazyTensor], str | None]:
    kind = _format_of(path)
    if kind == SAFETENSORS:
        return open_safetensors(path), key
    if kind == FLAX:
        return open_flax(path), key
    if kind is not None:
        return open_pickled(path, key)
    raise CheckpointError(
        f"{path}: not a kind of weight file; expected {SAFETENSORS}, {FLAX}, {', '.join(PICKLES)}"
    )


def _open_sharded(
    index: Path, key: str | None
) -> tuple[tuple[Path, ...], dict[str, LazyTensor], str | None]:
    shards = shards_of_index(index)
    missing = sorted(name for name in shards if not (index.parent / name).is_file())
    if missing:
        raise CheckpointError(f"{index}: shards are missing: {', '.join(missing)}")
    tensors: dict[str, LazyTensor] = {}
    problems = []
    for name, expected in shards.items():
        shard, _ = _open_file(index.parent / name, None)
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
    return (index, *(index.parent / name for name in shards)), tensors, key


def _is_plain_name(name: str) -> bool:
    """True if a shard name stays in its directory, on POSIX and on Windows."""
    return (
        name not in ("", ".", "..")
        and "\0" not in name
        and PurePosixPath(name).name == name
        and PureWindowsPath(name).name == name
    )
