"""Results on disk: a JSON file that runs are appended to, and that is never overwritten."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vit_edge import cli
from vit_edge.bench.results import schema
from vit_edge.bench.run.runner import SCHEMA_VERSION
from vit_edge.errors import InputError, ResourceError

Run = Mapping[str, Any]

_SHOWN = 10  # problems; the rest is counted


class ResultsError(InputError):
    """A file that holds no results, or those of another schema."""


def read(path: Path) -> list[dict[str, Any]]:
    """The runs of a file, in its order: the oldest first.

    Raises:
        ResultsError: It is no such file, or holds what `bench` does not write; see schema.problems.
    """
    (runs,) = _read([path])
    return runs


def read_runs(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Read the runs of several files; one that is in two of them comes once.

    Args:
        paths: Results that python -m vit_edge.bench wrote.

    Returns:
        The runs, the oldest first, whatever the order of the files.

    Raises:
        ResultsError: As `read`; the problems of all files are told.
    """
    found: list[dict[str, Any]] = []
    for run in itertools.chain(*_read(paths)):
        if run not in found:
            found.append(run)
    return sorted(found, key=lambda run: (run["started"], run["title"]))


def last(path: Path) -> dict[str, Any]:
    """The newest run of a file that measured configurations.

    Raises:
        ResultsError: There is none.
    """
    runs = [run for run in read(path) if run["configurations"]]
    if not runs:
        raise ResultsError(f"{path}: holds no run")
    return runs[-1]


def _read(paths: Sequence[Path]) -> list[list[dict[str, Any]]]:
    """The runs of each file."""
    found = [_runs(path) for path in paths]
    told = [
        f"{path}: run {place}: {problem}"
        for path, runs in zip(paths, found, strict=True)
        for place, run in enumerate(runs, 1)
        for problem in schema.problems(run)
    ]
    if told:
        more = f"\n  and {len(told) - _SHOWN} more" if len(told) > _SHOWN else ""
        raise ResultsError(
            "these are not results as python -m vit_edge.bench writes them:\n  "
            + cli.printable("\n  ".join(told[:_SHOWN]))
            + more
        )
    return found


def _runs(path: Path) -> list[Any]:
    """What a file of our schema version holds as runs, unchecked."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ResultsError(f"{path}: no results: {error}") from None
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise ResultsError(
            f"{path}: schema_version is {version!r:.40}, expected {SCHEMA_VERSION}: measure again "
            "with this version, into another file"
        )
    runs = content.get("runs")
    if not isinstance(runs, list):
        raise ResultsError(f"{path}: its runs are not what python -m vit_edge.bench writes")
    return runs


class Appending:
    """Adds one run to a file, and replaces it as it grows; the runs before it stay as they are."""

    def __init__(self, path: Path) -> None:
        """Read what is there.

        Raises:
            ResultsError: The file holds something else: it is left alone.
        """
        self._path = path
        try:
            self._before = [_line(run) for run in read(path)] if path.exists() else []
        except (ValueError, RecursionError) as error:  # in keys that we do not know
            raise ResultsError(f"{path}: cannot be appended to: {error}") from None

    def __call__(self, run: Run) -> None:
        """Write the file anew: whole, or not at all.

        Raises:
            ResourceError: It cannot be written.
        """
        runs = ",\n".join([*self._before, _line(run)])
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
        with tempfile.TemporaryFile(dir=path.parent):
            pass  # better now than after minutes of measuring
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


def _line(run: Run) -> str:
    return json.dumps(run, allow_nan=False)


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


def samples(entry: Mapping[str, Any]) -> Sequence[Sequence[float]]:
    """The latencies of a configuration in ms, by process."""
    return [process["latencies_ms"] for process in entry["processes"]]
