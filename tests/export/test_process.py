"""The export as a process: killed at any moment, and within its memory."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vit_edge.bundle import Bundle
from vit_edge.bundle.integrity import ensure_verified
from vit_edge.machine.child import run_child
from vit_edge.models.vit import parameter_shapes
from vit_edge.variants import variant

requires = ("torch", "onnx", "onnxscript", "onnxruntime")


def command(name: str, out: Path, seed: int = 0) -> list[str]:
    return [
        *(sys.executable, "-m", "vit_edge.export", "--variant", name),
        *("--checkpoint", f"seeded:{seed}", "--max-batch", "2", "--out", str(out), "--force"),
    ]


@pytest.mark.slow
def test_an_export_killed_at_any_moment_leaves_the_old_bundle_or_the_new_one(
    tmp_path: Path,
) -> None:
    out = tmp_path / "bundle"
    start = time.monotonic()
    subprocess.run(command("testing", out), check=True, capture_output=True)
    whole_s = time.monotonic() - start
    old = Bundle.read(out).model_sha256
    left = set()
    for attempt in range(40):
        export = subprocess.Popen(
            command("testing", out, seed=1), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        # late moments are the interesting ones: that is when files are written and exchanged
        time.sleep(whole_s * (0.7 + 0.6 * (attempt % 8) / 8))
        os.kill(export.pid, signal.SIGKILL)
        export.wait()
        found = Bundle.read(out)
        ensure_verified(found, full=True)
        left.add("old" if found.model_sha256 == old else "new")
        if attempt >= 7 and left == {"old", "new"}:
            break
        if left == {"new"}:  # every later export would replace new by new
            subprocess.run(command("testing", out), check=True, capture_output=True)
    assert left == {"old", "new"}, "no kill came before the exchange, or none after it"
    subprocess.run(command("testing", out), check=True, capture_output=True)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"], "a dead stage was not swept"


@pytest.mark.slow
def test_the_export_of_base_stays_below_twice_the_weights_plus_700_mb(tmp_path: Path) -> None:
    """Large and huge: benchmarks/export_memory.py."""
    shapes = parameter_shapes(variant("base-patch16-224").architecture).values()
    weights = 4 * sum(math.prod(shape) for shape in shapes)
    argv = [arg for arg in command("base-patch16-224", tmp_path / "b") if arg != "--force"]
    argv[argv.index("--max-batch") + 1] = "32"
    result = run_child(argv).check("export")
    assert weights < result.peak_rss_bytes < 2 * weights + 700e6
