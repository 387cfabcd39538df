"""Answers in a file: JSON lines, CSV, or features as NumPy has them. Written aside and renamed."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vit_edge.errors import ResourceError, UsageError
from vit_edge.images.inputs import read_list
from vit_edge.machine.files import aside
from vit_edge.predictor import Failure, Prediction

Answer: TypeAlias = "Prediction | NDArray[np.float32] | Failure"
Write: TypeAlias = Callable[[str, Answer], None]

ARRAYS = (".npy", ".npz")
_SUFFIXES = (".jsonl", ".csv", *ARRAYS)
_OTHERS = {
    ".parquet": "write .jsonl or .csv, and pandas makes it: "
    'pandas.read_json("{stem}.jsonl", lines=True).to_parquet("{stem}.parquet")',
    ".json": "write .jsonl: one JSON object a line, so that it can be read while it is written",
    ".ndjson": "write .jsonl, which is the same",
    ".tsv": "write .csv",
    ".xlsx": "write .csv, which spreadsheets open",
    ".txt": "write .csv, or leave --out away: labels are printed",
}


def check_out(path: Path, *, embed: bool) -> None:
    """Refuse a file that cannot be written, before any work.

    Raises:
        UsageError: Its suffix is none of ours, or it is a directory.
    """
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        ways = _OTHERS.get(suffix, f"it must end in {', '.join(_SUFFIXES)}")
        raise UsageError(f"--out {path}: {ways.format(stem=path.stem)}")
    if suffix in ARRAYS and not embed:
        raise UsageError(f"--out {path}: arrays hold features; give --embed, or write .jsonl, .csv")
    if path.is_dir():
        raise UsageError(f"--out {path}: it is a directory; name a file in it")


def as_json(image: str, answer: Answer) -> str:
    """One line of JSON: an image and its labels, its features, or why there are none.

    A name that is no UTF-8 has what Python makes of it (os.fsdecode) as escapes.
    """
    row = answer.as_dict() if isinstance(answer, Prediction | Failure) else _features(answer)
    return json.dumps({"image": image, **row})


def _features(values: NDArray[np.float32]) -> dict[str, Any]:
    return {"features": [float(text) for text in _digits(values)]}


def _digits(values: NDArray[np.float32]) -> list[str]:
    return [f"{value:.9g}" for value in values.tolist()]  # 9 digits tell any two float32 apart


@contextlib.contextmanager
def writing(path: Path, width: int, *, embed: bool) -> Iterator[Write]:
    """Give a function that writes one image's answer; what is there is replaced at the end.

    Args:
        path: As `check_out` allows it.
        width: Classes that are ranked, or features.
        embed: Answers are features.

    Raises:
        ResourceError: The folder is missing or full, or cannot be written.
    """
    kinds = {".jsonl": _json_lines, ".csv": _csv, ".npy": _npy, ".npz": _npz}
    path = Path(os.path.realpath(path))  # behind a link is what it points to
    with contextlib.ExitStack() as stack:
        stack.enter_context(_refusals(path))
        file = stack.enter_context(aside(path))
        yield stack.enter_context(kinds[path.suffix.lower()](path, file, width, embed))


@contextlib.contextmanager
def _refusals(path: Path) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:  # of stdout
        raise
    except OSError as error:
        raise ResourceError(
            f"{path}: cannot be written: {error.strerror}; make that possible, or choose another "
            "--out"
        ) from error


@contextlib.contextmanager
def _json_lines(path: Path, file: BinaryIO, width: int, embed: bool) -> Iterator[Write]:
    yield lambda image, answer: _wrote(file, f"{as_json(image, answer)}\n".encode("ascii"))


def _wrote(file: BinaryIO, data: bytes) -> None:
    file.write(data)


@contextlib.contextmanager
def _csv(path: Path, file: BinaryIO, width: int, embed: bool) -> Iterator[Write]:
    """A row an image; names as the system has them, whatever their encoding."""
    text = io.TextIOWrapper(file, "utf-8", errors="surrogateescape", newline="")
    rows = csv.writer(text, lineterminator="\n")
    columns = [f"f{n}" for n in range(width)] if embed else _ranking(width)
    rows.writerow(["image", *columns, "error"])

    def write(image: str, answer: Answer) -> None:
        if isinstance(answer, Failure):
            told = f"{type(answer.error).__name__}: {answer.error}"
            rows.writerow([image, *[""] * len(columns), told])
        elif isinstance(answer, Prediction):
            ranked = [cell for one in answer.top for cell in (one.label, f"{one.score:.9g}")]
            rows.writerow([image, *ranked, ""])
        else:
            rows.writerow([image, *_digits(answer), ""])

    yield write
    text.flush()
    text.detach()


def _ranking(width: int) -> list[str]:
    places = ["", *(f"_{place}" for place in range(2, width + 1))]
    return [f"{name}{place}" for place in places for name in ("label", "score")]


@contextlib.contextmanager
def _npy(path: Path, file: BinaryIO, width: int, embed: bool) -> Iterator[Write]:
    """float32[N, D] of the images that could be read, and their paths in NAME.paths.npy."""
    with aside(path.with_suffix(".paths.npy")) as names, _Features(width, path.parent) as features:
        yield features.add
        features.copy_paths(names)
        features.copy_features(file)


@contextlib.contextmanager
def _npz(path: Path, file: BinaryIO, width: int, embed: bool) -> Iterator[Write]:
    """The arrays features and paths, of the images that could be read."""
    with _Features(width, path.parent) as features:
        yield features.add
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            with archive.open("paths.npy", "w", force_zip64=True) as member:
                features.copy_paths(member)
            stored = zipfile.ZipInfo("features.npy")  # floats hardly get smaller
            with archive.open(stored, "w", force_zip64=True) as member:
                features.copy_features(member)


class _Features:
    """Features and paths of any number of images: on the disk, so that memory stays small."""

    def __init__(self, width: int, folder: Path) -> None:
        self._width = width
        self._folder = folder  # of the result, which has to have the room; /tmp may be memory
        self._count = 0
        self._longest = 1  # characters of a path

    def __enter__(self) -> _Features:
        self._rows = tempfile.TemporaryFile(dir=self._folder)
        self._paths = tempfile.TemporaryFile(dir=self._folder)
        return self

    def __exit__(self, *error: object) -> None:
        self._rows.close()
        self._paths.close()

    def add(self, image: str, answer: Answer) -> None:
        """Add an image; one that could not be read has no features."""
        if not isinstance(answer, np.ndarray):
            return
        self._rows.write(answer.astype("<f4").tobytes())
        self._paths.write(os.fsencode(image) + b"\0")
        self._count += 1
        self._longest = max(self._longest, len(image))

    def copy_features(self, file: Any) -> None:
        """Write float32[N, D] in the format of NumPy."""
        _write_header(file, "<f4", (self._count, self._width))
        self._rows.seek(0)
        shutil.copyfileobj(self._rows, file)

    def copy_paths(self, file: Any) -> None:
        """Write str[N] in the format of NumPy."""
        _write_header(file, f"<U{self._longest}", (self._count,))
        self._paths.seek(0)
        for path in read_list(self._paths, b"\0"):
            code_points = path.encode("utf-32-le", "surrogatepass")
            file.write(code_points.ljust(4 * self._longest, b"\0"))


def _write_header(file: Any, descr: str, shape: Sequence[int]) -> None:
    header = {"descr": descr, "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(file, header)
