"""Pages are in sentences that one can read aloud."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.modules import module_from


@pytest.fixture(scope="module")
def prose(repository: Path) -> ModuleType:
    return module_from(repository / "scripts" / "prose.py")


def test_the_mean_sentence_of_every_page_is_short(prose: ModuleType) -> None:
    means = {str(page): prose.mean_words(page.read_text("utf-8")) for page in prose.pages()}
    assert len(means) > 20
    assert {name: mean for name, mean in means.items() if mean > prose.MOST_WORDS} == {}


def test_every_table_has_a_head(prose: ModuleType) -> None:
    parts = [part.split("\n") for page in prose.pages() for part in tables(page.read_text("utf-8"))]
    assert len(parts) > 100
    assert [part[0] for part in parts if len(part) < 2 or set(part[1]) - set("|-: ")] == []


def tables(text: str) -> list[str]:
    return re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        ("One two three. Four five.", [3, 2]),
        ("One two,\nthree four? Five.", [4, 1]),
        ("# A heading of five words\n\nOne two.\n\n| a | b |\n|---|---|\n| c | d |\n", [2]),
        ("One `two three four` five.", [3]),
        ("See [one two](three.md). `code` begins.", [3, 2]),
        ("First:\n\n- one two\n- three\n", [1, 2, 1]),
        ("Version 1.31 is 0.84 of 2.5 s. Good.", [7, 1]),
        ("```bash\nnot one word\n```\nOne.\n\n    nor this\n", [1]),
        ("**Cause.** One two. **Do.** Three.", [1, 2, 1, 1]),
    ],
)
def test_a_sentence_is_what_one_reads_in_a_breath(
    prose: ModuleType, text: str, lengths: list[int]
) -> None:
    assert [prose.words(one) for one in prose.sentences(text)] == lengths


def test_long_sentences_are_noticed(prose: ModuleType) -> None:
    assert prose.mean_words("word " * 30 + "end.") > prose.MOST_WORDS
