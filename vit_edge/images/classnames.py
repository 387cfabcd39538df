"""Which class of a model a name stands for."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence

_SYNSET = re.compile(r"n\d{8}")  # WordNet 3.0, as ImageNet names its classes


def classes_of_names(
    names: Collection[str], labels: Sequence[str]
) -> tuple[dict[str, int], list[str]]:
    """Find the classes that names stand for.

    A name is, first of these that fits: a label; one of a label's synonyms ("tench" of "tench,
    Tinca tinca"); a class's number. Case does not matter, an underscore is a space. If none of the
    names is any of these, and they are as many WordNet synsets (n01440764) as there are classes,
    they are the classes in sorted order, as in every classifier of ImageNet.

    Args:
        names: Each once.
        labels: Of the model.

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
        meant = exact.get(key) or synonyms.get(key) or _numbers(name, len(labels))
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
    """
    name = name.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    return name.replace("_", " ").strip().casefold()


def _numbers(name: str, classes: int) -> list[int]:
    fits = re.fullmatch(r"[0-9]{1,9}", name) and int(name) < classes
    return [int(name)] if fits else []
