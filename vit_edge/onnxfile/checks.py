"""What is wrong with a model before a runtime sees it: external data, operators, versions."""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from vit_edge.errors import LFS_MAGIC, LFS_POINTER, ModelError
from vit_edge.onnxfile.model import ModelFacts, TensorFacts

_KEYS = ("location", "offset", "length", "checksum")  # of onnx.proto, TensorProto.external_data
# Never in a file name we write, and with a meaning somewhere: NUL ends a C string, a backslash and
# a colon separate on Windows, ONNX Runtime takes "*/_ORT_MEM_ADDR_/*" for a pointer.
_FORBIDDEN = re.compile(r'[\x00-\x1f\\:*?"<>|]')
_NUMBER = re.compile(r"[0-9]{1,19}", re.ASCII)
_LISTED = 20  # problems in one message


def check_external_data(path: str | os.PathLike[str], facts: ModelFacts) -> None:
    """Refuse external data that is not a plain file beside the model, fully there.

    Covers every tensor of the file: initializers, sparse ones, attributes, subgraphs, functions
    and training graphs. Guards against CVE-2022-25882 and CVE-2024-27318 (paths out of the
    folder) and against links, which do the same with an innocent path.

    Args:
        path: The model file the locations are relative to.
        facts: What read_model found in it.

    Raises:
        ModelError: With all problems, each with its tensor and location.
    """
    problems = [
        f"{tensor.where}: {problem}"
        for tensor in facts.tensors
        if tensor.external is not None
        for problem in external_problems(Path(path), tensor)
    ]
    refuse(
        path,
        problems,
        "External data must be a plain file in the model's folder. Copy links as files, or export "
        "the model again into a single file.",
    )


def external_problems(path: Path, tensor: TensorFacts) -> Iterator[str]:
    """What is wrong with one tensor's external data, if anything."""
    assert tensor.external is not None
    location = tensor.external.location
    counts = Counter(key for key, _ in tensor.external.entries)
    for key, count in counts.items():
        if key not in _KEYS:
            yield f"unknown key {key!r} beside location {location!r}; known are {', '.join(_KEYS)}"
        if count > 1:
            yield f"{key!r} occurs {count} times, the first location being {location!r}"
    problem = _location_problem(location)
    if problem:
        yield f"location {location!r} {problem}"
        return
    size = _file_size(path, location)
    if isinstance(size, str):
        yield f"location {location!r} {size}"
        return
    entries = dict(tensor.external.entries)
    for key in ("offset", "length"):
        if not _NUMBER.fullmatch(entries.get(key, "0")):
            yield f"location {location!r}: {key} {entries[key]!r} is not a byte count"
            return
    if tensor.nbytes is None:
        yield f"location {location!r}: {tensor.dtype} cannot be stored externally"
        return
    offset, length = int(entries.get("offset", 0)), int(entries.get("length", tensor.nbytes))
    if length != tensor.nbytes:
        yield (
            f"location {location!r}: length {length}, but {tensor.dtype}{list(tensor.dims)} "
            f"needs {tensor.nbytes} bytes"
        )
    if offset + length > size:
        yield (
            f"location {location!r}: offset {offset} + length {length} lies behind the end of the "
            f"file, which has {size} bytes"
        )


def check_operators(
    facts: ModelFacts,
    max_opset: int,
    max_ir: int,
    domains: Iterable[str] = ("", "ai.onnx"),
) -> None:
    """Refuse a model that is newer than the runtime, or that uses operators it does not have.

    Args:
        facts: What read_model found.
        max_opset: The newest version of the standard operators the runtime knows.
        max_ir: The newest ONNX IR version it reads.
        domains: The operator domains it knows; what the model itself defines is always allowed.

    Raises:
        ModelError: With the runtime's limits and how to export again.
    """
    problems = []
    opset = facts.opsets.get("")
    if facts.ir_version < 1:
        problems.append("no IR version")
    if facts.ir_version > max_ir:
        problems.append(f"IR version {facts.ir_version}, the runtime reads up to {max_ir}")
    if opset is None:
        problems.append("no opset of the standard operators is imported")
    elif opset > max_opset:
        problems.append(f"opset {opset}, the runtime knows up to {max_opset}")
    known = {"" if domain == "ai.onnx" else domain for domain in domains}
    for domain in sorted(facts.operators.keys() - known):
        unknown = sorted(
            name for name in facts.operators[domain] if (domain, name) not in facts.functions
        )
        if unknown:
            problems.append(f"operators of the unknown domain {domain!r}: {', '.join(unknown)}")
    refuse(
        facts.path,
        problems,
        f"Export the model again with standard operators and --opset {max_opset} or lower, or "
        "update the runtime.",
    )


def _location_problem(location: str) -> str | None:
    """What is wrong with the text, whatever the disk holds."""
    if not location:
        return "is missing or empty"
    if _FORBIDDEN.search(location):
        return "has a character that no file name here may have"
    if location.startswith("/"):
        return "is an absolute path"
    parts = location.split("/")
    if ".." in parts:
        return "leaves the model's folder"
    if "" in parts or "." in parts:
        return "is not a plain relative path"
    return None


def _file_size(path: Path, location: str) -> int | str:
    """The size in bytes of the file, or what is wrong with it. Follows no link."""
    parts = location.split("/")
    here = path.parent
    for index, part in enumerate(parts):
        here = here / part
        try:
            status = here.lstat()
        except (OSError, ValueError) as error:
            return f"cannot be read: {getattr(error, 'strerror', None) or error}"
        if stat.S_ISLNK(status.st_mode):
            return "is, or lies behind, a symbolic link"
        if index < len(parts) - 1 and not stat.S_ISDIR(status.st_mode):
            return "lies below something that is no folder"
    if not stat.S_ISREG(status.st_mode):
        return "is no regular file"
    if status.st_nlink > 1:
        return f"is a hard link: the same file has {status.st_nlink} names"
    if os.path.samestat(status, path.stat()):
        return "is the model file itself"
    with here.open("rb") as file:
        if file.read(len(LFS_MAGIC)) == LFS_MAGIC:
            return f"is {LFS_POINTER}"
    return status.st_size


def refuse(path: str | os.PathLike[str], problems: list[str], remedy: str) -> None:
    """Raise a ModelError that lists the problems and ends in the remedy, if there are any."""
    if not problems:
        return
    listed = problems[:_LISTED]
    if len(problems) > _LISTED:
        listed.append(f"... and {len(problems) - _LISTED} more")
    raise ModelError(f"{path}: {len(problems)} problem(s):\n  " + "\n  ".join([*listed, remedy]))
