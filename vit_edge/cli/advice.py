"""What is wrong with a command line, and the whole line to type instead."""

from __future__ import annotations

import difflib
import os
import shlex
from collections import deque
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from vit_edge.cli.habits import (
    ALONE,
    CALIBRATED,
    FALSE,
    FORMATS,
    OWN_IMAGES,
    TRUE,
    VALUE_HABITS,
    VERB_HABITS,
    Habit,
    habit_of,
    is_taken,
    plain_name,
)
from vit_edge.cli.verbs import LINES, VERBS, parser_of
from vit_edge.cli.words import Item, Line, take_values

if TYPE_CHECKING:
    from vit_edge.cli.parser import Parser

_BUNDLE = "bundles/mine"  # where a command of two steps writes in between
_ONCE = ("--calibration", "--max-batch", "--precision")  # of several, one is kept
_SOURCES = ("--model", "--variant", "--checkpoint", "--onnx", "--list-variants")


def refusal(parser: Parser, line: Line) -> str | None:
    """Say what is wrong with a line of a verb's, and what to type instead; None if nothing is."""
    meant = _verb_behind(parser.verb, line) or _verb_of_others(parser.verb, line)
    if meant is not None:
        return meant
    draft = _Draft(parser, line)
    if not draft.problems:
        return None
    return _message(draft.problems, draft.commands() if draft.mended else [])


def _verb_behind(verb: str, line: Line) -> str | None:
    """Recognise bench reprot, and bench --json report: the second word of a verb."""
    words = line.ordered()
    first = next((item.text[0] for item in line.items if item.key is None), "")
    behind = [name.split()[1] for name in LINES if name.startswith(f"{verb} ")]
    near = difflib.get_close_matches(first.lower(), behind, n=1, cutoff=0.75)
    if not near or os.path.lexists(first):
        return None
    words.remove(first)
    why = "the verb comes first" if first in behind else f"did you mean {verb} {near[0]}?"
    return _message([f"{first}: {why}"], [_command(f"{verb} {near[0]}", words, [])])


def _verb_of_others(verb: str, line: Line) -> str | None:
    """Recognise a verb of ours that others give a checkpoint, where ours takes a bundle."""
    first = next((item.text[0] for item in line.items if item.key is None), "")
    if verb not in VERB_HABITS or not _like_a_checkpoint(first):
        return None
    name, *words = VERB_HABITS[verb]
    words = [] if any(item.key == "--precision" for item in line.items) else words
    parser = parser_of(name)
    typed = (word for item in line.items for word in item.text)
    draft = _Draft(parser, parser.read([*words, *typed]))
    why = f"{first} is no bundle; a checkpoint takes one step: {shlex.join(VERB_HABITS[verb])}"
    return _message([why, *draft.problems], draft.commands() if draft.mended else [])


def _like_a_checkpoint(text: str) -> bool:
    """Tell a weight file, and ORG/NAME of a hub, from a bundle that is missing."""
    path = Path(text)
    hub = text.count("/") == 1 and not path.parent.is_dir() and path.parent.name != "bundles"
    return not path.is_dir() and (path.is_file() or bool(path.suffix) or hub) and ":" not in text


def refusal_of_verb(typed: Sequence[str]) -> str:
    """Say what to type where the first word behind vit-edge is no verb."""
    meant = _verb_meant(*typed)
    if meant is None:
        return f"error: no verb {typed[0]!r}; there are: {', '.join(VERBS)}"
    why, words = meant
    if words[0].startswith("-"):
        return _message([why], [f"vit-edge {words[0]}"])
    name = " ".join(words[:2]) if " ".join(words[:2]) in LINES else words[0]
    parser = parser_of(name)
    draft = _Draft(parser, parser.read(words[len(name.split()) :]))
    return _message([why, *draft.problems], draft.commands())


def _verb_meant(verb: str, *rest: str) -> tuple[str, list[str]] | None:
    """What was meant where a verb should stand: why, and the words from the verb on."""
    if verb.startswith(("mode=", "--mode=")) and rest:
        return _verb_meant(verb.partition("=")[2], *rest)
    if verb in VERBS:
        return f"{verb} is a verb", [verb, *rest]
    if verb.startswith("-") or ("=" in verb and not os.path.lexists(verb)):
        later = next((word for word in rest if word in VERBS), None)
        others = [word for word in (verb, *rest) if word != later]
        return None if later is None else ("the verb comes first", [later, *others])
    if Path(verb, "manifest.json").exists():
        told = f"{verb} is a bundle and no verb; did you mean predict?"
        return told, ["predict", verb, *rest]
    words = None if plain_name(verb) in VERBS else VERB_HABITS.get(plain_name(verb))
    if words is not None and not os.path.lexists(verb):
        front = 1 if words[1:] and words[1].startswith("-") else len(words)
        told = f"no verb {verb!r}; here it is {shlex.join(words)}"
        return told, [*words[:front], *rest, *words[front:]]
    near = difflib.get_close_matches(plain_name(verb), VERBS, n=1)
    if near and not os.path.lexists(verb):
        return f"no verb {verb!r}; did you mean {near[0]}?", [near[0], *rest]
    if "/" in verb or os.path.lexists(verb):
        other = "predict" if rest and not rest[0].startswith("-") else "export"
        return f"{verb} is no verb; did you mean {other}?", [other, verb, *rest]
    return None


class _Draft:
    """The line that was meant, as far as it can be told."""

    def __init__(self, parser: Parser, line: Line) -> None:
        self._parser = parser
        self.problems: list[str] = []
        self.mended = True  # every word that was wrong is mended or left out
        self._alone: list[str] = []
        self._options: list[tuple[str, ...]] = []
        self._elsewhere: dict[str, list[tuple[str, ...]]] = {}  # verb -> its options
        self._rest = deque(line.items)
        while self._rest:
            self._take(self._rest.popleft())
        self._check_alone()

    def commands(self) -> list[str]:
        """What to type, one command after the other."""
        verb, here, there = self._parser.verb, [*self._options], dict(self._elsewhere)
        alone = [*self._alone, *self._missing()]
        takes_bundle = [one.metavar for one in self._parser.positionals()][:1] == ["BUNDLE"]
        lines, later = list[str](), list[str]()
        here = _calibrated(here) if "--calibration" in self._parser.options() else here
        if verb == "export":
            if ("--backend", "trt") in there.get("build", []):
                here = _for_gpu(here)
            if there and not any(option[0] in ("--out", "-o") for option in here):
                here.append(("--out", _BUNDLE))
        elif exported := there.pop("export", None):
            lines.append(_command("export", ["SOURCE"], [*exported, ("--out", _BUNDLE)]))
            alone[:1] = [_BUNDLE] if takes_bundle else alone[:1]
        bundle = alone[0] if takes_bundle and alone else "BUNDLE"
        if verb == "export":
            bundle = next((option[-1] for option in here if option[0] in ("--out", "-o")), bundle)
        for other, options in there.items():
            command = _command(other, [bundle, *_needed(parser_of(other))[1:]], options)
            (later if verb == "export" else lines).append(command)
        return [*lines, _command(verb, alone, here), *later]

    def _take(self, item: Item) -> None:
        plain = plain_name(item.text[0])
        if item.key is None:
            if plain in ALONE and not os.path.lexists(item.text[0]):
                habit = habit_of(plain, self._parser.verb, self._parser.options())
                if habit is not None:
                    self._follow(habit, item.text[0], None)
                    return
            self._alone.append(item.text[0])
        elif item.action is not None:
            words = item.text if item.value is None else (item.key, item.value)
            known = item.action.choices or ()  # names of its own, such as Triton's of its backends
            self._add(words if words[-1].lower() in known else self._renewed_value(words))
        else:
            self._mend(item, item.key)

    def _renewed_value(self, words: tuple[str, ...]) -> tuple[str, ...]:
        """An option whose value is another tool's name for one of ours."""
        ours = VALUE_HABITS.get(words[0], {}).get(plain_name(words[-1]))
        if ours is None or ours == words[-1].lower():
            return words
        self.problems.append(f"{shlex.join(words)}: here it is {ours}")
        return (*words[:-1], ours)

    def _mend(self, item: Item, key: str) -> None:
        """Find out what a word means that is no option."""
        options, plain = self._parser.options(), plain_name(key)
        ours = {plain_name(flag): flag for flag in options if flag.startswith("--")}
        old = {plain_name(flag): new for flag, new in self._parser.old.items()}
        habit = habit_of(plain, self._parser.verb, self._parser.options())
        flag = ours.get(plain) or old.get(plain)
        if flag is None and habit is not None:
            self._follow(habit, key, item.value)
            return
        if flag is None:
            near = difflib.get_close_matches(plain, [*ours, *old], n=1, cutoff=0.7)
            flag = (ours | old)[near[0]] if near else None
        if flag is None:
            self._of_another_verb(key, plain)
            return
        setting = not item.text[0].startswith("-")
        self.problems.append(
            f"{item.text[0]}: options are written with dashes"
            if setting
            else f"no option {key}; did you mean {flag}?"
        )
        self._rename(flag, item)

    def _rename(self, flag: str, item: Item) -> None:
        action = self._parser.options()[flag]
        if action.nargs == 0:
            if (item.value or "").lower() in TRUE:
                self._options.append((flag,))
        elif item.value is not None:
            self._add((flag, item.value))
        else:
            alone = deque(one.text[0] for one in takewhile(lambda one: one.key is None, self._rest))
            values = take_values(action, alone)
            for _ in values:
                self._rest.popleft()
            self._add((flag, *values))

    def _follow(self, habit: Habit, typed: str, value: str | None) -> None:
        """Do what another tool's word means here."""
        if habit.flag:
            if value is not None and value.lower() in FALSE:
                self.problems.append(f"{typed}={value}: it is so without saying")
                return
            if value is None and self._rest and self._rest[0].text[0].lower() in TRUE | FALSE:
                self._rest.popleft()
        elif value is None:
            value = " ".join(self._numbers_or_one())
        if not habit.words:
            self.problems.append(f"{typed}: not needed, {habit.why}")
            return
        read = value if habit.reads is None or value is None else habit.reads(value)
        if typed.lstrip("-") == "format" and (value or "").lower() == "onnx":
            self.problems.append(f"{typed}: not needed, a bundle holds its model as ONNX")
        elif read is None and not habit.flag:
            self.problems.append(f"{typed} {value}: nothing here is called so")
            self.mended = False
        else:
            self._give(habit, typed, read or "")

    def _give(self, habit: Habit, typed: str, value: str) -> None:
        words = tuple(word.replace("{}", value) for word in habit.words)
        verb = self._parser.verb
        if verb == "export" and plain_name(typed) in ("device", "gpu"):
            self.problems.append(f"{typed}: not needed, a bundle runs where it is opened")
            return
        here = is_taken(habit, verb, self._parser.options())
        where = "" if here else f" of vit-edge {habit.verbs[0]}"
        self.problems.append(f"{typed}: here it is {shlex.join(words)}{where}")
        if not words[0].startswith("-"):
            self._alone.append(words[0])
        elif not here and words[0] == "--model":  # every other verb takes a bundle
            self.problems[-1] = f"{typed}: here the bundle stands alone"
            self._alone.insert(0, value)
        elif here:
            self._add(words[:2])
            for pair in zip(words[2::2], words[3::2], strict=True):
                if not any(option[0] == pair[0] for option in self._options):
                    self._add(pair)
        else:
            pairs = self._elsewhere.setdefault(habit.verbs[0], [])
            pairs += [words[at : at + 2] for at in range(0, len(words), 2)]

    def _add(self, words: tuple[str, ...]) -> None:
        """Add an option; of another one that says the same, what is more is kept."""
        name, value = words[0], words[-1]
        place = next((at for at, known in enumerate(self._options) if known[0] == name), None)
        known = "" if place is None else self._options[place][-1]
        if place is None or (name not in _ONCE and words != self._options[place]):
            self._options.append(words)
        elif name == "--calibration":
            self._options[place] = words if known == OWN_IMAGES else self._options[place]
        elif name == "--max-batch" and known.isdecimal() and value.isdecimal():
            self._options[place] = (name, str(max(int(known), int(value))))
        elif name == "--precision" and known != "int8":
            self._options[place] = words

    def _of_another_verb(self, key: str, plain: str) -> None:
        self.mended = False
        for verb in LINES:
            for flag in parser_of(verb).options():
                if flag.startswith("--") and plain_name(flag) == plain:
                    self.problems.append(f"{key}: that is an option of vit-edge {verb}")
                    return
        self.problems.append(f"no option {key}")

    def _check_alone(self) -> None:
        """More words than export has room for: optimum's format in front, or a directory behind."""
        if self._parser.verb != "export" or not self._alone:
            positionals = self._parser.positionals()
            room = len(positionals)
            endless = any(one.nargs in ("*", "+") for one in positionals)
            if self.problems and len(self._alone) > room and not endless:
                self.problems.append(f"no place for {', '.join(self._alone[room:])}")
                self.mended = False
            return
        named = any(option[0] in (*_SOURCES, "-m") for option in self._options)
        first = self._alone[0]
        if first in FORMATS and not os.path.lexists(first) and (named or len(self._alone) > 1):
            self._alone.pop(0)
            if first == "onnx":
                self.problems.append("onnx: not needed, a bundle holds its model as ONNX")
            else:
                habit = habit_of("format", "build", ())
                if habit is not None and habit.reads is not None:
                    self._give(habit, first, habit.reads(first) or "")
        room = 0 if named and self.problems else 1
        out = any(option[0] in ("--out", "-o") for option in self._options)
        if len(self._alone) == room + 1 and not out:
            folder = self._alone.pop()
            self.problems.append(f"{folder}: where to write is said by --out")
            self._options.append(("--out", folder))
        elif len(self._alone) > 1:
            more = ", ".join(self._alone[1:])
            self.problems.append(f"one source at a time, and no place for {more}")
            self.mended = False

    def _missing(self) -> list[str]:
        """Stand-ins for the words that have to be there."""
        if self._parser.verb == "export":
            named = any(option[0] in (*_SOURCES, "-m") for option in self._options)
            return [] if named or self._alone else ["SOURCE"]
        if self._parser.verb == "bench":  # which takes a suite as well
            suite = any(option[0] == "--suite" for option in self._options)
            return [] if suite or self._alone else ["BUNDLE"]
        return _needed(self._parser)[len(self._alone) :]

    def _numbers_or_one(self) -> list[str]:
        """Take a value off the line: one word, or as many as are numbers."""
        taken: list[str] = []
        while self._rest and self._rest[0].key is None:
            word = self._rest[0].text[0]
            if taken and not (word.isdecimal() and taken[0].isdecimal()):
                break
            taken.append(self._rest.popleft().text[0])
        return taken


def _needed(parser: Parser) -> list[str]:
    return [str(one.metavar) for one in parser.positionals() if one.nargs in (None, "+")]


def _for_gpu(options: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The recipe for a GPU instead of a precision, whose recipe is one for CPUs."""
    if any(option[0] == "--recipe" for option in options):
        return options
    precision = next((option[-1] for option in options if option[0] == "--precision"), "fp16")
    if not any(option[0] == "--precision" for option in options):
        options = _calibrated([("--precision", precision), *options])
    others = [option for option in options if option[0] != "--precision"]
    return [("--recipe", f"gpu-{precision}"), *others]


def _calibrated(options: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Add images where a precision cannot be chosen without."""
    names = [option[0] for option in options]
    low = [option for option in options if option[0] == "--precision" and option[-1] in CALIBRATED]
    if not low or "--calibration" in names:
        return options
    at = options.index(low[0]) + 1
    return [*options[:at], ("--calibration", OWN_IMAGES), *options[at:]]


def _command(verb: str, alone: Sequence[str], options: Sequence[tuple[str, ...]]) -> str:
    words = ["vit-edge", *verb.split(), *alone]
    return shlex.join([*words, *(word for option in options for word in option)])


def _message(problems: Sequence[str], commands: Sequence[str]) -> str:
    lines = ["error: " + problems[0], *(f"  and {problem}" for problem in problems[1:])]
    if commands:
        lines += ["type instead:", *(f"  {command}" for command in commands)]
        if f"--calibration {OWN_IMAGES}" in " ".join(commands):
            lines.append(f"{OWN_IMAGES}: a folder of images of the kind that the model will meet")
    return "\n".join(lines)
