"""The Python of docs/large-jobs.md runs; test_commands_of_the_docs.py parses its commands."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from tests.support.documents import BLOCK, blocks
from vit_edge import Bundle

requires = ("onnxruntime",)


@pytest.fixture(scope="module")
def page(repository: Path) -> str:
    return (repository / "docs" / "large-jobs.md").read_text("utf-8")


def test_every_block_of_the_page_has_a_test(page: str) -> None:
    """Two below; tests/scale/test_engines.py has the others; commands are parsed elsewhere."""
    assert {found for found, _ in BLOCK.findall(page)} == {"console", "python"}
    marks = ("predictor.run", "ray.data.read", "dataset.with_format", "mapInArrow")
    in_engines = (Path(__file__).parents[1] / "scale" / "test_engines.py").read_text("utf-8")
    assert all(mark in in_engines for mark in marks[2:])
    for code, mark in zip(blocks(page, "python"), marks, strict=True):
        assert mark in code


def test_a_predictor_gives_several_outputs_of_one_run(
    page: str, embedded_bundle: Bundle, photos: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    code = blocks(page, "python")[0].replace("bundles/cifar10", str(embedded_bundle.path))
    exec(code, {"paths": photos[:2]})
    assert capsys.readouterr().out.count(" (192,)\n") == 2


def test_the_lines_for_ray_call_what_there_is(page: str) -> None:
    pytest.importorskip("ray")
    from vit_edge.scale.ray_data import classify

    compile(blocks(page, "python")[1], "large-jobs.md", "exec")
    inspect.signature(classify).bind("data", "bundle", columns=("label", "features"))
