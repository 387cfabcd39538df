"""Every command that a page shows is one that the command line takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from vit_edge.cli.verbs import LINES, parser_of

BLOCK = re.compile(
    r"^```(?:bash|console|sh)\n(.*?)^```|^((?:    \S.*\n)+)", re.MULTILINE | re.DOTALL
)
COMMAND = re.compile(r"^(?: {4}|\$ )?vit-edge (.+)$", re.MULTILINE)
INLINE = re.compile(r"`vit-edge ([a-z][^`]*)`")
MODULE = re.compile(r"python -m vit_edge\b")
# The mission's own spelling, which README.md mentions once as the same.
SAME = "python -m vit_edge.export --variant base-patch16-224"


def pages(repository: Path) -> list[Path]:
    return [
        *(repository / name for name in ("README.md", "SECURITY.md", "docker/README.md")),
        *sorted((repository / "docs").rglob("*.md")),
        *sorted((repository / "examples").glob("*.md")),
    ]


def verb_of(words: list[str]) -> tuple[str, list[str]]:
    """A verb, with its second word where it has one, and what follows."""
    if " ".join(words[:2]) in LINES:
        return " ".join(words[:2]), words[2:]
    return words[0], words[1:]


def commands(text: str) -> list[str]:
    """The commands of a page's blocks, without what a shell does with their output."""
    bodies = (first or second for first, second in BLOCK.findall(text))
    joined = (re.sub(r" *\\\n\s*", " ", body) for body in bodies)
    return [
        re.split(r" (?:>|\|\|?|&&) ?", line)[0] for body in joined for line in COMMAND.findall(body)
    ]


def test_each_command_of_a_block_is_taken_as_it_stands(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = set()
    for page in pages(repository):
        for command in commands(page.read_text("utf-8")):
            if command.startswith("--"):  # of no verb
                continue
            verb, words = verb_of(shlex.split(command, comments=True))
            assert verb in LINES, f"{page.name}: vit-edge {command}"
            try:
                parser_of(verb).parse_args(words)
            except SystemExit:
                pytest.fail(f"{page.name}: vit-edge {command}\n{capsys.readouterr().err}")
            seen.add(verb)
    assert {"export", "predict", "build", "parity", "evaluate", "bench"} <= seen


def test_each_option_in_the_text_is_one_of_its_verb(repository: Path) -> None:
    for page in pages(repository):
        for command in INLINE.findall(page.read_text("utf-8")):
            verb, words = verb_of(command.split())
            assert verb in LINES, f"{page.name}: {command}"
            known = parser_of(verb)._option_string_actions
            options = [word.partition("=")[0] for word in words if word.startswith("-")]
            assert [one for one in options if one not in known] == [], f"{page.name}: {command}"


def test_what_is_taught_is_vit_edge(repository: Path) -> None:
    for page in pages(repository):
        text = page.read_text("utf-8").replace(SAME, "")
        text = re.sub(r"`python -m vit_edge(\.VERB)?`", "", text)
        assert not MODULE.search(text), f"{page.name} teaches python -m vit_edge"
