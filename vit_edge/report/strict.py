"""Strict JSON: frozen dataclasses from files that anybody may have written, and back.

The type hints of a dataclass are its schema. Known are str, bool, int (a count), float (a finite
number), Literal, `X | None`, `tuple[X, ...]`, `tuple[X, Y]`, `Mapping[str, X]` and other frozen
dataclasses. A field with a default may be absent. Unknown keys are let through and not kept. A
dataclass refuses what its hints cannot say by a ValueError from `__post_init__`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeAlias, TypeVar

from vit_edge.errors import InputError

# Statistics are of float32 values, counts fit what NumPy counts with: what is larger was not
# written by vit_edge, and would overflow in whoever shows it.
LARGEST_NUMBER = 3.5e38
LARGEST_COUNT = 2**63

T = TypeVar("T")
# Returns what a value becomes and adds what is wrong with it; `where` is its place.
_Reader: TypeAlias = "Callable[[Any, str, list[str]], Any]"


@dataclass(frozen=True)
class Keys:
    """Of an annotated mapping: the keys that it may have."""

    known: frozenset[str]


@dataclass(frozen=True)
class Rest:
    """Of an annotated mapping: all keys of its object that are no fields, checked, as they come."""

    required: Mapping[str, Any]  # key -> hint; every other key may hold anything
    optional: Mapping[str, Any] = field(default_factory=dict)


def json_from_file(path: Path, *, largest_bytes: int, kind: str, remedy: str) -> Any:
    """Read a JSON file.

    Args:
        path: The file; it may come from anywhere, nothing in it is trusted.
        largest_bytes: A larger file is not read.
        kind: What the file should hold, for the message: "parity result".
        remedy: What to do about a damaged file.

    Raises:
        InputError: No such file, too large, unreadable, or no JSON.
    """
    try:
        if not path.is_file():  # a pipe or a device would block
            raise InputError(f"{path}: {'no file' if path.exists() else 'no such file'}")
        if path.stat().st_size > largest_bytes:
            raise InputError(f"{path}: larger than {largest_bytes >> 20} MiB: no {kind}")
        value = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
        json.dumps(value, ensure_ascii=False).encode()  # half of a pair of surrogates: no text
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged, or no JSON: {error}; {remedy}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    return value


def record_from_json(kind: type[T], value: Any, where: str = "the file") -> tuple[T, list[str]]:
    """Make a dataclass of a JSON value.

    Returns:
        The dataclass, and everything that is wrong with the value. Where anything is, the
        dataclass must not be used.
    """
    problems: list[str] = []
    hint: Any = kind
    return _reader(hint)(value, where, problems), problems


def json_from_record(value: Any) -> Any:
    """What `record_from_json` reads: dictionaries, lists and plain values."""
    if dataclasses.is_dataclass(value):
        kind: Any = type(value)
        written: dict[str, Any] = {}
        for name, rest in _fields(kind):
            entry = json_from_record(getattr(value, name))
            written |= entry if rest else {name: entry}
        return written
    if isinstance(value, Mapping):
        return {key: json_from_record(entry) for key, entry in value.items()}
    if isinstance(value, (tuple, list)):
        return [json_from_record(entry) for entry in value]
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)


def _rest(hint: Any) -> Rest | None:
    return next(
        (mark for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, Rest)), None
    )


@functools.cache
def _fields(kind: Any) -> list[tuple[str, Rest | None]]:
    return [(entry.name, _rest(_hints(kind)[entry.name])) for entry in dataclasses.fields(kind)]


_PLAIN: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    Any: ("anything", lambda value: True),
    str: ("a text", lambda value: isinstance(value, str)),
    bool: ("true or false", lambda value: isinstance(value, bool)),
    int: ("a whole number from 0 on", lambda v: type(v) is int and 0 <= v < LARGEST_COUNT),
    float: ("a finite number", lambda v: type(v) in (int, float) and abs(v) <= LARGEST_NUMBER),
}


@functools.cache
def _reader(hint: Any) -> _Reader:
    """How values of a type are read."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in _PLAIN:
        return _plain(*_PLAIN[hint])
    if dataclasses.is_dataclass(hint):
        return _object(hint)
    if origin is Annotated:
        (keys,) = (mark for mark in hint.__metadata__ if isinstance(mark, Keys))
        return _mapping(_reader(typing.get_args(arguments[0])[1]), keys.known)
    if origin is Literal:
        words = f"{'one of ' * (len(arguments) > 1)}{', '.join(map(str, arguments))}"
        return _plain(words, lambda v: any(type(v) is type(one) and v == one for one in arguments))
    if origin in (typing.Union, types.UnionType):
        return _optional(_reader(next(one for one in arguments if one is not type(None))))
    if origin is tuple:
        several = arguments[-1] is Ellipsis
        return _items([_reader(one) for one in arguments if one is not Ellipsis], several=several)
    return _mapping(_reader(arguments[1]), None)


def _plain(words: str, holds: Callable[[Any], bool]) -> _Reader:
    def read(value: Any, where: str, problems: list[str]) -> Any:
        if not holds(value):
            problems.append(f"{where} is {_shown(value)}, expected {words}")
        return value

    return read


def _optional(reader: _Reader) -> _Reader:
    return lambda value, where, problems: None if value is None else reader(value, where, problems)


def _items(readers: list[_Reader], *, several: bool) -> _Reader:
    def read(value: Any, where: str, problems: list[str]) -> Any:
        if not isinstance(value, list):
            problems.append(f"{where} is {_shown(value)}, expected a list")
            return ()
        if not several and len(value) != len(readers):
            problems.append(f"{where} has {len(value)} entries, expected {len(readers)}")
        pairs = zip(itertools.cycle(readers) if several else readers, value, strict=False)
        return tuple(read(item, f"{where}[{i}]", problems) for i, (read, item) in enumerate(pairs))

    return read


def _mapping(reader: _Reader, known: frozenset[str] | None) -> _Reader:
    def read(value: Any, where: str, problems: list[str]) -> Any:
        if not isinstance(value, dict):
            problems.append(f"{where} is {_shown(value)}, expected an object")
            return {}
        for key in value:
            if known is not None and key not in known:
                words = ", ".join(sorted(known))
                problems.append(f"{where} has {_shown(key)}, known are {words}")
        return {key: reader(e, f"{where}[{_shown(key)}]", problems) for key, e in value.items()}

    return read


def _object(kind: Any) -> _Reader:
    absent, hints = dataclasses.MISSING, _hints(kind)
    own = {entry.name: entry for entry in dataclasses.fields(kind)}
    rests = {name: rest for name, rest in _fields(kind) if rest is not None}
    for name in rests:
        del own[name]
    readers = {name: _reader(hints[name]) for name in own}
    required = {n for n, e in own.items() if e.default is absent and e.default_factory is absent}
    for rest in rests.values():
        hinted = {**rest.required, **rest.optional}
        readers |= {key: _reader(hint) for key, hint in hinted.items()}
        required |= set(rest.required)

    def read(value: Any, where: str, problems: list[str]) -> Any:
        if not isinstance(value, dict):
            problems.append(f"{where} is {_shown(value)}, expected an object")
            return None
        before = len(problems)
        problems += [f"{where} lacks {key!r}" for key in readers if key in required - value.keys()]
        entries = {
            key: reader(value[key], f"{where}.{key}".removeprefix("the file."), problems)
            for key, reader in readers.items()
            if key in value
        }
        if len(problems) > before:
            return None
        entries = {key: entry for key, entry in entries.items() if key in own}
        rest = {key: entry for key, entry in value.items() if key not in own}
        try:
            return kind(**entries, **dict.fromkeys(rests, rest))
        except ValueError as error:
            problems.append(f"{where} {error}")
            return None

    return read
