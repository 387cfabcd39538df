"""Images in folders, and the classes that folders or a CSV file give them."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from vit_edge.errors import ImageError, InputError, UsageError
from vit_edge.images.classnames import classes_of_names, spelling

PHOTOS = Path(__file__).resolve().parents[1] / "data" / "photos"  # those that the package carries
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".gif"}
FOLDERS = "folders"  # the name by which the folders' names are asked for
UNKNOWN = -1  # as in a golden file
LISTED = 100  # unreadable images; enough to see a pattern, and the message stays short
_SHOWN = 10  # problems that a message lists


class LabelledImage(NamedTuple):
    """An image file and its true class."""

    name: str  # relative to the data's folder, or as the CSV file has it
    path: Path
    label: int  # UNKNOWN where there is none


@dataclass
class Unreadable:
    """Images of a long run that could not be read: all are counted, the first are named."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, error: ImageError) -> None:
        """Count one image."""
        self.count += 1
        if len(self.first) < LISTED:
            self.first.append(str(error))

    def text(self) -> str:
        """What is named, one a line and indented."""
        return "".join(f"\n  {problem}" for problem in self.first)

    def as_dict(self) -> dict[str, Any]:
        """How many, and what is named, ready for JSON."""
        return {"count": self.count, "first": self.first}


class Labelled(Protocol):
    """Images with classes, as many as its length, in the same order every time."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[LabelledImage]: ...


def read_labelled(folder: Path, labels_from: str, labels: Sequence[str]) -> Labelled:
    """Find images and their classes.

    Args:
        folder: Where the images are.
        labels_from: FOLDERS, or a CSV file.
        labels: Of the model; what may name a class is said in `classes_of_names`.

    Raises:
        UsageError: No such folder or file, or a model without classes.
        InputError: Something names no class, or no image is there.
    """
    if not labels:
        raise UsageError("this bundle has no classes, so there is no accuracy to speak of")
    if labels_from == FOLDERS:
        return LabelledFolder(folder, labels)
    return LabelledCsv(folder, Path(labels_from), labels)


class _FolderImages:
    """Images below a folder, counted by the name of the folder that each lies in."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._counts = Counter(file.parent.name for file in walk_images(folder))
        if not self._counts:
            raise _no_images(folder)
        self._classes: dict[str, int] = {}  # empty: nobody knows

    def __len__(self) -> int:
        return self._counts.total()

    def __iter__(self) -> Iterator[LabelledImage]:
        for path in walk_images(self._folder):
            label = self._classes[path.parent.name] if self._classes else UNKNOWN
            yield LabelledImage(path.relative_to(self._folder).as_posix(), path, label)


class Unlabelled(_FolderImages):
    """Images of a folder whose classes nobody knows."""


class LabelledFolder(_FolderImages):
    """Images that lie in folders called like their classes (torchvision's ImageFolder)."""

    def __init__(self, folder: Path, labels: Sequence[str]) -> None:
        """Look at every name once; only those of the folders are kept.

        Raises:
            UsageError: No such folder, or no image in it.
            InputError: A folder that names no class.
        """
        super().__init__(folder)
        self._classes, problems = classes_of_names(self._counts, labels)
        if problems:
            raise InputError(
                f"{folder}: {len(problems)} of {len(self._counts)} folders name no class of this "
                f"model{listed(problems)}\n"
                "Rename them, or give the classes with --labels-from FILE.csv"
            )


class LabelledCsv:
    """Images that a CSV file lists: `path,label` a line, paths relative to the data's folder."""

    def __init__(self, folder: Path, file: Path, labels: Sequence[str]) -> None:
        """Read every line once; only the different labels are kept.

        Raises:
            UsageError: No such folder or file.
            InputError: It is no such CSV file, lists nothing, or a label names no class.
        """
        if not folder.is_dir():
            raise UsageError(f"{folder}: no such directory of images")
        self._folder, self._file = folder, file
        counts = Counter(label for _, label in self._lines())
        if not counts:
            raise InputError(f"{file}: lists no image; expected a line path,label for each")
        self._classes, problems = classes_of_names(counts, labels)
        if problems:
            raise InputError(
                f"{file}: {len(problems)} of {len(counts)} labels name no class of this model"
                f"{listed(problems)}\nWrite a label as labels.txt of the bundle has it, or its "
                f"number from 0 to {len(labels) - 1}"
            )
        self._images = sum(counts.values())

    def __len__(self) -> int:
        return self._images

    def __iter__(self) -> Iterator[LabelledImage]:
        for path, label in self._lines():
            yield LabelledImage(path, self._folder / path, self._classes[label])

    def _lines(self) -> Iterator[tuple[str, str]]:
        """Path and label of each line; a first line `path,label` is a heading."""
        try:
            with self._file.open(encoding="utf-8-sig", newline="") as file:
                rows = csv.reader(file, strict=True)
                for row in rows:
                    cells = [cell.strip() for cell in row]
                    heading = rows.line_num == 1 and [c.casefold() for c in cells[:1]] == ["path"]
                    if not any(cells) or heading:
                        continue
                    if len(cells) != 2 or not all(cells) or "\0" in row[0]:
                        raise InputError(
                            f"{self._file}:{rows.line_num}: expected path,label, found "
                            f"{','.join(row)[:80]!r}; a label with a comma needs quotes"
                        )
                    yield cells[0], cells[1]
        except FileNotFoundError:
            raise UsageError(
                f"--labels-from {self._file}: no such file; expected {FOLDERS} or a CSV file"
            ) from None
        except (OSError, ValueError, csv.Error) as error:
            raise InputError(f"{self._file}: cannot be read as CSV in UTF-8: {error}") from None


def as_counted(images: Labelled) -> Iterator[LabelledImage]:
    """Go through images, exactly as many as were counted before.

    Raises:
        InputError: There are more or fewer now.
    """
    index = -1
    for index, image in enumerate(images):
        if index == len(images):
            break
        yield image
    if index + 1 != len(images):
        raise InputError(
            f"there were {len(images)} images when they were counted, and now there are "
            f"{'more' if index == len(images) else index + 1}; leave them alone and start again"
        )


def classes_from_folders(folder: Path | None, labels: Sequence[str]) -> NDArray[np.int64] | None:
    """The class of each golden image, where the images lie in folders called like the labels.

    Args:
        folder: The golden images; None for the package's photos, which have no classes.
        labels: Of the model.

    Returns:
        int64[N] in the order of `image_files`, -1 where the folder is no label; None if none is.
        Where not every folder names a class, only whole labels count.
    """
    if folder is None:
        return None
    folders = [file.parent.name for file in image_files(folder)]
    classes, problems = classes_of_names(set(folders), labels)
    if problems:  # then a folder called 2024 is no class number, but one called cat still a cat
        classes = {n: c for n, c in classes.items() if spelling(n) == spelling(labels[c])}
    return np.array([classes.get(name, -1) for name in folders], np.int64) if classes else None


def image_files(folder: Path) -> list[Path]:
    """Every file below `folder` that is named like an image, sorted.

    Raises:
        UsageError: No such folder, or no image in it.
    """
    files = sorted(file for file in walk_images(folder) if file.is_file())
    if not files:
        raise _no_images(folder)
    return files


def walk_images(folder: Path) -> Iterator[Path]:
    """Whatever below `folder` is named like an image, in the same order every time.

    Kept in memory are the names of one folder; links to folders are not followed.

    Raises:
        UsageError: No such folder.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such directory of images")
    for path, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            if Path(name).suffix.lower() in SUFFIXES:
                yield Path(path, name)


def listed(problems: Sequence[str]) -> str:
    """The first problems, one a line, and how many more there are."""
    more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
    return "".join(f"\n  {problem}" for problem in [*problems[:_SHOWN], *more])


def _no_images(folder: Path) -> UsageError:
    return UsageError(f"{folder}: no images in it ({', '.join(sorted(SUFFIXES))})")
