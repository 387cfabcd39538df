"""The words of a command line, each for what it is: an option with its values, or a word alone."""

from __future__ import annotations

import argparse
import os
import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_NUMBER = re.compile(r"-\d+|-\d*\.\d+")  # as argparse
_SETTING = re.compile(r"([A-Za-z][\w.-]*)=(.*)", re.DOTALL)  # ultralytics: imgsz=384


@dataclass(frozen=True)
class Item:
    """One option with its values, or one word."""

    text: tuple[str, ...]  # as typed, old spellings renewed
    key: str | None = None  # --name, or the name of name=value; None for a word alone
    value: str | None = None  # what stands behind the equals sign
    action: argparse.Action | None = None  # None: no option of ours


@dataclass
class Line:
    """A command line that was read."""

    items: list[Item] = field(default_factory=list)
    renewed: list[tuple[str, str]] = field(default_factory=list)  # old and new spellings used

    def ordered(self) -> list[str]:
        """The words, those without an option in one place.

        argparse gives a positional of any number what stands first, and knows no more of them then.
        """
        alone = [word for item in self.items if item.key is None for word in item.text]
        others = [word for item in self.items if item.key is not None for word in item.text]
        if any(_option_like(word) for word in alone):
            return [*others, "--", *alone]
        return [*alone, *others]


def read_line(
    words: Sequence[str], options: Mapping[str, argparse.Action], old: Mapping[str, str]
) -> Line:
    """Read words as argparse does, those that it would refuse included.

    Args:
        words: As typed.
        options: What there is.
        old: Old spellings, and what they are called now.
    """
    line, rest = Line(), deque(words)
    while rest:
        word = rest.popleft()
        if word == "--":
            line.items += [Item((one,)) for one in rest]
            break
        if _option_like(word):
            line.items.append(_option(word, rest, options, old, line))
        elif (setting := _SETTING.fullmatch(word)) and not os.path.lexists(word):
            line.items.append(Item((word,), setting[1], setting[2]))
        else:
            line.items.append(Item((word,)))
    return line


def _option(
    word: str,
    rest: deque[str],
    options: Mapping[str, argparse.Action],
    old: Mapping[str, str],
    line: Line,
) -> Item:
    flag, equals, value = word.partition("=")
    if flag in old:
        line.renewed.append((flag, old[flag]))
        flag, word = old[flag], old[flag] + word[len(flag) :]
    action = options.get(flag)
    if action is None and not flag.startswith("--") and word[:2] in options:  # -obundles/mine
        return Item((word,), word[:2], word[2:], options[word[:2]])
    if action is None:
        return Item((word,), flag, value if equals else None)
    values = [] if equals else take_values(action, rest)
    return Item((word, *values), flag, value if equals else None, action)


def take_values(action: argparse.Action, rest: deque[str]) -> list[str]:
    """Take an option's values off the words that follow it."""
    count = 1 if action.nargs in (None, "?") else action.nargs
    most = count if isinstance(count, int) else len(rest)
    values: list[str] = []
    while rest and len(values) < most and not _option_like(rest[0]):
        values.append(rest.popleft())
    return values


def _option_like(word: str) -> bool:
    return len(word) > 1 and word[0] == "-" and not _NUMBER.fullmatch(word)
