"""Batches in work, noted in a folder: of what a process died, the next one there finds out.

A note is locked as long as the process that wrote it lives: process IDs repeat, and in a container
all are 1. Without locks a note is taken for one of a process that died. That costs a trial of the
batch, and blames no image that is well; the other error would have a job start for ever.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from vit_edge.errors import PredictionError, VitEdgeError
from vit_edge.machine import child
from vit_edge.machine.files import lock

if TYPE_CHECKING:
    from vit_edge.images.files import ImageLike

Opener = Callable[[], Callable[[pa.Table], object]]

_SUSPECT = "vit-edge-suspect-"
# Of a trial: its process may build an engine first, and a slow machine has large models.
_TRIAL_TIMEOUT_S = 600.0
_IMAGE_TIMEOUT_S = 10.0


class Suspects:
    """The notes of a folder, which other processes may share."""

    def __init__(self, folder: Path, opener: Opener) -> None:
        """Name the folder; it is made with the first note.

        Args:
            folder: For the notes.
            opener: Opens what answers a table, in another process.
        """
        self._folder, self._opener = folder, opener
        self._held: dict[Path, int] = {}  # our notes, and the open files that lock them

    def note(self, table: pa.Table, images: Sequence[ImageLike | None], column: str) -> Path:
        """Note a table while it is in work; examine one that was in work when a process died.

        Args:
            table: The rows.
            images: Theirs.
            column: Where the table has them.

        Returns:
            The note, to be removed when the table is answered.

        Raises:
            PredictionError: An image ends the process; the message names it.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        name = f"{_SUSPECT}{_digest(images)}"
        left = [note for note in self._folder.glob(f"{name}*") if not self._in_work(note)]
        if left:
            killer = find_killer(self._opener, table, column)
            for note in left:
                note.unlink(missing_ok=True)
            if killer is not None:
                raise PredictionError(
                    f"{killer}: the process died of this image; leave it out, or empty its file"
                )
        # It has its name when it is locked: nobody finds it before, and takes it for left.
        handle, aside = tempfile.mkstemp(prefix=".", dir=self._folder)
        lock(handle)
        note = Path(aside).rename(self._folder / f"{name}{Path(aside).name}")
        self._held[note] = handle
        return note

    def remove(self, note: Path) -> None:
        """Say that a table is not in work any more."""
        note.unlink(missing_ok=True)
        os.close(self._held.pop(note))

    def _in_work(self, note: Path) -> bool:
        """Whether the process that wrote a note still runs: two may have the same rows."""
        if note in self._held:
            return True
        try:
            handle = os.open(note, os.O_RDWR)  # NFS locks nothing that is open for reading alone
        except FileNotFoundError:  # answered meanwhile
            return True
        try:
            lock(handle)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False


def find_killer(opener: Opener, table: pa.Table, column: str) -> str | None:
    """Name the image of which a process dies, each half of the rows in a process of its own.

    Returns:
        The image, of which alone a process died; None where it takes several, or their time.
    """
    if not _dies(opener, table):
        return None
    if table.num_rows < 2:
        return _name_of(table, column) if table.num_rows else None
    half = table.num_rows // 2
    halves = table.slice(0, half), table.slice(half)
    return next(filter(None, (find_killer(opener, part, column) for part in halves)), None)


def answer_rows(opener: Opener, table: pa.Table) -> None:
    """Answer rows in this process; what a child of `find_killer` runs."""
    opener()(table)


def _dies(opener: Opener, table: pa.Table) -> bool:
    """Whether the rows end a process, or keep it from its end; an error that is raised does not."""
    limit_s = _TRIAL_TIMEOUT_S + _IMAGE_TIMEOUT_S * table.num_rows
    try:
        done = child.attempted_call(
            "vit_edge.scale.suspects:answer_rows", opener, table, timeout_s=limit_s
        ).child
    except VitEdgeError:
        return False
    # Also by a library that calls exit; but a full disk for its answer is no death of an image.
    return done.returncode != os.EX_IOERR and bool(done.death or done.returncode)


def _name_of(table: pa.Table, column: str) -> str:
    """What a row's image is called: its path, if the table knows one."""
    row = table.slice(0, 1).to_pylist()[0]
    value = row[column]
    if isinstance(value, dict):
        value = value.get("path") or value.get("bytes")
    named = next((row[key] for key in ("path", "id", "key") if isinstance(row.get(key), str)), None)
    if named is not None or isinstance(value, str):
        return str(named or value)
    data: bytes = value or b""
    return f"the image of {len(data)} bytes with sha256 {hashlib.sha256(data).hexdigest()}"


def _digest(images: Sequence[ImageLike | None]) -> str:
    """Tell batches apart without hashing every byte of every image."""
    digest = hashlib.sha256()
    for image in images:
        named = getattr(image, "name", image)  # of a file behind a URL
        text = named if isinstance(named, bytes) else str(named).encode(errors="surrogatepass")
        digest.update(f"{len(text)}:".encode() + text[:512] + text[-512:])
    return digest.hexdigest()[:32]
