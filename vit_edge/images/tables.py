"""A table of images and their classes, as people's programs write it.

The separator, the encoding, the heading and the columns are found in the file. Whatever is taken
other than as `path,label` in UTF-8 is said in the log; what several readings fit is refused.
"""

from __future__ import annotations

import codecs
import csv
import itertools
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

from vit_edge.errors import InputError, UsageError
from vit_edge.images.classnames import OF_A_TABLE, classes_of_names
from vit_edge.images.walk import named_like_an_image

_logger = logging.getLogger("vit_edge")

_SEPARATORS = ",;\t|"
_SAMPLE = 200  # rows that tell the columns
_CHUNK_BYTES = 2**20
# Names of columns, without case and punctuation; of several, the first of these counts.
_PATHS = (
    "path", "filepath", "imagepath", "imgpath", "filename", "imagename", "imgname", "imagefile",
    "file", "image", "img", "photo", "picture", "imageid", "imgid", "relativepath", "relpath",
    "name", "id",
)  # fmt: skip
_LABELS = (
    "label", "labels", "class", "classname", "labelname", "category", "categoryname", "target",
    "classid", "labelid", "categoryid", "classindex", "labelindex", "truth", "groundtruth", "y",
    "species", "tag",
)  # fmt: skip
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class Layout(NamedTuple):
    """How a table is written."""

    encoding: str
    separator: str
    heading: bool  # the first row names the columns
    path: int  # columns
    label: int


class Table:
    """The rows of a table: path and label of each image."""

    def __init__(self, file: Path, labels: Sequence[str]) -> None:
        """Find out how a table is written.

        Args:
            file: The table.
            labels: Of the model; where nothing else tells which column holds classes, they do.

        Raises:
            UsageError: No such file.
            InputError: It cannot be read, or several columns may be what is looked for.
        """
        self._file = file
        self._layout = Layout(_encoding(file), ",", heading=False, path=0, label=1)
        first = [text.rstrip("\r\n") for _, text in itertools.islice(self._texts(), _SAMPLE)]
        separator = _separator(first)
        self._layout = self._layout._replace(separator=separator)
        rows = [row for _, row in itertools.islice(self._rows(), _SAMPLE)]
        self._layout = self._with_columns(rows, labels)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Path and label of each row.

        Raises:
            InputError: A row without one of them, or bytes that are no text.
        """
        layout = self._layout
        rows = self._rows()
        if layout.heading:
            next(rows, None)
        for line, row in rows:
            path, label = (
                row[place] if place < len(row) else "" for place in (layout.path, layout.label)
            )
            if not path or not label or "\0" in path or any(row[self._width :]):
                raise InputError(
                    f"{self._file}:{line}: expected path,label, found {','.join(row)[:80]!r}; a "
                    f"label with a comma needs quotes{self._advice()}"
                )
            yield path, label

    def _advice(self) -> str:
        encoding = self._layout.encoding
        if encoding.startswith("utf-8"):
            return ""
        return f". It was read as {encoding}; save it in UTF-8"

    def _with_columns(self, rows: Sequence[Sequence[str]], labels: Sequence[str]) -> Layout:
        """The layout, with the columns that heading or content tell."""
        self._width = max(map(len, rows), default=0)
        if not rows:
            return self._layout
        heading = _columns_of_heading(rows[0])
        if heading is not None:
            path, label = heading
            self._width = len(rows[0])
            named = [cell.strip() for cell in rows[0]]
            if label is None:
                raise InputError(
                    f"{self._file}: none of the columns {', '.join(filter(None, named))} is called "
                    "label; write a heading such as path,label"
                )
            if len(rows[0]) > 2:
                _logger.info(
                    "%s: taking the columns %s and %s", self._file, named[path], named[label]
                )
            return self._layout._replace(heading=True, path=path, label=label)
        path, label = self._columns_of_content(rows, labels)
        if (path, label) != (0, 1) or self._width > 2:
            _logger.info(
                "%s: no heading; column %d holds paths, column %d labels", self._file,
                path + 1, label + 1,
            )  # fmt: skip
        return self._layout._replace(path=path, label=label)

    def _columns_of_content(
        self, rows: Sequence[Sequence[str]], labels: Sequence[str]
    ) -> tuple[int, int]:
        """Columns of paths and labels where no heading names them."""
        width = self._width
        if width < 2 or any(len(row) != width for row in rows):
            self._width = 2
            return 0, 1  # every row that is not path,label is refused when it is read
        columns = [{row[place] for row in rows} for place in range(width)]
        images = [
            place for place, cells in enumerate(columns) if all(map(named_like_an_image, cells))
        ]
        path = images[0] if images else 0
        if width == 2:
            return path, 1 - path
        others = [*range(path + 1, width), *range(path)]
        fitting = [
            place
            for place in others
            if not classes_of_names(columns[place], labels, numbers=OF_A_TABLE)[1]
        ]
        behind = [place for place in fitting if place > path]
        fitting = behind or fitting
        if len(images) > 1 or len(fitting) > 1:
            several = ", ".join(str(place + 1) for place in (images[1:] and images) or fitting)
            raise InputError(
                f"{self._file}: columns {several} may all be meant; write a heading that names "
                "two of them path and label"
            )
        return path, (fitting or others)[0]

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        """Line number and cells of each row that holds something and is no comment."""
        texts = (text for _, text in self._texts())
        rows = csv.reader(texts, strict=True, delimiter=self._layout.separator)
        try:
            for row in rows:
                cells = [cell.strip() for cell in row]
                if any(cells) and not _is_remark(cells):
                    yield rows.line_num, cells
        except csv.Error as error:
            raise InputError(f"{self._file}: cannot be read as CSV: {error}") from None

    def _texts(self) -> Iterator[tuple[int, str]]:
        """Number and text of each line, whatever ends it."""
        try:
            with self._file.open(encoding=self._layout.encoding, newline="") as file:
                yield from enumerate(file, 1)
        except (OSError, ValueError) as error:
            raise InputError(f"{self._file}: cannot be read as text: {error}") from None


class Locator:
    """Finds the files that a table names, also where it was written on another machine."""

    def __init__(self, folder: Path, file: Path) -> None:
        """Look in `folder`; `file` is named in the log."""
        self._folder = folder
        self._file = file
        self._elsewhere: tuple[str, ...] | None = None  # the other machine's folder

    def find(self, text: str) -> Path:
        """The file that a path of the table means; the path as it stands if there is none."""
        for spelled in _spellings(text):
            if _exists(self._folder / spelled):
                return self._folder / spelled
        parts = _absolute_parts(text)
        if parts is not None:
            return self._moved(parts) or self._folder / text
        return self._folder / text

    def _moved(self, parts: tuple[str, ...]) -> Path | None:
        """An absolute path of another machine: below the same folder for all of them."""
        known = self._elsewhere
        lengths = range(1, len(parts)) if known is None else [len(known)]
        for length in lengths:
            if known is not None and parts[:length] != known:
                return None
            for spelled in _spellings("/".join(parts[length:])):
                if _exists(self._folder / spelled):
                    if known is None:
                        self._elsewhere = parts[:length]
                        there = "/".join(parts[:length])
                        _logger.info("%s: %s is taken for %s", self._file, there, self._folder)
                    return self._folder / spelled
        return None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _spellings(text: str) -> Iterator[str]:
    """A path as it stands, with the separators of this system, and in both normal forms."""
    yield text
    turned = text.replace("\\", "/")
    for path in dict.fromkeys((text, turned)):
        yield unicodedata.normalize("NFC", path)
        yield unicodedata.normalize("NFD", path)
    yield turned


def _absolute_parts(text: str) -> tuple[str, ...] | None:
    """The parts of a path from the root of a POSIX or a Windows system; None of any other."""
    if text.startswith("/"):
        return PurePosixPath(text).parts
    windows = PureWindowsPath(text)
    return windows.parts if windows.drive or windows.root else None


def _columns_of_heading(cells: Sequence[str]) -> tuple[int, int | None] | None:
    """The columns of paths and labels; None if these cells are no heading."""
    names = [re.sub(r"[^a-z0-9]", "", cell.casefold()) for cell in cells]
    path = next((names.index(name) for name in _PATHS if name in names), None)
    label = next((names.index(name) for name in _LABELS if name in names), None)
    if path is None or any(map(named_like_an_image, cells)):
        return None
    if label is None and len(names) == 2:
        if names[path] in ("name", "id"):  # rather a row without a suffix
            return None
        label = 1 - path
    return path, label


def _is_remark(cells: Sequence[str]) -> bool:
    """A line that begins with # and names no image, or Excel's own line about the separator."""
    first, *others = cells
    if re.fullmatch(r"sep=.?", first.casefold()):
        return not any(others)
    return first.startswith("#") and not any(map(named_like_an_image, cells))


def _separator(lines: Sequence[str]) -> str:
    """The character that leaves most lines with a path of an image, or a heading, and a rest."""
    for line in lines:
        if told := re.fullmatch(r"\ufeff?sep=(.)", line.strip('\r\n"').casefold()):
            return told[1]

    def fitting(separator: str) -> int:
        count = 0
        for line in lines:
            cells = [cell.strip().strip('"') for cell in line.split(separator)]
            heading = len(cells) > 1 and _columns_of_heading(cells) is not None
            count += heading or (len(cells) > 1 and any(map(named_like_an_image, cells)))
        return count

    return max(_SEPARATORS, key=fitting)  # of equals the first


def _encoding(file: Path) -> str:
    """The encoding of a text file: as its first bytes say, UTF-8, or the one of old Windows.

    Raises:
        UsageError: No such file.
        InputError: It cannot be read.
    """
    try:
        with file.open("rb") as opened:
            head = opened.read(_CHUNK_BYTES)
            encoding = _encoding_of_head(head)
            if encoding is None:
                encoding = "utf-8" if _is_utf8(itertools.chain([head], iter(
                    lambda: opened.read(_CHUNK_BYTES), b""))) else "cp1252"  # fmt: skip
    except FileNotFoundError:
        raise UsageError(
            f"--labels-from {file}: no such file; expected folders or a CSV file"
        ) from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error}") from None
    if encoding not in ("utf-8", "utf-8-sig"):
        _logger.info("%s: no UTF-8; read as %s", file, encoding)
    return encoding


def _encoding_of_head(head: bytes) -> str | None:
    for bom, name in _BOMS:
        if head.startswith(bom):
            return name
    start = head[:200]
    if len(start) > 3 and b"\0" in start:  # text of Latin letters in 16 bits, without a mark
        zeros = Counter(place % 2 for place, byte in enumerate(start) if not byte)
        return "utf-16-le" if zeros[1] > zeros[0] else "utf-16-be"
    return None


def _is_utf8(chunks: Iterator[bytes]) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for chunk in chunks:
            decoder.decode(chunk)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True
