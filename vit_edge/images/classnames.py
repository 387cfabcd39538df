"""Which class of a model a name stands for."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence

_SYNSET = re.compile(r"n\d{8}")  # WordNet 3.0, as ImageNet names its classes
WHOLE = re.compile(r"([0-9]{1,9})")
OF_A_TABLE = re.compile(r"([0-9]{1,9})(\.0*)?")  # a spreadsheet may write 4 as 4.0


def classes_of_names(
    names: Collection[str], labels: Sequence[str], *, numbers: re.Pattern[str] | None = WHOLE
) -> tuple[dict[str, int], list[str]]:
    """Find the classes that names stand for.

    A name is, first of these that fits: a label; one of a label's synonyms ("tench" of "tench,
    Tinca tinca"); a class's number. Case and Unicode's form do not matter, an underscore is a
    space. If none of the names is any of these, and they are as many WordNet synsets (n01440764)
    as there are classes, they are the classes in sorted order, as in every classifier of ImageNet.

    Args:
        names: Each once.
        labels: Of the model.
        numbers: The numbers that may stand for a class, None for none.

    Returns:
        The class of each name that has one, and a sentence for each that has none.
    """
    exact = _by_spelling((label, index) for index, label in enumerate(labels))
    synonyms = _by_spelling(
        (part, index) for index, label in enumerate(labels) for part in set(label.split(","))
    )
    found: dict[str, int] = {}
    problems = []
    for name in sorted(names):
        key = spelling(name)
        meant = exact.get(key) or synonyms.get(key) or _numbers(name, len(labels), numbers)
        if len(meant) == 1:
            found[name] = meant[0]
        elif meant:
            problems.append(f"{name!r} may be class {' or '.join(map(str, meant))}")
        else:
            problems.append(f"{name!r} is no label, nor a number below {len(labels)}")
    if not found and len(names) == len(labels) and all(map(_SYNSET.fullmatch, names)):
        return {name: index for index, name in enumerate(sorted(names))}, []
    return found, problems


def _by_spelling(labels: Iterator[tuple[str, int]]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for label, index in labels:
        found.setdefault(spelling(label), []).append(index)
    return found


def spelling(name: str) -> str:
    """What two names have in common that mean the same.

    Where the locale has no UTF-8, Python holds the bytes of a folder's name as lone surrogates.
    macOS takes letters and accents apart.
    """
    name = name.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    return unicodedata.normalize("NFC", name).replace("_", " ").strip().casefold()


def _numbers(name: str, classes: int, numbers: re.Pattern[str] | None) -> list[int]:
    number = None if numbers is None else numbers.fullmatch(name)
    return [int(number[1])] if number and int(number[1]) < classes else []


def classes_of_folders(
    folders: Collection[tuple[str, ...]], labels: Sequence[str]
) -> tuple[dict[tuple[str, ...], int], dict[str, str]]:
    """Find the classes that folders stand for: by the top folder, as torchvision's ImageFolder.

    Where the top folder names no class, such as train, the next below it counts that does; a number
    does not, since sessions are often numbered.

    Args:
        folders: The names of each on the way from the data to the images.
        labels: Of the model.

    Returns:
        The class of each folder that has one, and a sentence for each top folder of the others.
    """
    tops = {folder[0] for folder in folders}
    classes, sentences = classes_of_names(tops, labels)
    problems = dict(zip(sorted(tops - classes.keys()), sentences, strict=True))
    below = {name for folder in folders if folder[0] in problems for name in folder[1:]}
    deeper, _ = classes_of_names(below, labels, numbers=None)
    found = {}
    for folder in folders:
        named = [classes[folder[0]]] if folder[0] in classes else []
        named += [deeper[name] for name in folder[1:] if name in deeper]
        if named:
            found[folder] = named[0]
    lost = {folder[0] for folder in folders if folder not in found}
    return found, {top: problem for top, problem in problems.items() if top in lost}


def no_and_yes(label: str) -> tuple[str, str]:
    """Name the two classes of a model with a single logit."""
    return f"not {label}", label


def other_name(found: Collection[int], problems: Mapping[str, str]) -> str | None:
    """Return the one name that stands for "no", such as good where the class itself is defect."""
    return next(iter(problems)) if len(problems) == 1 and set(found) == {1} else None
