"""The text form of protocol buffers, in which Triton's configurations are written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}


class Word(str):
    """A value of an enum, such as KIND_CPU: it stands without quotes."""


def text_from_message(message: Mapping[str, Any]) -> str:
    """Write a message: a mapping is a message of its own, a list a field that is repeated."""
    return "\n".join(_lines(message, "")) + "\n"


def _lines(message: Mapping[str, Any], indent: str) -> Iterator[str]:
    for name, value in message.items():
        if isinstance(value, list) and value and not isinstance(value[0], Mapping):
            yield f"{indent}{name}: [ {', '.join(map(_scalar, value))} ]"
            continue
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, Mapping):
                yield f"{indent}{name} {{"
                yield from _lines(one, indent + "  ")
                yield f"{indent}}}"
            else:
                yield f"{indent}{name}: {_scalar(one)}"


def _scalar(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and not isinstance(value, Word):
        return f'"{"".join(_escaped(character) for character in value)}"'
    return str(value)


def _escaped(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    if ord(character) < 32 or ord(character) == 127:  # octal, always of three digits
        return f"\\{ord(character):03o}"
    return character
