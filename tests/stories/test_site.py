"""The site of docs/: what is made of the code, where links lead, and that it builds."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import vit_edge
from tests.support.modules import module_from
from vit_edge import errors
from vit_edge.bundle.manifest import Manifest
from vit_edge.cli.verbs import LINES, parser_of


@pytest.fixture(scope="module")
def documentation(repository: Path) -> ModuleType:
    return module_from(repository / "scripts" / "documentation.py")


def test_the_command_lines_page_has_every_option_of_every_verb(documentation: ModuleType) -> None:
    page = documentation.command_line()
    sections = dict(re.findall(r"^## vit-edge ([\w ]+)\n(.*?)(?=^## |\Z)", page, re.M | re.S))
    assert sections.keys() == LINES.keys()
    for verb, text in sections.items():
        rows = [line for line in text.splitlines() if line.startswith("| <code>")]
        for option in parser_of(verb).options():
            assert any(re.search(rf"<code>{option}[ <]", row) for row in rows), f"{verb} {option}"


def test_help_becomes_no_markup_and_breaks_no_table(documentation: ModuleType) -> None:
    parser = parser_of("verify")
    parser.add_argument("--odd", metavar="A|B", help="a <b> or\n a | b, 5%%")
    (row,) = [documentation.row(parser, one) for one in parser._actions if one.dest == "odd"]
    assert row == "| <code>--odd A&#124;B</code> | a &lt;b&gt; or a &#124; b, 5% |"


@pytest.mark.parametrize(
    ("source", "markdown", "expected"),
    [
        ("docs/cpu.md", "[a](gpu.md#x)", "[a](gpu.md#x)"),
        ("docs/cpu.md", "[a](../benchmarks/REPORT.md)", "[a](report.md)"),
        ("docs/cpu.md", "[a](../benchmarks/limits.py)", "a"),
        ("docs/reference/results.md", "[a](../parity.md)", "[a](../parity.md)"),
        ("docs/reference/results.md", "[a](../../SECURITY.md)", "[a](../security.md)"),
        ("docker/README.md", "[a](../docs/cpu.md)", "[a](cpu.md)"),
        ("docs/cpu.md", "[a](notebooks/export.ipynb)", "[a](notebook.md)"),
        ("SECURITY.md", "![a](docs/pictures/flow.svg)", "![a](pictures/flow.svg)"),
        ("docs/cpu.md", "[a](https://example.org/x.md)", "[a](https://example.org/x.md)"),
        ("docs/cpu.md", "```\n[a](../export)\n```", "```\n[a](../export)\n```"),
    ],
)
def test_a_link_leads_to_where_the_site_has_the_file(
    documentation: ModuleType, source: str, markdown: str, expected: str
) -> None:
    assert documentation.linked(markdown, source) == expected


def test_the_fields_of_a_result_are_those_of_the_source(documentation: ModuleType) -> None:
    page = documentation.fields("vit_edge/bench/results/runs.py")
    assert "### Cold\n\nSeconds from the start of a process to its first answer, in parts." in page
    assert "| `latencies_ms` | `Times` |  |" in page
    assert "| `throttled` | `tuple[str, ...]` | reasons |" in page


def test_the_graph_of_rooms_shows_each_room_and_each_arrow(
    documentation: ModuleType, repository: Path
) -> None:
    page = (repository / "docs" / "architecture.md").read_text("utf-8")
    drawing = documentation.rooms(page)
    assert drawing.count("<path") == page.count(" --> ")
    assert drawing.count("<text") == len(set(re.findall(r"\[([\w.]+)\]", page.split("mermaid")[1])))


def test_the_page_of_the_bundle_names_every_field_of_a_manifest(repository: Path) -> None:
    page = (repository / "docs" / "bundle.md").read_text("utf-8")
    table = page.partition("## manifest.json")[2].partition("###")[0]
    named = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (.*?) \|", table, re.M))))
    assert named == {field.name for field in dataclasses.fields(Manifest)} | {"schema_version"}


def test_the_page_of_python_has_every_public_name(repository: Path) -> None:
    page = (repository / "docs" / "reference" / "api.md").read_text("utf-8")
    shown = {path.rpartition(".")[2] for path in re.findall(r"^::: (\S+)$", page, re.M)}
    assert "vit_edge.errors" in page
    assert set(vit_edge.__all__) - set(dir(errors)) <= shown


def test_every_page_is_in_the_navigation(repository: Path, documentation: ModuleType) -> None:
    listed = set(re.findall(r": ([\w/-]+\.md)$", (repository / "mkdocs.yml").read_text(), re.M))
    docs = repository / "docs"
    made = {*documentation.ELSEWHERE, documentation.COMMANDS, documentation.NOTEBOOK}
    there = {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")}
    assert listed == there - {"pictures/README.md"} | made


@pytest.mark.slow
def test_the_site_builds_strictly_and_asks_nobody_else(repository: Path, tmp_path: Path) -> None:
    for package in ("mkdocs", "material", "mkdocstrings"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"not installed: {package}")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path)],
        cwd=repository, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for page in tmp_path.rglob("*.html"):
        asks = re.search(
            r"<(?:script|img|iframe|link)[^>]+(?:src|href)=.?(?:https?:)?//[^>]*>",
            page.read_text("utf-8"),
        )
        assert asks is None, f"{page.name}: {asks}"
