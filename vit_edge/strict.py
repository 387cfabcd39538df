"""Strict JSON: frozen dataclasses from files that anybody may have written, and back.

The type hints of a dataclass are its schema. Known are str, bool, int (a count), float (a finite
number), Literal, `X | None`, `tuple[X, ...]`, `tuple[X, Y]`, `Mapping[str, X]` and other frozen
dataclasses; annotations narrow them: Keys, Rest, Check. `Rules` say which keys may be absent or
unknown. A dataclass refuses what its hints cannot say by a ValueError from `__post_init__`, or by
a method `faults` that names everything. Of a field's metadata, `key` is its key in JSON, and
`omitted` says that it is not written where it is None.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NoReturn, TypeAlias, TypeVar

from vit_edge.errors import LFS_MAGIC, LFS_POINTER, InputError

LARGEST_COUNT = 2**63  # NumPy counts no further

T = TypeVar("T")
# Returns what a value becomes and adds what is wrong with it; `where` is its place.
_Reader: TypeAlias = "Callable[[Any, str, list[str]], Any]"


class Rules(NamedTuple):
    """How a whole file is read."""

    # What is larger was not written by vit_edge, and would overflow in whoever shows it. By
    # default that of statistics, which are of float32 values.
    numbers_below: float = 3.5e38
    defaults: bool = True  # a field with a default may be absent
    unknown_keys: bool = True  # they are let through, and not kept
    to_float: bool = False  # a whole number becomes a float where one is expected


_BY_DEFAULT = Rules()


class Check(NamedTuple):
    """Of an annotated value: it is as it should be by this function, whatever its type."""

    words: str  # what it should be
    holds: Callable[[Any], bool]
    kept: Callable[[Any], Any] = lambda value: value  # what it becomes


class Keys(NamedTuple):
    """Of an annotated mapping: the keys that it may have."""

    known: frozenset[str]


class Rest(NamedTuple):
    """Of an annotated mapping: all keys of its object that are no fields, checked, as they come."""

    required: Mapping[str, Any]  # key -> hint; every other key may hold anything
    optional: Mapping[str, Any] = types.MappingProxyType({})


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
        return json_from_text(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged, or no JSON: {error}; {remedy}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def json_from_text(text: str | bytes) -> Any:
    """Parse JSON; NaN, Infinity and half of a pair of surrogates are none.

    Raises:
        ValueError: It is no JSON.
        RecursionError: It is too deep.
    """
    if (text.encode() if isinstance(text, str) else text).startswith(LFS_MAGIC):
        raise ValueError(LFS_POINTER)
    value = json.loads(text, parse_constant=_refuse_constant)
    json.dumps(value, ensure_ascii=False).encode()
    return value


def record_from_json(
    kind: type[T], value: Any, whole: str = "the file", rules: Rules = _BY_DEFAULT
) -> tuple[T, list[str]]:
    """Make a dataclass of a JSON value.

    Args:
        kind: The dataclass.
        value: As `json.loads` gives it.
        whole: What problems call the value itself.
        rules: What is allowed everywhere in it.

    Returns:
        The dataclass, and everything that is wrong with the value. Where anything is, the
        dataclass must not be used.
    """
    problems: list[str] = []
    hint: Any = kind
    record = _reader(hint, rules)(value, "", problems)
    return record, [f"{whole}{text}" if text[:1] == " " else text for text in problems]


def json_from_record(value: Any) -> Any:
    """What `record_from_json` reads: dictionaries, lists and plain values."""
    if dataclasses.is_dataclass(value):
        kind: Any = type(value)
        written: dict[str, Any] = {}
        for own, key, rest in _fields(kind):
            entry = json_from_record(getattr(value, own.name))
            if entry is not None or not own.metadata.get("omitted"):
                written |= entry if rest else {key: entry}
        return written
    if isinstance(value, Mapping):
        return {key: json_from_record(entry) for key, entry in value.items()}
    if isinstance(value, (tuple, list)):
        return [json_from_record(entry) for entry in value]
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def shown(value: object) -> str:
    """A value as messages show it."""
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
def _fields(kind: Any) -> list[tuple[dataclasses.Field[Any], str, Rest | None]]:
    """Every field, its key in JSON, and the mark of one that holds the rest of the keys."""
    return [
        (entry, entry.metadata.get("key", entry.name), _rest(_hints(kind)[entry.name]))
        for entry in dataclasses.fields(kind)
    ]


_PLAIN = {
    Any: Check("anything", lambda value: True),
    str: Check("a text", lambda value: isinstance(value, str)),
    bool: Check("true or false", lambda value: isinstance(value, bool)),
}


def _number(kind: type, rules: Rules) -> Check:
    below = min(LARGEST_COUNT, rules.numbers_below)
    if kind is int:
        return Check("a whole number from 0 on", lambda v: type(v) is int and 0 <= v < below)

    def holds(value: Any) -> bool:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and abs(value) < rules.numbers_below

    finite = Check("a finite number", holds)
    return finite._replace(kept=float) if rules.to_float else finite


@functools.cache
def _reader(hint: Any, rules: Rules) -> _Reader:
    """How values of a type are read."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in (int, float):
        return _checked(_number(hint, rules))
    if hint in _PLAIN:
        return _checked(_PLAIN[hint])
    if dataclasses.is_dataclass(hint):
        return _object(hint, rules)
    if origin is Annotated:
        (mark,) = hint.__metadata__
        if isinstance(mark, Check):
            return _checked(mark)
        return _mapping(_reader(typing.get_args(arguments[0])[1], rules), mark.known)
    if origin is Literal:
        words = f"{'one of ' * (len(arguments) > 1)}{', '.join(map(str, arguments))}"
        return _checked(
            Check(words, lambda v: any(type(v) is type(one) and v == one for one in arguments))
        )
    if origin in (typing.Union, types.UnionType):
        return _optional(_reader(next(one for one in arguments if one is not type(None)), rules))
    if origin is tuple:
        several = arguments[-1] is Ellipsis
        readers = [_reader(one, rules) for one in arguments if one is not Ellipsis]
        return _items(readers, several=several)
    return _mapping(_reader(arguments[1], rules), None)


def _checked(check: Check) -> _Reader:
    def read(value: Any, where: str, problems: list[str]) -> Any:
        if check.holds(value):
            return check.kept(value)
        problems.append(f"{where} is {shown(value)}, expected {check.words}")
        return None

    return read


def _optional(reader: _Reader) -> _Reader:
    return lambda value, where, problems: None if value is None else reader(value, where, problems)


def _items(readers: list[_Reader], *, several: bool) -> _Reader:
    def read(value: Any, where: str, problems: list[str]) -> Any:
        if not isinstance(value, list):
            problems.append(f"{where} is {shown(value)}, expected a list")
            return ()
        if not several and len(value) != len(readers):
            problems.append(f"{where} has {len(value)} entries, expected {len(readers)}")
        pairs = zip(itertools.cycle(readers) if several else readers, value, strict=False)
        return tuple(read(item, f"{where}[{i}]", problems) for i, (read, item) in enumerate(pairs))

    return read


def _mapping(reader: _Reader, known: frozenset[str] | None) -> _Reader:
    def read(value: Any, where: str, problems: list[str]) -> Any:
        if not isinstance(value, dict):
            problems.append(f"{where} is {shown(value)}, expected an object")
            return {}
        for key in value:
            if known is not None and key not in known:
                words = ", ".join(sorted(known))
                problems.append(f"{where} has {shown(key)}, known are {words}")
        return {key: reader(e, f"{where}[{shown(key)}]", problems) for key, e in value.items()}

    return read


def _object(kind: Any, rules: Rules) -> _Reader:
    absent, hints = dataclasses.MISSING, _hints(kind)
    rests = {entry.name: rest for entry, _, rest in _fields(kind) if rest is not None}
    own = {key: entry for entry, key, rest in _fields(kind) if rest is None}
    hinted = {key: hints[entry.name] for key, entry in own.items()}
    required = {
        key
        for key, entry in own.items()
        if not rules.defaults or entry.default is entry.default_factory is absent
    }
    for rest in rests.values():
        hinted |= {**rest.required, **rest.optional}
        required |= set(rest.required)
    readers = {key: _reader(hint, rules) for key, hint in hinted.items()}

    def read(value: Any, where: str, problems: list[str]) -> Any:
        if not isinstance(value, dict):
            problems.append(f"{where} is {shown(value)}, expected an object")
            return None
        before = len(problems)
        problems += [f"{where} lacks {key!r}" for key in readers if key in required - value.keys()]
        if not (rules.unknown_keys or rests):
            unknown = sorted(value.keys() - own.keys())
            problems += [f"{where} has {shown(key)}, an unknown key" for key in unknown]
        entries = {
            key: reader(value[key], f"{where}.{key}".removeprefix("."), problems)
            for key, reader in readers.items()
            if key in value
        }
        if len(problems) > before:
            return None
        entries = {own[key].name: entry for key, entry in entries.items() if key in own}
        rest = {key: entry for key, entry in value.items() if key not in own}
        try:
            record = kind(**entries, **dict.fromkeys(rests, rest))
            problems += [f"{where} {fault}" for fault in getattr(record, "faults", list)()]
            return record
        except ValueError as error:
            problems.append(f"{where} {error}")
            return None

    return read


def unmet(record: object, **checks: tuple[bool, str]) -> list[str]:
    """Say of each field that does not hold what it must be, and what it is."""
    problems = []
    for name, (holds, requirement) in checks.items():
        if not holds:
            value = getattr(record, name)
            shown = list(value) if isinstance(value, tuple) else value
            problems.append(f"{name} {requirement}, not {shown}")
    return problems
