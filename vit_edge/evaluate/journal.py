"""What a model answered to each image so far, so that a run that was killed goes on.

An append-only file of JSON lines: one that says what it is, one about each model as it begins, and
one per image. A last line that was cut off is dropped; anything else that does not fit is refused.
An image counts as known while its file has the size and the time of change that it had.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from vit_edge.errors import InputError, ResourceError
from vit_edge.images.folders import LabelledImage

_KIND, SCHEMA_VERSION = "vit_edge journal", 1


class Ranking(NamedTuple):
    """An answer: the best classes, best first, and their softmax probabilities."""

    classes: tuple[int, ...]
    scores: tuple[float, ...]


class Stamp(NamedTuple):
    """What tells that a file is the one that was answered; -1 where there is none."""

    size: int
    changed_ns: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """Ask the file system."""
        try:
            status = path.stat()
        except (OSError, ValueError):
            return cls(-1, -1)
        return cls(status.st_size, status.st_mtime_ns)


class Journal:
    """An open journal. In memory are 16 bytes per image; its lines stay on disk."""

    def __init__(self, path: Path) -> None:
        """Open or begin a journal, for this process alone.

        Raises:
            InputError: Something else than a journal, or a damaged one.
            ResourceError: It cannot be written, or another process is at it.
        """
        self._path = path
        self._models: dict[str, dict[str, Any]] = {}
        self._keys, self._offsets = array("Q"), array("Q")
        with contextlib.ExitStack() as on_error:
            try:
                self._file: IO[bytes] = on_error.enter_context(path.open("ab+"))
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ResourceError(
                    f"{path}: another evaluation is writing it; wait, or name another --resume"
                ) from None
            except OSError as error:
                raise ResourceError(f"{path}: cannot be written: {error.strerror}") from None
            self._read()
            on_error.pop_all()
        keys = np.array(self._keys, np.uint64)
        order = np.argsort(keys, kind="stable")
        self._known = keys[order]
        self._places = np.array(self._offsets, np.uint64)[order]
        del self._keys, self._offsets

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        """How many answers there were when it was opened."""
        return len(self._known)

    def begin(self, role: str, model: Mapping[str, Any]) -> None:
        """Say which model gives the answers of a role from here on.

        Raises:
            InputError: The journal's answers of this role come from another one.
        """
        wanted = json.loads(json.dumps(model))
        found = self._models.get(role)
        if found is None:
            self._append({"role": role, "model": wanted})
            return
        names = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
        if names:
            differences = "".join(
                f"\n  {name}: {found.get(name)} there, {wanted.get(name)} now" for name in names
            )
            raise InputError(
                f"{self._path}: the journal of another run, its {role} differs:{differences}\n"
                "Run it as it was, or name another --resume"
            )

    def find(self, role: str, image: LabelledImage, stamp: Stamp) -> Ranking | None:
        """What was answered to this image; None if nothing, or if its file has changed."""
        place = int(np.searchsorted(self._known, np.uint64(key := _key(role, image.name, stamp))))
        while place < len(self._known) and int(self._known[place]) == key:
            entry = self._entry(int(self._places[place]))
            if (entry["role"], entry["image"]) == (role, image.name) and stamp == Stamp(
                entry["size"], entry["changed_ns"]
            ):
                return _ranking(entry)
            place += 1
        return None

    def add(self, role: str, image: LabelledImage, stamp: Stamp, answer: Ranking) -> None:
        """Keep an answer; it has left the process when this returns."""
        self._append(
            {
                "role": role,
                "image": image.name,
                **stamp._asdict(),
                "label": image.label,
                **answer._asdict(),
            }
        )

    def _append(self, entry: Mapping[str, Any]) -> None:
        try:
            self._file.write(json.dumps(entry).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise ResourceError(f"{self._path}: cannot be written: {error.strerror}") from error

    def _entry(self, offset: int) -> dict[str, Any]:
        self._file.seek(offset)
        entry: dict[str, Any] = json.loads(self._file.readline())
        return entry

    def _read(self) -> None:
        """Index the lines that are there; drop what was cut off at the end."""
        self._file.seek(0)
        number = offset = 0
        for number, line in enumerate(self._file, 1):
            if number > 1 and not line.endswith(b"\n"):
                os.ftruncate(self._file.fileno(), offset)
                break
            self._index(number, offset, line)
            offset += len(line)
        if not number:
            self._append({"kind": _KIND, "schema_version": SCHEMA_VERSION})

    def _index(self, number: int, offset: int, line: bytes) -> None:
        try:
            entry = json.loads(line)
            if number == 1:
                found = (entry["kind"], entry["schema_version"])
                if found != (_KIND, SCHEMA_VERSION) or not line.endswith(b"\n"):
                    raise ValueError(f"{found[0]}, schema {found[1]}")
            elif "model" in entry:
                self._models[entry["role"]] = dict(entry["model"])
            else:
                stamp = Stamp(int(entry["size"]), int(entry["changed_ns"]))
                _ranking(entry)
                self._keys.append(_key(entry["role"], entry["image"], stamp))
                self._offsets.append(offset)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            what = "no journal of an evaluation" if number == 1 else f"line {number} is damaged"
            raise InputError(
                f"{self._path}: {what} ({error}); name another --resume, or delete it to start anew"
            ) from None


def _ranking(entry: Mapping[str, Any]) -> Ranking:
    classes = tuple(map(int, entry["classes"]))
    if not classes or min(classes) < 0:
        raise ValueError(f"classes are {list(classes)}")
    return Ranking(classes, tuple(map(float, entry["scores"])))


def _key(role: str, name: str, stamp: Stamp) -> int:
    text = f"{role}\0{name}\0{stamp.size}\0{stamp.changed_ns}"
    digest = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
