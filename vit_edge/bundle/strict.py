"""Frozen dataclasses from parsed JSON, strictly: every key, no other, and each of its type."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, Literal, TypeVar

_LARGEST = 2**53  # integers beyond it are not exact in every JSON reader; no field comes near
_JSON_NAMES = {dict: "an object", list: "a list"}
_Record = TypeVar("_Record")


def record_from_json(
    kind: type[_Record], value: object, where: str
) -> tuple[_Record | None, list[str]]:
    """Make a dataclass of parsed JSON; its fields may be dataclasses, tuples, dicts and literals.

    Returns:
        The record and no problems, or None and all of them, each beginning with `where`.
    """
    problems: list[str] = []
    record = _read(kind, value, where, problems)
    return (None if problems else record), problems


def _read(kind: Any, value: Any, where: str, problems: list[str]) -> Any:
    """Turn parsed JSON into `kind`, adding what does not fit to `problems`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin is Literal:
        if value not in arguments or isinstance(value, bool):
            problems.append(f"{where}: {value!r} is not one of {list(arguments)}")
        return value
    if origin in (typing.Union, types.UnionType):
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return None if value is None else _read(inner, value, where, problems)
    holder = dict if dataclasses.is_dataclass(kind) else {tuple: list}.get(origin, origin)
    if holder in _JSON_NAMES and not isinstance(value, holder):
        problems.append(f"{where}: expected {_JSON_NAMES[holder]}, got {type(value).__name__}")
        return None
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, value, where, problems)
    if origin is dict:
        return {k: _read(arguments[1], v, f"{where}.{k}", problems) for k, v in value.items()}
    if origin is tuple:
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(value) != len(kinds):
            problems.append(f"{where}: expected {len(kinds)} items, got {len(value)}")
        items = enumerate(zip(kinds, value, strict=False))
        return tuple(_read(kind, item, f"{where}[{i}]", problems) for i, (kind, item) in items)
    if kind in (int, float) and type(value) in (int, float) and not abs(value) < _LARGEST:
        problems.append(f"{where}: {str(value)[:20]} is out of any range")
    elif kind is float and type(value) is int:
        return float(value)
    elif type(value) is not kind:
        problems.append(f"{where}: expected {kind.__name__}, got {value!r}")
    return value


def _read_dataclass(kind: Any, value: dict[str, Any], where: str, problems: list[str]) -> Any:
    hints, before = typing.get_type_hints(kind), len(problems)
    problems += [f"{where}.{key}: unknown key" for key in sorted(value.keys() - hints.keys())]
    problems += [f"{where}.{key}: missing" for key in sorted(hints.keys() - value.keys())]
    fields = {
        key: _read(hint, value[key], f"{where}.{key}", problems)
        for key, hint in hints.items()
        if key in value
    }
    return kind(**fields) if len(problems) == before else None
