"""Results on disk: a JSON file that runs are appended to, and that is never overwritten."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vit_edge import cli
from vit_edge.bench.results.runs import RULES, SCHEMA_VERSION, Run
from vit_edge.errors import InputError, ResourceError
from vit_edge.machine.files import aside, lock
from vit_edge.strict import json_from_record, record_from_json

_SHOWN = 10  # problems; the rest is counted


class ResultsError(InputError):
    """A file that holds no results, or those of another schema."""


def read(path: Path) -> list[Run]:
    """The runs of a file, in its order: the oldest first.

    Raises:
        ResultsError: It is no such file, or holds what `bench` does not write.
    """
    (runs,) = _read([path], [_runs(path)])
    return runs


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read the runs of several files; one that is in two of them comes once.

    Args:
        paths: Results that vit-edge bench wrote.

    Returns:
        The runs, the oldest first, whatever the order of the files.

    Raises:
        ResultsError: As `read`; the problems of all files are told.
    """
    runs: list[Run] = []
    for run in itertools.chain(*_read(paths, [_runs(path) for path in paths])):
        if run not in runs:
            runs.append(run)
    return sorted(runs, key=lambda run: (run.started, run.title))


def last(path: Path) -> Run:
    """The newest run of a file that measured configurations.

    Raises:
        ResultsError: There is none.
    """
    runs = [run for run in read(path) if run.configurations]
    if not runs:
        raise ResultsError(f"{path}: holds no run")
    return runs[-1]


def _read(paths: Sequence[Path], contents: Sequence[Sequence[object]]) -> list[list[Run]]:
    """The runs of each file, from its JSON.

    Raises:
        ResultsError: With the problems of all of them, or the first ones.
    """
    problems: list[str] = []
    runs: list[list[Run]] = []
    for path, values in zip(paths, contents, strict=True):
        runs.append([])
        for number, value in enumerate(values, 1):
            run, wrong = record_from_json(Run, value, "it", RULES)
            problems += [f"{path}: run {number}: {problem}" for problem in wrong]
            runs[-1].append(run)
    if problems:
        more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise ResultsError(
            "these are not results as vit-edge bench writes them:\n  "
            + cli.printable("\n  ".join(problems[:_SHOWN]))
            + more
        )
    return runs


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
        raise ResultsError(f"{path}: its runs are not what vit-edge bench writes")
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
            values = _runs(path) if path.exists() else []
            _read([path], [values])
            self._before = [_line(value) for value in values]  # what we do not know stays
        except (ValueError, RecursionError) as error:  # in keys that we do not know
            raise ResultsError(f"{path}: cannot be appended to: {error}") from None

    def __call__(self, run: Run) -> None:
        """Write the file anew: whole, or not at all.

        Raises:
            ResourceError: It cannot be written.
        """
        runs = ",\n".join([*self._before, _line(json_from_record(run))])
        text = f'{{"schema_version": {SCHEMA_VERSION}, "runs": [\n{runs}\n]}}\n'  # one a line
        try:
            with aside(self._path) as file:
                file.write(text.encode())
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
        handle = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ResourceError(f"{path.parent}: cannot be written: {error.strerror}") from error
    try:
        try:
            lock(handle)
        except BlockingIOError:
            raise ResourceError(
                f"{path.parent}: another benchmark is being written there; two at a time would "
                "disturb each other"
            ) from None
        yield Appending(path)
    finally:
        os.close(handle)


def _line(run: Any) -> str:
    return json.dumps(run, allow_nan=False)
