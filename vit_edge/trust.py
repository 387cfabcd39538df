"""Our own record of the files whose sha256 was checked on this machine.

A cold start must not read every byte of a model, so a file that was hashed once is afterwards
recognised by (size, mtime_ns, inode). The record lives in the user's state directory, outside what
it vouches for, readable and writable by the user alone; one that others can write is not believed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from vit_edge.bundle import sha256_of
from vit_edge.errors import IntegrityError

_LOG = logging.getLogger(__name__)


def state_dir() -> Path:
    """$XDG_STATE_HOME/vit_edge, by default ~/.local/state/vit_edge."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "vit_edge"


def recorded_hashes(folder: Path) -> dict[str, str]:
    """The sha256 of each file of `folder` that is still the one we hashed; empty if none is."""
    hashes = {}
    for name, (identity, sha256) in _read_record(folder).items():
        if _identity(folder / name) == identity:
            hashes[name] = sha256
    return hashes


def check_hashes(folder: Path, expected: Mapping[str, str], *, full: bool) -> None:
    """Check that each file has the sha256 expected, and record that it has.

    Args:
        folder: Where the files are.
        expected: File name -> sha256.
        full: Read every byte, whatever the record says.

    Raises:
        IntegrityError: Files that are others than expected; all are named.
    """
    known = {} if full else recorded_hashes(folder)
    if all(known.get(name) == sha256 for name, sha256 in expected.items()):
        return
    problems = []
    identities = {}
    for name, sha256 in expected.items():
        identities[name] = _identity(folder / name)
        found = sha256_of(folder / name)
        if found != sha256 or identities[name] != _identity(folder / name):
            problems.append(f"{name}: sha256 {found[:16]}..., recorded {sha256[:16]}...")
    if problems:
        raise IntegrityError(
            f"{folder}: {len(problems)} file(s) changed since they were written:\n  "
            + "\n  ".join(problems)
            + "\nCopy them again, or make them again."
        )
    record_hashes(folder, expected)


def record_hashes(folder: Path, hashes: Mapping[str, str]) -> None:
    """Remember that these files of `folder` have these sha256s.

    A state directory that cannot be written is no error: the next start is slower, and that is
    said.
    """
    record = {name: [_identity(folder / name), sha256] for name, sha256 in hashes.items()}
    path = _record_path(folder)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, temporary = tempfile.mkstemp(dir=path.parent)  # mode 0600
        with os.fdopen(handle, "w") as file:
            json.dump({"folder": str(folder.resolve()), "files": record}, file)
        Path(temporary).replace(path)
    except OSError as error:
        _LOG.warning(
            "%s cannot be written (%s): files are hashed again at every start; "
            "set XDG_STATE_HOME to a writable directory",
            path.parent,
            error.strerror,
        )


def _record_path(folder: Path) -> Path:
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]
    return state_dir() / "trusted" / f"{name}.json"


def _identity(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev]


def _read_record(folder: Path) -> dict[str, tuple[list[int], str]]:
    path = _record_path(folder)
    try:
        with path.open() as file:
            status = os.fstat(file.fileno())
            if status.st_uid != os.getuid() or status.st_mode & 0o022:
                _LOG.warning("%s is not believed: others than its owner can write it", path)
                return {}
            record = json.load(file)
        if record["folder"] != str(folder.resolve()):
            return {}
        files = {name: (entry[0], entry[1]) for name, entry in record["files"].items()}
        return {name: entry for name, entry in files.items() if (folder / name).is_file()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        _LOG.warning("%s is not believed: %s", path, error)
        return {}
