"""The protobuf wire format, read strictly and within limits.

A message is a sequence of fields, each a tag (number, wire type) and a value; a nested message is
a field of known length, so what is not of interest is skipped without being looked at.
Source: https://protobuf.dev/programming-guides/encoding/

Stricter than protobuf itself, because two parsers that disagree about a file are how a check is
passed by: a field of another wire type than declared, and a second value for a field that holds
one (which protobuf would merge), are refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from mmap import mmap
from typing import Any, NamedTuple

from vit_edge.errors import ModelError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types; 3 and 4, groups, ONNX never had

MAX_DEPTH = 100  # messages inside messages; protobuf's own limit
MAX_FIELDS = 2_000_000  # a graph of 10,000 nodes has about 300,000
MAX_TEXT_BYTES = 64 << 20  # of all names and metadata together
_MAX_FIELD_NUMBER = (1 << 29) - 1


class Span(NamedTuple):
    """A piece of the file, in bytes."""

    offset: int
    length: int


class Entry(NamedTuple):
    """What one declared field is called, and how its value is read.

    kind is "int" (a signed varint), "ints" (repeated, packed or not), "text", "span" (bytes that
    stay in the file) or the name of a message of the schema.
    """

    name: str
    kind: str
    many: bool = False


Schema = Mapping[str, Mapping[int, Entry]]
Message = dict[str, Any]  # by field name; a field that may repeat is always a list


class Field(NamedTuple):
    """One field of a message, as it lies in the file."""

    number: int
    wire_type: int
    at: int  # where its tag starts
    value: int  # of a varint
    start: int
    end: int


@dataclass
class Reader:
    """The bytes of a file, and how much work may still be spent on it."""

    data: mmap | bytes
    path: str | os.PathLike[str]
    schema: Schema
    fields_left: int = MAX_FIELDS
    text_left: int = field(default=MAX_TEXT_BYTES)

    def message(self, kind: str, start: int, end: int, depth: int = 0) -> Message:
        """Read the message `kind` of the schema in data[start:end].

        Raises:
            ModelError: Damaged, or beyond a limit; the byte is named.
        """
        if depth > MAX_DEPTH:
            raise self.error(start, f"more than {MAX_DEPTH} messages inside each other")
        declared = self.schema[kind]
        message: Message = {
            entry.name: [] for entry in declared.values() if entry.many or entry.kind == "ints"
        }
        for item in self.fields(start, end):
            entry = declared.get(item.number)
            if entry is None:
                continue
            value = self._value(kind, entry, item, depth)
            if entry.kind == "ints":
                message[entry.name] += value
            elif entry.many:
                message[entry.name].append(value)
            elif entry.name in message:
                raise self.error(item.at, f"{kind}.{entry.name} occurs twice")
            else:
                message[entry.name] = value
        return message

    def error(self, at: int, what: str) -> ModelError:
        """An error that names the file and the byte."""
        return ModelError(
            f"{self.path}: not a sound ONNX file: {what}, at byte {at} of {len(self.data)}. "
            "Copy it again, or export the model again."
        )

    def _value(self, kind: str, entry: Entry, item: Field, depth: int) -> Any:
        where = f"{kind}.{entry.name}"
        if entry.kind == "ints":
            return self._integers(where, item)
        if item.wire_type != (VARINT if entry.kind == "int" else BYTES):
            raise self.error(item.at, f"{where} has wire type {item.wire_type}")
        if entry.kind == "int":
            return _signed(item.value)
        if entry.kind == "span":
            return Span(item.start, item.end - item.start)
        if entry.kind == "text":
            return self._text(where, item)
        return self.message(entry.kind, item.start, item.end, depth + 1)

    def _integers(self, where: str, item: Field) -> list[int]:
        if item.wire_type == VARINT:
            return [_signed(item.value)]
        if item.wire_type != BYTES:
            raise self.error(item.at, f"{where} has wire type {item.wire_type}")
        values, at = [], item.start
        while at < item.end:
            self._spend(at)
            value, at = self._varint(at, item.end)
            values.append(_signed(value))
        return values

    def _text(self, where: str, item: Field) -> str:
        self.text_left -= item.end - item.start
        if self.text_left < 0:
            raise self.error(item.at, f"more than {MAX_TEXT_BYTES} bytes of names and metadata")
        try:
            return self.data[item.start : item.end].decode("utf-8")
        except UnicodeDecodeError:
            raise self.error(item.at, f"{where} is not UTF-8") from None

    def fields(self, start: int, end: int) -> Iterator[Field]:
        """Walk over the fields of the message in data[start:end]."""
        at = start
        while at < end:
            self._spend(at)
            tag_at = at
            tag, at = self._varint(at, end)
            number, wire_type = tag >> 3, tag & 7
            if not 0 < number <= _MAX_FIELD_NUMBER:
                raise self.error(tag_at, f"field number {number}")
            value, begin = 0, at
            if wire_type == VARINT:
                value, at = self._varint(at, end)
            elif wire_type == BYTES:
                length, begin = self._varint(at, end)
                at = begin + length
            elif wire_type in (FIXED32, FIXED64):
                at += 4 if wire_type == FIXED32 else 8
            else:
                raise self.error(tag_at, f"wire type {wire_type}")
            if at > end:
                raise self.error(
                    tag_at, f"field {number} ends {at - end} bytes behind what holds it"
                )
            yield Field(number, wire_type, tag_at, value, begin, at)

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        """The unsigned integer at `at`, and where the next thing starts."""
        value = 0
        for index in range(10):  # 64 bits, seven to a byte
            if at + index >= end:
                raise self.error(at, "an integer is cut off")
            byte = self.data[at + index]
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                if value >> 64:
                    break
                return value, at + index + 1
        raise self.error(at, "an integer has more than 64 bits")

    def _spend(self, at: int) -> None:
        self.fields_left -= 1
        if self.fields_left < 0:
            raise self.error(at, f"more than {MAX_FIELDS} fields")


def _signed(value: int) -> int:
    """Two's complement, as protobuf's int32, int64 and enums are stored."""
    return value - (1 << 64) if value >> 63 else value
