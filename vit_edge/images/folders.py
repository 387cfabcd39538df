"""Images in folders, and the classes that folders or a CSV file give them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from vit_edge.errors import ImageError, InputError, UsageError
from vit_edge.images.classnames import (
    OF_A_TABLE,
    classes_of_folders,
    classes_of_names,
    no_and_yes,
    other_name,
    spelling,
)
from vit_edge.images.tables import Locator, Table
from vit_edge.images.walk import SUFFIXES, Skipped, walk_images

_LOG = logging.getLogger("vit_edge")

PHOTOS = Path(__file__).resolve().parents[1] / "data" / "photos"  # those that the package carries
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
        labels: Of the model; what may name a class is said in `classes_of_names`. A single one is
            that of a yes or no: class 1, and class 0 is its absence (see `no_and_yes`).

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
    """Images below a folder, counted by the folders that they lie in."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        skipped = Skipped()
        self._counts = Counter(self._way(file) for file in walk_images(folder, skipped))
        skipped.say(folder)
        if not self._counts:
            raise _no_images(folder)
        self._classes: dict[tuple[str, ...], int] = {}  # empty: nobody knows

    def __len__(self) -> int:
        return self._counts.total()

    def __iter__(self) -> Iterator[LabelledImage]:
        for path in walk_images(self._folder):
            label = self._classes.get(self._way(path), UNKNOWN)
            yield LabelledImage(path.relative_to(self._folder).as_posix(), path, label)

    def _way(self, file: Path) -> tuple[str, ...]:
        return folders_to(file, self._folder)


class Unlabelled(_FolderImages):
    """Images of a folder whose classes nobody knows."""


class LabelledFolder(_FolderImages):
    """Images that lie in folders called like their classes (torchvision's ImageFolder)."""

    def __init__(self, folder: Path, labels: Sequence[str]) -> None:
        """Look at every folder once; only their names are kept.

        Raises:
            UsageError: No such folder, or no image in it.
            InputError: A folder that names no class.
        """
        super().__init__(folder)
        names = no_and_yes(labels[0]) if len(labels) == 1 else labels
        self._classes, problems = classes_of_folders(self._counts, names)
        other = other_name(self._classes.values(), problems) if len(labels) == 1 else None
        if other is not None:
            _say_other(folder, other, labels[0])
            self._classes |= {way: 0 for way in self._counts if way[0] == other}
        elif problems:
            tops = {way[0] for way in self._counts}
            raise InputError(
                f"{folder}: {len(problems)} of {len(tops)} folders name no class of this "
                f"model{listed(list(problems.values()))}\n"
                "Rename them, or give the classes with --labels-from FILE.csv"
            )


class LabelledCsv:
    """Images that a table lists, their paths relative to the data's folder; see images.tables."""

    def __init__(self, folder: Path, file: Path, labels: Sequence[str]) -> None:
        """Read every line once; only the different labels are kept.

        Raises:
            UsageError: No such folder or file.
            InputError: It is no such table, lists nothing, or a label names no class.
        """
        if not folder.is_dir():
            raise UsageError(f"{folder}: no such directory of images")
        names = no_and_yes(labels[0]) if len(labels) == 1 else labels
        self._rows, self._locator = Table(file, names), Locator(folder, file)
        counts = Counter(label for _, label in self._rows)
        if not counts:
            raise InputError(f"{file}: lists no image; expected a line path,label for each")
        self._classes, sentences = classes_of_names(counts, names, numbers=OF_A_TABLE)
        problems = dict(zip(sorted(counts.keys() - self._classes.keys()), sentences, strict=True))
        other = other_name(self._classes.values(), problems) if len(labels) == 1 else None
        if other is not None:
            _say_other(file, other, labels[0])
            self._classes[other] = 0
        elif problems:
            raise InputError(
                f"{file}: {len(problems)} of {len(counts)} labels name no class of this model"
                f"{listed(sentences)}\nWrite a label as labels.txt of the bundle has it, or its "
                f"number from 0 to {len(names) - 1}"
            )
        self._images = sum(counts.values())

    def __len__(self) -> int:
        return self._images

    def __iter__(self) -> Iterator[LabelledImage]:
        for path, label in self._rows:
            yield LabelledImage(path, self._locator.find(path), self._classes[label])


def _say_other(where: Path, name: str, label: str) -> None:
    _LOG.info("%s: %s counts as the absence of %s", where, name, label)


def folders_to(file: Path, folder: Path) -> tuple[str, ...]:
    """The names of the folders on the way to a file; the data's own where there are none."""
    return file.relative_to(folder).parts[:-1] or (folder.resolve().name,)


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
    ways = [folders_to(file, folder) for file in _files_below(folder, Skipped())]
    classes, problems = classes_of_folders(set(ways), labels)
    if problems:  # then a folder called 2024 is no class number, but one called cat still a cat
        classes = {
            way: place
            for way, place in classes.items()
            if spelling(labels[place]) in map(spelling, way)
        }
    return np.array([classes.get(way, UNKNOWN) for way in ways], np.int64) if classes else None


def image_files(folder: Path) -> list[Path]:
    """Every file below `folder` that is named like an image, sorted; what is skipped is logged.

    Raises:
        UsageError: No such folder, or no image in it.
    """
    skipped = Skipped()
    files = _files_below(folder, skipped)
    skipped.say(folder)
    if not files:
        raise _no_images(folder)
    return files


def _files_below(folder: Path, skipped: Skipped) -> list[Path]:
    return sorted(file for file in walk_images(folder, skipped) if file.is_file())


def listed(problems: Sequence[str]) -> str:
    """The first problems, one a line, and how many more there are."""
    more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
    return "".join(f"\n  {problem}" for problem in [*problems[:_SHOWN], *more])


def _no_images(folder: Path) -> UsageError:
    return UsageError(f"{folder}: no images in it ({', '.join(sorted(SUFFIXES))})")
