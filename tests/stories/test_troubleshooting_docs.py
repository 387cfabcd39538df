"""Each message of docs/troubleshooting.md is one that the code prints."""

from __future__ import annotations

import ast
import re
from functools import lru_cache
from pathlib import Path

import pytest

HEADING = re.compile(r"^### `(.+)`$", re.MULTILINE)
SECTION = re.compile(r"^### .*?(?=^##|\Z)", re.MULTILINE | re.DOTALL)
DIFFERS = "…"


def text_of(node: ast.expr) -> str:
    """A text of the source, with a sign where a value goes."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(text_of, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text_of(node.left) + text_of(node.right)
    return DIFFERS


@lru_cache
def texts(package: Path) -> str:
    """Every text of the package, one a line."""
    nodes = (
        node
        for path in sorted(package.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, (ast.Constant, ast.JoinedStr, ast.BinOp))
    )
    return "\n".join(" ".join(text_of(node).split()) for node in nodes)


def is_printed(message: str, package: Path) -> bool:
    parts = [re.escape(part.strip()) for part in message.split(DIFFERS)]
    return re.search("[^\n]*".join(parts), texts(package)) is not None


@pytest.fixture(scope="module")
def page(repository: Path) -> str:
    return (repository / "docs" / "troubleshooting.md").read_text("utf-8")


def test_each_message_is_one_that_the_code_prints(page: str, repository: Path) -> None:
    messages = HEADING.findall(page)
    assert len(messages) >= 25
    assert len(set(messages)) == len(messages)
    assert [one for one in messages if not is_printed(one, repository / "vit_edge")] == []


def test_a_message_that_nobody_prints_is_noticed(repository: Path) -> None:
    assert not is_printed("exists; --overwrite replaces it", repository / "vit_edge")
    assert not is_printed("MB free, … and nobody knows why", repository / "vit_edge")


def test_each_message_has_its_cause_and_what_to_do(page: str) -> None:
    sections = SECTION.findall(page)
    assert len(sections) == page.count("\n### ")
    for section in sections:
        assert section.count("**Cause.** ") == section.count("**Do.** ") == 1, section
