"""JSON to frozen dataclasses and back, strictly: files come from other machines, and other people.

The annotations of a dataclass say what its JSON holds. Keys that it does not know are left out. Of
a field's metadata, `key` is its key in JSON, `each` what messages call an entry of its list, and
`omitted` says that it is not written where it is None.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast, get_args, get_origin

import numpy as np

_MOST = 1e18  # beyond any time, size or count
_MOST_OF_PAIR = 1e4  # a pair is an interval of a rate, or two temperatures

T = TypeVar("T")
Word = str | int | float | bool | None  # of facts and options
Times = Sequence[float]  # positive numbers
Pair = tuple[float, float]


def decoded(kind: type[T], value: object, where: str, problems: list[str]) -> T | None:
    """Read an object of JSON.

    Args:
        kind: A dataclass. Its method `decoded`, if it has one, reads in place of this function. Its
            method `faults`, if it has one, says what is wrong with it as a whole.
        value: The object.
        where: Its place in the file, as messages begin.
        problems: What is wrong with it is added here, each with its place.

    Returns:
        None where there are problems.
    """
    if not isinstance(value, dict):
        problems.append(f"{where}is {short(value)}, expected an object")
        return None
    if (own := getattr(kind, "decoded", None)) is not None:
        found: T | None = own(value, where, problems)
        return found
    before, values, hints = len(problems), {}, _hints(cast(type, kind))
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]  # T is a dataclass
        name = field.metadata.get("key", field.name)
        if name in value:
            place = _Place(where, name, field.metadata.get("each", ""))
            values[field.name] = _value(hints[field.name], value[name], place, problems)
        elif field.default is field.default_factory is dataclasses.MISSING:
            problems.append(f"{where}lacks {name!r}")
    if len(problems) > before:
        return None
    made = kind(**values)
    problems += [f"{where}{fault}" for fault in getattr(made, "faults", list)()]
    return None if len(problems) > before else made


def encoded(value: Any) -> Any:
    """What a dataclass, or anything inside it, is in JSON."""
    if (own := getattr(value, "encoded", None)) is not None:
        return own()
    if dataclasses.is_dataclass(value):
        return {
            field.metadata.get("key", field.name): encoded(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if not (field.metadata.get("omitted") and getattr(value, field.name) is None)
        }
    if isinstance(value, Mapping):
        return {name: encoded(one) for name, one in value.items()}
    return [encoded(one) for one in value] if isinstance(value, (list, tuple)) else value


def check_values(hint: Any, values: Mapping[str, Any], where: str, problems: list[str]) -> None:
    """Add what is wrong with values that all have one kind."""
    for name, value in values.items():
        _value(hint, value, _Place(where, name), problems)


def short(value: object) -> str:
    """A value as messages show it."""
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


class _Place(typing.NamedTuple):
    """Of a value in a file."""

    where: str
    name: str
    each: str = ""  # what an entry of it is called

    def __str__(self) -> str:
        return self.where + self.name


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _value(hint: Any, value: Any, place: _Place, problems: list[str]) -> Any:
    """A value of the kind that an annotation says; each problem with it is added."""
    if hint is Any:
        return value
    if hint == Word:
        if isinstance(value, (dict, list)):
            problems.append(f"{place} is {short(value)}, expected text or a number")
        return value
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(one for one in get_args(hint) if one is not type(None))
    if dataclasses.is_dataclass(hint):
        return decoded(cast(type, hint), value, f"{place}: ", problems)
    if hint == Times:
        return _times(value, place, problems)
    if hint == Pair:
        return _pair(value, place, problems)
    return _collection(hint, value, place, problems)


def _collection(hint: Any, value: Any, place: _Place, problems: list[str]) -> Any:
    """A list, an object with any keys, or one number, text or truth."""
    origin = get_origin(hint)
    if origin is None:
        return _scalar(hint, value, place, problems)
    if origin is not tuple and isinstance(value, dict):
        inside, of = f"{place}: ", get_args(hint)[1]
        return {k: _value(of, one, _Place(inside, k), problems) for k, one in value.items()}
    if not (origin is tuple and isinstance(value, list)):
        kind = "list" if origin is tuple else "object"
        problems.append(f"{place} is {short(value)}, expected {kind}")
        return None
    of = get_args(hint)[0]
    if dataclasses.is_dataclass(of):
        start = f"{place.where}{place.each} "
        return tuple(
            decoded(cast(type, of), one, f"{start}{number}: ", problems)
            for number, one in enumerate(value, 1)
        )
    problems += [f"{place} holds {short(one)}" for one in value if type(one) is not of]
    return tuple(value)


def _scalar(kind: type, value: Any, place: _Place, problems: list[str]) -> Any:
    """A number within all measure, text, or a truth, which is no number."""
    allowed = (int, float) if kind is float else (kind,)
    if not isinstance(value, allowed) or (type(value) is bool and kind is not bool):
        problems.append(f"{place} is {short(value)}, expected {kind.__name__}")
    elif isinstance(value, (int, float)) and not abs(value) < _MOST:  # NaN is not, either
        problems.append(f"{place} is {short(value)}")
    return value


def _times(value: Any, place: _Place, problems: list[str]) -> Any:
    """Numbers over 0, of which there are too many to look at each by itself."""
    try:
        times = np.asarray(value, dtype=float) if isinstance(value, list) else np.array(0.0)
    except (TypeError, ValueError, OverflowError):
        times = np.array(0.0)
    if times.ndim != 1 or not np.all((times > 0) & (times < _MOST)):
        problems.append(f"{place} holds what is no positive number")
    return value


def _pair(value: Any, place: _Place, problems: list[str]) -> Any:
    numbers = isinstance(value, list) and all(type(one) in (int, float) for one in value)
    if not (numbers and len(value) == 2 and all(abs(one) < _MOST_OF_PAIR for one in value)):
        problems.append(f"{place} is {short(value)}, expected two numbers")
        return None
    return tuple(value)
