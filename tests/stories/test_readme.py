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
# What a reader waits for and a test need not: the same commands with less to measure.
SHORTER = {
    " --processes 3 ": " --processes 2 --seconds 0.2 ",
    " --tune --batches 1,8": " --tune --batches 1,8 --backend ort",
}


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


@pytest.mark.slow
def test_the_commands_and_then_the_python_run_in_a_checkout(
    readme: str, repository: Path, tmp_path: Path
) -> None:
    (tmp_path / "vit_edge").symlink_to(repository / "vit_edge")
    (tmp_path / "export").symlink_to(repository / "export")
    printed = [
        run(["bash", "-euo", "pipefail", "-c", shortened(body, SHORTER)], tmp_path)
        for body in blocks(readme, "bash")
    ]
    assert "parity holds" in printed[0]
    assert "cat" in printed[0]
    answers = [run([sys.executable, "-c", body], tmp_path) for body in blocks(readme, "python")]
    assert answers[0].startswith("cat ")
    assert "cat.jpg cat" in answers[1]
    assert "(8, 192) onnxruntime" in answers[1]


def test_no_block_goes_untested(readme: str, repository: Path) -> None:
    """Of the docs only these three have blocks; a new language needs a test of its own."""
    assert {language for language, _ in BLOCK.findall(readme)} == {"bash", "python", *DIAGRAMS}
    for path in [*(repository / "docs").glob("*.md"), repository / "CONTRIBUTING.md"]:
        # test_ci_docs.py, test_bench_docs.py and test_checkpoints_docs.py beside this run theirs
        if path.name in ("ci.md", "bench.md", "checkpoints.md"):
            continue
        languages = {language for language, _ in BLOCK.findall(path.read_text())}
        assert languages <= DIAGRAMS, f"{path.name} has a block nobody runs"


def test_the_table_of_variants_is_the_table(readme: str) -> None:
    rows = dict(re.findall(r"^\| ([\w-]+) \| [\d.]+ M \| \w+ \| (\S+) \|", readme, re.MULTILINE))
    assert rows == {row.name: row.hf or "-" for row in VARIANTS.values()}


def test_every_link_of_the_documents_leads_somewhere(repository: Path) -> None:
    for path in [*repository.glob("*.md"), *(repository / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            if not target.startswith("http"):
                assert (path.parent / target).exists(), f"{path.name} -> {target}"
