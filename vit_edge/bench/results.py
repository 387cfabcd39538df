"""Results on disk: a JSON file that runs are appended to, and that is never overwritten."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vit_edge.bench.runner import SCHEMA_VERSION
from vit_edge.errors import InputError, ResourceError

Run = Mapping[str, Any]


class ResultsError(InputError):
    """A file that holds no results, or those of another schema."""


def read(path: Path) -> list[dict[str, Any]]:
    """The runs of a file, the oldest first.

    Raises:
        ResultsError: It is no such file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path}: no results: {error}") from None
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise ResultsError(
            f"{path}: schema_version is {version!r}, expected {SCHEMA_VERSION}: measure again with "
            "this version, into another file"
        )
    runs = content.get("runs")
    if not isinstance(runs, list) or not all(_is_run(entry) for entry in runs):
        raise ResultsError(f"{path}: its runs are not what python -m vit_edge.bench writes")
    return runs


def last(path: Path) -> dict[str, Any]:
    """The newest run of a file that measured configurations; a roofline has none.

    Raises:
        ResultsError: There is none.
    """
    runs = [run for run in read(path) if run["configurations"]]
    if not runs:
        raise ResultsError(f"{path}: holds no run")
    return runs[-1]


class Appending:
    """Adds one run to a file, and replaces it as it grows; the runs before it stay as they are."""

    def __init__(self, path: Path) -> None:
        """Read what is there.

        Raises:
            ResultsError: The file holds something else: it is left alone.
        """
        self._path = path
        self._before = read(path) if path.exists() else []

    def __call__(self, run: Run) -> None:
        """Write the file anew: whole, or not at all.

        Raises:
            ResourceError: It cannot be written.
        """
        runs = ",\n".join(json.dumps(entry, allow_nan=False) for entry in [*self._before, run])
        text = f'{{"schema_version": {SCHEMA_VERSION}, "runs": [\n{runs}\n]}}\n'  # one a line
        try:
            _replace(self._path, text)
        except OSError as error:
            raise ResourceError(f"{self._path}: cannot be written: {error.strerror}") from error


@contextlib.contextmanager
def appending(path: Path) -> Iterator[Appending]:
    """Add a run to a file that nobody else adds to meanwhile.

    Raises:
        ResourceError: Somebody does, or the folder cannot be written.
        ResultsError: The file holds something else.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ResourceError(f"{path.parent}: cannot be written: {error.strerror}") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ResourceError(
                f"{path.parent}: another benchmark is being written there; two at a time would "
                "disturb each other"
            ) from None
        yield Appending(path)
    finally:
        os.close(lock)


def _replace(path: Path, text: str) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise


def _is_run(entry: object) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("configurations"), list)


def samples(entry: Mapping[str, Any]) -> Sequence[Sequence[float]]:
    """The latencies of a configuration in ms, by process."""
    return [process["latencies_ms"] for process in entry["processes"]]
