"""Dockerfiles as data: stages, and the instructions in them. hadolint judges the grammar.

https://docs.docker.com/reference/dockerfile/, as far as the files in docker/ use it.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


class Instruction(NamedTuple):
    """One instruction: RUN, {"mount": "..."}, the rest of the line."""

    name: str
    flags: dict[str, str]
    text: str

    @property
    def words(self) -> list[str]:
        """The arguments: of the JSON form, or split as a shell does."""
        if self.text.startswith("["):
            return [str(word) for word in json.loads(self.text)]
        return shlex.split(self.text)

    @property
    def pairs(self) -> dict[str, str]:
        """The NAME=VALUE of ENV, LABEL and ARG; an ARG without a value has none here."""
        return dict(word.split("=", 1) for word in self.words if "=" in word)


@dataclass(frozen=True)
class Stage:
    """What begins with a FROM."""

    base: str
    name: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, name: str) -> list[Instruction]:
        """The instructions of one name."""
        return [one for one in self.instructions if one.name == name]


def stages(path: Path) -> list[Stage]:
    """Read a Dockerfile; its global ARGs are put into the FROM lines."""
    arguments: dict[str, str] = {}
    found: list[Stage] = []
    for one in instructions(path.read_text(encoding="utf-8")):
        if one.name == "FROM":
            base, *rest = one.words
            found.append(Stage(expanded(base, arguments), rest[1] if rest else ""))
        elif found:
            found[-1].instructions.append(one)
        else:
            arguments |= one.pairs
    return found


def instructions(text: str) -> list[Instruction]:
    """Lines joined where they end in a backslash, without comments."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found = []
    for line in filter(str.strip, joined.splitlines()):
        name, _, rest = line.strip().partition(" ")
        flags = {}
        while match := re.match(r"--([\w-]+)=(\S+)\s+", rest):
            flags[match[1]] = match[2]
            rest = rest[match.end() :]
        found.append(Instruction(name.upper(), flags, rest.strip()))
    return found


def expanded(text: str, values: Mapping[str, str]) -> str:
    """Put variables in; an unknown one is empty."""
    return VARIABLE.sub(lambda match: values.get(match[1] or match[2], ""), text)
