"""Our own record of the files whose sha256 was checked on this machine.

A cold start must not read every byte of a model. A file that was hashed once is recognised by its
size, inode, and times of modification and change; only root can set the latter back. The record
lives in the user's state directory, outside what it vouches for, and only the user can read or
write it. A record that others can write is not believed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from vit_edge.bundle.bundle import sha256_of
from vit_edge.errors import IntegrityError
from vit_edge.machine.userdirs import state_dir

_LOG = logging.getLogger(__name__)


class Fingerprint(NamedTuple):
    """A file as it was while every byte of it was read."""

    identity: tuple[int, ...]  # size, mtime_ns, ctime_ns, inode, device
    sha256: str


def fingerprints(folder: Path, names: Iterable[str]) -> dict[str, Fingerprint]:
    """Hash files (about 2 GB/s).

    Raises:
        IntegrityError: One is missing, or changed while it was read.
    """
    fingerprints = {}
    for name in names:
        try:
            identity = _identity(folder / name)
            fingerprints[name] = Fingerprint(identity, sha256_of(folder / name))
        except OSError as error:
            raise IntegrityError(f"{folder / name}: cannot be read: {error.strerror}") from None
        if _identity(folder / name) != identity:
            raise IntegrityError(f"{folder / name}: changed while it was read")
    return fingerprints


def recorded_hashes(folder: Path) -> dict[str, str]:
    """The sha256 of each file of `folder` that is still the one that was hashed."""
    hashes = {}
    for name, known in _read_record(folder).items():
        try:
            if _identity(folder / name) == known.identity:
                hashes[name] = known.sha256
        except OSError:
            continue
    return hashes


def record_moved(folder: Path, known: Mapping[str, Fingerprint]) -> None:
    """Remember files that came to `folder` after they were hashed.

    Moving a directory leaves them as they are; moving each of them changes its time of change, and
    it is hashed again.

    Raises:
        IntegrityError: One is not what it was.
    """
    try:
        same = all(_identity(folder / name) == each.identity for name, each in known.items())
    except OSError:
        same = False
    if not same:
        moved = fingerprints(folder, known)
        changed = [name for name, each in known.items() if moved[name].sha256 != each.sha256]
        if changed:
            raise IntegrityError(f"{folder}: changed while it was moved: {', '.join(changed)}")
        known = moved
    record(folder, known)


def record(folder: Path, known: Mapping[str, Fingerprint]) -> None:
    """Remember fingerprints of the files of `folder`.

    A state directory that cannot be written is no error: the next start is slower, and that is
    said.
    """
    path = _record_path(folder)
    if path is None:
        _LOG.warning("no home directory: files are hashed at every start; set XDG_STATE_HOME")
        return
    content = {"folder": str(folder.resolve()), "files": known}
    from vit_edge.machine.files import aside  # once for each file; a start only reads

    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with aside(path, mode=0o600) as file:
            file.write(json.dumps(content).encode())
    except OSError as error:
        _LOG.warning(
            "%s cannot be written (%s): files are hashed again at every start; "
            "set XDG_STATE_HOME to a writable directory",
            path.parent,
            error.strerror,
        )


def forget(folder: Path) -> None:
    """Remove what is remembered of a folder that will not come back."""
    path = _record_path(folder)
    if path is not None:
        with contextlib.suppress(OSError):
            path.unlink()


def _record_path(folder: Path) -> Path | None:
    base = state_dir()
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]
    return None if base is None else base / "trusted" / f"{name}.json"


def _identity(file: Path) -> tuple[int, ...]:
    status = file.stat()
    return (
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_ino,
        status.st_dev,
    )


def _read_record(folder: Path) -> dict[str, Fingerprint]:
    path = _record_path(folder)
    if path is None:
        return {}
    try:
        with path.open() as file:
            status = os.fstat(file.fileno())
            if status.st_uid != os.getuid() or status.st_mode & 0o022:
                _LOG.warning("%s is not believed: others than its owner can write it", path)
                return {}
            content = json.load(file)
        if content["folder"] != str(folder.resolve()):
            return {}
        files = content["files"].items()
        return {name: Fingerprint(tuple(entry[0]), entry[1]) for name, entry in files}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        _LOG.warning("%s is not believed: %s", path, error)
        return {}
