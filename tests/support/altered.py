"""JSON with one value of another kind."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value inside another, of lists to the first entry only."""
    entries: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        entries = list(value.items())
    elif isinstance(value, list):
        entries = list(enumerate(value))[:1]
    return [p for key, entry in entries for p in [(*path, key), *places(entry, (*path, key))]]


def altered(whole: dict[str, Any], wrong: Any) -> Iterator[dict[str, Any]]:
    """A value with `wrong` in place of each that is inside it, one after the other."""
    for path in places(whole):
        copied = copy.deepcopy(whole)
        place: Any = copied
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = wrong
        yield copied
