"""The Python of docs/large-jobs.md runs; test_commands_of_the_docs.py parses its commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.documents import BLOCK, blocks
from vit_edge import Bundle

requires = ("onnxruntime",)


@pytest.fixture(scope="module")
def page(repository: Path) -> str:
    return (repository / "docs" / "large-jobs.md").read_text("utf-8")


def test_every_block_of_the_page_has_a_test(page: str) -> None:
    """One below, those for engines in tests/scale; commands are parsed elsewhere."""
    assert {found for found, _ in BLOCK.findall(page)} == {"console", "python"}
    marks = ("predictor.run", "ray.data.read_parquet", "dataset.with_format", "mapInArrow")
    modules = Path(__file__).parents[1].joinpath("scale").glob("test_*.py")
    tests = "".join(module.read_text("utf-8") for module in modules)
    assert all(mark in tests for mark in marks[1:])
    for code, mark in zip(blocks(page, "python"), marks, strict=True):
        assert mark in code


def test_a_predictor_gives_several_outputs_of_one_run(
    page: str, embedded_bundle: Bundle, photos: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    code = blocks(page, "python")[0].replace("bundles/cifar10", str(embedded_bundle.path))
    exec(code, {"paths": photos[:2]})
    assert capsys.readouterr().out.count(" (192,)\n") == 2
