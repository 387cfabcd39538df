"""What a model answered to each image so far, so that a run that was killed goes on.

A SQLite database: one row about each model, and one per image. Each answer is a transaction of its
own in a write-ahead log. A killed process loses none that was added. A machine that loses its power
loses the last ones at most. Each answer has a checksum over all that it depends on, its model
included: damage may lose answers or refuse the journal, it never gives a wrong answer. An image
counts as known while its file has the size and the time of change that it had.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vit_edge.errors import InputError, ResourceError
from vit_edge.images.folders import LabelledImage

SCHEMA_VERSION = 3  # 1 was a file of JSON lines, 2 had no checksums
_APPLICATION_ID = 0x56455645  # "VEVE", which tells a journal from other databases
_MAGIC = b"SQLite format 3\0"
_HEADER = slice(60, 64), slice(68, 72)  # user_version, application_id: sqlite.org/fileformat2.html

# Exclusive: a second process is refused. WAL with NORMAL: an answer costs no fsync. A power loss
# may roll back the last answers, but leaves the database consistent: sqlite.org/pragma.html.
_OPEN = f"""
PRAGMA locking_mode = EXCLUSIVE;
BEGIN EXCLUSIVE;
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
CREATE TABLE IF NOT EXISTS models (role TEXT PRIMARY KEY, model TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS answers (
    role TEXT, image BLOB, size INTEGER NOT NULL, changed_ns INTEGER NOT NULL,
    classes TEXT NOT NULL, checksum BLOB NOT NULL, PRIMARY KEY (role, image)
) WITHOUT ROWID;
COMMIT;
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
"""
_ANSWERS = """
SELECT model, role, image, size, changed_ns, classes, checksum
FROM answers LEFT JOIN models USING (role)
"""


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
    """An open journal."""

    def __init__(self, path: Path) -> None:
        """Open or begin a journal, for this process alone.

        Raises:
            InputError: Something else than a journal, or a damaged one.
            ResourceError: It cannot be written, or another process is at it.
        """
        self._path = path
        self._models: dict[str, bytes] = {}
        self._require_journal()
        with self._typed_errors(), contextlib.ExitStack() as on_error:
            self._database = sqlite3.connect(path, timeout=0, isolation_level=None)
            on_error.callback(self._database.close)
            self._database.text_factory = bytes  # damaged text may be no Unicode
            self._database.executescript(_OPEN)
            ((report,),) = self._rows("PRAGMA quick_check(1)")
            if report != b"ok":
                raise sqlite3.DatabaseError(report.decode(errors="replace"))
            self._length = sum(1 for _ in self._answers())
            on_error.pop_all()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        self._database.close()

    def __len__(self) -> int:
        """How many answers there were when it was opened."""
        return self._length

    def begin(self, role: str, model: Mapping[str, Any]) -> None:
        """Say which model gives the answers of a role from here on.

        Raises:
            InputError: The journal's answers of this role come from another one.
        """
        with self._typed_errors():
            self._rows("INSERT OR IGNORE INTO models VALUES (?, ?)", role, json.dumps(model))
            ((text,),) = self._rows("SELECT model FROM models WHERE role = ?", role)
            kept, wanted = dict(json.loads(text)), json.loads(json.dumps(model))
        names = sorted(name for name in {*kept, *wanted} if kept.get(name) != wanted.get(name))
        if names:
            differences = "".join(
                f"\n  {name}: {kept.get(name)} there, {wanted.get(name)} now" for name in names
            )
            raise InputError(
                f"{self._path}: the journal of another run, its {role} differs:{differences}\n"
                "Run it as it was, or name another --resume"
            )
        self._models[role] = text

    def find(self, role: str, image: LabelledImage, stamp: Stamp) -> tuple[int, ...] | None:
        """Return the best classes of this image, best first.

        None if there is no answer, or if the file has changed.
        """
        where = "WHERE role = ? AND image = ?"
        with self._typed_errors():
            for *kept, classes in list(self._answers(where, role, _key(image))):
                return tuple(json.loads(classes)) if Stamp(*kept) == stamp else None
        return None

    def add(self, role: str, image: LabelledImage, stamp: Stamp, classes: tuple[int, ...]) -> None:
        """Keep an answer; it has left the process when this returns."""
        with self._typed_errors():
            values = (role, _key(image), *stamp, json.dumps(classes))
            checksum = _checksum(self._models[role], *values)
            self._rows(
                "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?)", *values, checksum
            )

    def _require_journal(self) -> None:
        """Refuse another file before SQLite touches it."""
        try:
            with self._path.open("rb") as file:
                head = file.read(100)
        except FileNotFoundError:
            return
        except OSError as error:
            raise ResourceError(f"{self._path}: cannot be written: {error.strerror}") from None
        version, application = (int.from_bytes(head[at], "big") for at in _HEADER)
        if head.startswith(b'{"kind": "vit_edge journal"'):
            problem = "a journal of an older version, which this one does not read"
        elif head and (head[:16] != _MAGIC or application != _APPLICATION_ID):
            problem = "no journal of an evaluation"
        elif head and version != SCHEMA_VERSION:
            problem = f"no journal of this version: schema {version}, not {SCHEMA_VERSION}"
        else:
            return
        raise InputError(f"{self._path}: {problem}; name another --resume, or delete it")

    def _answers(self, where: str = "", *values: object) -> Iterator[tuple[Any, ...]]:
        """Yield size, time of change and classes of each answer that matches its checksum."""
        for *fields, checksum in self._database.execute(_ANSWERS + where, values):
            if checksum != _checksum(*fields):
                raise ValueError(f"the answer to {fields[2]!r} does not match its checksum")
            yield tuple(fields[3:])

    def _rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        return self._database.execute(statement, values).fetchall()

    @contextlib.contextmanager
    def _typed_errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, ValueError, TypeError, RecursionError) as error:
            if not isinstance(error, sqlite3.OperationalError) or "no such" in str(error):
                raise InputError(
                    f"{self._path}: the journal is damaged ({error}); name another --resume, or "
                    "delete it to start anew"
                ) from None
            problem = f"cannot be written: {error}"  # no folder, no permission, a full disk
            if "locked" in str(error):
                problem = "another evaluation is writing it; wait"
            raise ResourceError(f"{self._path}: {problem}, or name another --resume") from None


def _key(image: LabelledImage) -> bytes:
    """Encode an image's name; file systems know names that are no Unicode."""
    return image.name.encode("utf-8", "surrogateescape")


def _checksum(*fields: object) -> bytes:
    """Hash the fields of an answer; text counts as the bytes that SQLite gives back."""
    content = [field.encode() if isinstance(field, str) else field for field in fields]
    return hashlib.blake2b(repr(content).encode(), digest_size=16).digest()
