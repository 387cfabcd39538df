"""Where shards go: a directory, or a folder of an object store."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
from pyarrow import fs

from vit_edge.errors import ResourceError, UsageError
from vit_edge.machine.files import lock
from vit_edge.scale.remote import below, file_system, is_url

_LOG = logging.getLogger("vit_edge")

RECORD = "run.json"  # what the shards of a folder have in common
_SUSPECTS = ".suspects"
_OURS_ASIDE = (".part-*.parquet.*.tmp", f".{RECORD}.*.tmp")


class Store:
    """A folder in which a file is there whole, or not at all."""

    def __init__(self, out: str | os.PathLike[str]) -> None:
        """Name it; nothing is made.

        Args:
            out: A directory, or a URL such as s3://bucket/answers.

        Raises:
            UsageError: It is empty, or a URL of a kind that nothing installed here can open.
        """
        given = os.fspath(out)
        if not given:
            raise UsageError("--out is the empty text; name a directory")
        self.is_remote = is_url(given)
        self.name = given if self.is_remote else str(Path(given).absolute())
        if self.is_remote:
            self._files, base = file_system(self.name)
            self._base = base.rstrip("/")
            key = hashlib.sha256(self.name.encode()).hexdigest()[:16]
            self.scratch = Path(tempfile.gettempdir(), f"vit_edge-{os.getuid()}", key)
        else:
            self._files, self._base = fs.LocalFileSystem(), self.name
            self.scratch = Path(self.name)
        self.suspects = self.scratch / _SUSPECTS

    def path(self, name: str) -> str:
        """A file's path, or its URL."""
        return below(self.name, name)

    def names(self) -> list[str]:
        """The files and folders in it, sorted."""
        listed = self._files.get_file_info(fs.FileSelector(self._base, allow_not_found=True))
        return sorted(info.base_name for info in listed)

    def read(self, name: str) -> bytes:
        """A small file's content."""
        with self._files.open_input_file(self._inside(name)) as file:
            return bytes(file.read())

    def parquet(self, name: str) -> pq.ParquetFile:
        """Open a shard."""
        return pq.ParquetFile(self._inside(name), filesystem=self._files)

    def aside(self, name: str) -> Path:
        """A new place, where a file is written before it is published."""
        self.scratch.mkdir(parents=True, exist_ok=True)
        return self.scratch / f".{name}.{secrets.token_hex(4)}.tmp"

    def publish(self, aside: Path, name: str) -> None:
        """Put a file that was written aside under its name, in one step."""
        if not self.is_remote:
            with aside.open("rb") as file:
                os.fsync(file.fileno())
            aside.replace(self.path(name))
            return
        # An object is there when its upload is closed, and not before.
        with aside.open("rb") as file, self._files.open_output_stream(self._inside(name)) as there:
            shutil.copyfileobj(file, there, 1 << 22)
        aside.unlink()

    def move(self, name: str, new: str) -> None:
        """Rename a file; its new folder is made."""
        if "/" in new:
            self._files.create_dir(self._inside(new.rpartition("/")[0]))
        self._files.move(self._inside(name), self._inside(new))

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._files.delete_file(self._inside(name))

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Make the folder, and hold it as long as this process lives; of a store, neither.

        Raises:
            UsageError: It is a file, or another process holds it.
            ResourceError: It cannot be made.
        """
        if self.is_remote:
            yield
            return
        folder = Path(self.name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except (FileExistsError, NotADirectoryError):
            raise UsageError(f"{folder}: is a file; name a directory for --out") from None
        except OSError as error:
            raise self.unwritable(error) from error
        try:
            self._lock(handle)
            for pattern in _OURS_ASIDE:  # and nothing else that a user may keep there
                for left in folder.glob(pattern):
                    left.unlink(missing_ok=True)
            yield
        finally:
            os.close(handle)

    def unwritable(self, error: OSError) -> ResourceError:
        """Say that nothing can be written here."""
        # pyarrow puts words of its own around what the system says
        reason = os.strerror(error.errno) if error.errno and not self.is_remote else error
        return ResourceError(
            f"{self.name}: cannot be written: {reason}; make that possible and go on with "
            "--resume, or choose another --out"
        )

    def _lock(self, handle: int) -> None:
        try:
            if not lock(handle):
                _LOG.info("%s: no locks there; start one run there only", self.name)
        except BlockingIOError:
            raise UsageError(
                f"{self.name}: another run writes there now; wait for its end, or name another "
                "--out"
            ) from None

    def _inside(self, name: str) -> str:
        return f"{self._base}/{name}"
