"""Every call that docs/python.md shows is one that its function takes."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import vit_edge
from tests.support.documents import BLOCK, blocks

requires = ("torch", "onnx", "onnxscript", "onnxruntime")


@pytest.fixture(scope="module")
def page(repository: Path) -> str:
    return (repository / "docs" / "python.md").read_text("utf-8")


def calls(code: str) -> Iterator[tuple[ast.Call, Any]]:
    """The calls of a block, with what they call; names that it does not import are left out."""
    tree = ast.parse(code)
    names: dict[str, Any] = {"vit_edge": vit_edge}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            module = import_module(node.module)
            names |= {alias.name: getattr(module, alias.name) for alias in node.names}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        match node.func:
            case ast.Name(id=name) if name in names:
                yield node, names[name]
            case ast.Attribute(value=ast.Name(id=owner), attr=name) if owner in names:
                yield node, getattr(names[owner], name)


def binds(call: ast.Call, function: Any) -> None:
    keywords = [word.arg for word in call.keywords if word.arg is not None]
    inspect.signature(function).bind(*[None for _ in call.args], **dict.fromkeys(keywords))


def test_every_call_fits_its_function(page: str) -> None:
    shown = [pair for body in blocks(page, "python") for pair in calls(body)]
    assert {"export", "quantize", "push"} <= {
        call.func.attr for call, _ in shown if isinstance(call.func, ast.Attribute)
    }
    for call, function in shown:
        binds(call, function)


def test_a_call_that_does_not_fit_is_noticed() -> None:
    ((call, function),) = calls("vit_edge.export(model, calibrate='photos')")
    with pytest.raises(TypeError, match="calibrate"):
        binds(call, function)


def test_the_only_other_language_is_of_transformers_js(page: str) -> None:
    others = [body for language, body in BLOCK.findall(page) if language != "python"]
    assert len(others) == 1
    assert "await pipeline('image-classification', 'transformers.js')" in others[0]
