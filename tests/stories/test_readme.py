"""Every code block of the README and the docs runs as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.documents import BLOCK, blocks, shortened
from vit_edge.variants import VARIANTS

requires = ("torch", "onnx", "onnxscript", "onnxruntime")

DIAGRAMS = {"mermaid"}
# Pages whose blocks a test beside this runs that is named after them.
TESTED_BESIDE = {
    "ci", "bench", "checkpoints", "tutorial", "languages", "large-jobs", "python", "serving",
}  # fmt: skip
LINES = 150
# What a reader waits for and a test need not: the same commands with less to measure.
SHORTER = {" --tune": " --tune --batch 1 --backend ort"}


@pytest.fixture(scope="module")
def readme(repository: Path) -> str:
    return (repository / "README.md").read_text()


def run(argv: list[str], folder: Path) -> str:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        argv, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, f"{argv[-1]}\n{done.stdout}\n{done.stderr}"
    return done.stdout


class Shell:
    """A folder in which commands run; a page that repeats one of another page sees its output."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._printed = folder, dict[str, str]()

    def __call__(self, block: str) -> str:
        """Run the commands of a block of bash, and return what they print."""
        lines = shortened(re.sub(r" *\\\n\s*", " ", block), SHORTER).splitlines()
        for line in lines:
            if line not in self._printed:
                bash = ["bash", "-euo", "pipefail", "-c", line]
                self._printed[line] = run(bash, self._folder)
        return "".join(self._printed[line] for line in lines)


def words(text: str) -> set[str]:
    """What is neither a number, nor a unit of one, nor a hash."""
    return set(re.findall(r"[A-Za-z][a-z_-]{2,}", re.sub(r"tuned-\w+", "tuned", text)))


@pytest.mark.slow
def test_the_readme_and_then_the_tutorial_run_in_a_checkout(
    readme: str, repository: Path, tmp_path: Path
) -> None:
    (tmp_path / "vit_edge").symlink_to(repository / "vit_edge")
    (tmp_path / "export").symlink_to(repository / "export")
    shell = Shell(tmp_path)
    printed = [shell(body) for body in blocks(readme, "bash")]
    for name in ("airplane", "cat", "dog", "horse", "ship"):
        assert re.search(rf"{name}\.jpg\n +\d\d\.\d\d%  {name}$", printed[0], re.MULTILINE)
    assert "parity holds" in printed[1]
    (body,) = blocks(readme, "python")
    assert run([sys.executable, "-c", body], tmp_path).startswith("dog 0.")

    answer = ""
    for language, body in BLOCK.findall((repository / "docs" / "tutorial.md").read_text()):
        if language == "bash":
            answer = shell(body)
        elif language == "python":
            answer = run([sys.executable, "-c", body], tmp_path)
        else:
            assert language == "text"
            assert words(body) <= words(answer)
    assert answer == "horse 95%\n"


def test_the_readme_is_read_in_two_minutes_and_says_first_what_did_not_run(readme: str) -> None:
    lines = readme.splitlines()
    assert len(lines) <= LINES
    first_screen = "\n".join(lines[:14])
    assert "No GPU run yet" in first_screen
    for state in ("ran, measured", "built for", "untested"):
        assert state in first_screen
    for command in ("`scripts/demo", "`scripts/test`"):
        assert command in readme
    for picture in ("parity.webp", "bench.webp", "flow.svg"):
        assert f"](docs/pictures/{picture})" in readme


def test_no_block_goes_untested(readme: str, repository: Path) -> None:
    """A new language, and a page with blocks, needs a test of its own."""
    assert {language for language, _ in BLOCK.findall(readme)} == {"bash", "python"}
    for path in [*(repository / "docs").glob("*.md"), repository / "CONTRIBUTING.md"]:
        if path.stem in TESTED_BESIDE:
            continue
        languages = {language for language, _ in BLOCK.findall(path.read_text())}
        assert languages <= DIAGRAMS, f"{path.name} has a block nobody runs"


def test_the_page_builds_the_sample_in_cpp_as_its_test_does(repository: Path) -> None:
    """tests/examples/test_languages.py runs what is named here."""
    page = (repository / "docs" / "languages.md").read_text()
    sample = repository / "examples" / "cpp"
    made, source = (sample / "CMakeLists.txt").read_text(), (sample / "main.cpp").read_text()
    ((language, body),) = BLOCK.findall(page)
    configure, build, *commands = body.strip().splitlines()
    assert (language, build) == ("bash", "cmake --build build/cpp")
    assert configure.startswith("cmake -S examples/cpp -B build/cpp ")
    for option in re.findall(r"-D(\w+)=", configure):
        assert option in made
    for command in commands:
        program, verb = command.split()[:2]
        assert re.search(rf"\b{Path(program).name}\b", made)
        assert f'"{verb}"' in source


def test_the_table_of_variants_is_the_table(repository: Path) -> None:
    page = (repository / "docs" / "variants.md").read_text()
    rows = dict(re.findall(r"^\| ([\w-]+) \| [\d.]+ M \| \w+ \| (\S+) \|", page, re.MULTILINE))
    assert rows == {row.name: row.hf or "-" for row in VARIANTS.values()}


def test_every_link_of_the_documents_leads_somewhere(repository: Path) -> None:
    made = {"reference/cli.md"}  # by scripts/documentation.py
    pages = [*repository.glob("*.md"), *(repository / "docs").rglob("*.md")]
    for path in [*pages, *(repository / "examples").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            if not target.startswith("http") and target not in made:
                assert (path.parent / target).exists(), f"{path.name} -> {target}"
