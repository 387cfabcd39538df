"""The commands of docs/bench.md run, and print what it shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.documents import BLOCK, shortened

requires = ("torch", "onnx", "onnxscript", "onnxruntime", "openvino", "matplotlib", "jinja2")

# What a reader waits for and a test need not: the same commands with fewer and shorter samples.
SHORTER = {
    " --batch 1,8 --out": " --batch 1,8 --processes 2 --seconds 0.2 --out",
    "processes = 3": "processes = 2\nat_least_s = 0.2",
    "benchmarks/limits.py ": "benchmarks/limits.py --backend ort --seconds 0.02 ",
    "--max-latency-ms 50 ": "--max-latency-ms 5000 ",  # intervals of two processes are wide
}


def words(text: str) -> set[str]:
    """What is neither a number nor a unit of one."""
    return set(re.findall(r"[a-z][a-z-]{2,}", text))


@pytest.mark.slow
def test_the_commands_run_and_print_what_is_shown(repository: Path, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(repository),
    }

    def run(command: str) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    (tmp_path / "benchmarks").symlink_to(repository / "benchmarks")  # as from a checkout
    run("python -m vit_edge.export --checkpoint embedded --out bundles/cifar10")
    printed = ""
    for language, body in BLOCK.findall((repository / "docs" / "bench.md").read_text()):
        if language == "bash":
            printed = run(shortened(body, SHORTER))
        else:
            assert language == "text"
            ours, shown = words(printed), words(body)
            # which of two is faster, and whether that can be told, the machine decides
            either = words("faster slower than against cannot tell time the which")
            assert shown - ours - either - {"open", "limit", "holds"} == set()
    assert (tmp_path / "REPORT.md").stat().st_size > 1000
    assert (tmp_path / "report.html").stat().st_size > 10_000
