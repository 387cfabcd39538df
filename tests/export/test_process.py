"""The export as a process: killed at any moment, and within its memory."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vit_edge.bundle import Bundle
from vit_edge.bundle.integrity import ensure_verified
from vit_edge.export.__main__ import main
from vit_edge.models.vit import parameter_shapes
from vit_edge.variants import variant

requires = ("torch", "onnx", "onnxscript", "onnxruntime")


def command(name: str, out: Path, seed: int = 0) -> list[str]:
    return [
        *(sys.executable, "-m", "vit_edge.export", "--variant", name),
        *("--checkpoint", f"seeded:{seed}", "--max-batch", "2", "--out", str(out), "--force"),
    ]


def stage_holds(out: Path, pattern: str) -> bool:
    """Whether an export is writing, and such a file is in its stage already."""
    return any(out.parent.glob(f".{out.name}.partial-*{pattern}"))


# What is seen of an export from outside, in the order in which it happens, until it ends.
MOMENTS: dict[str, Callable[[Path, int], bool]] = {
    "a stage": lambda out, _: stage_holds(out, ""),
    "a graph": lambda out, _: stage_holds(out, "/*.onnx"),
    "a manifest": lambda out, _: stage_holds(out, "/manifest.json"),
    "the exchange": lambda out, inode: out.stat().st_ino != inode,
}


@pytest.mark.slow
def test_an_export_killed_at_any_moment_leaves_the_old_bundle_or_the_new_one(
    bundle: Bundle, tmp_path: Path
) -> None:
    out = bundle.path
    for seed, moment in enumerate(MOMENTS, start=1):
        old, inode = Bundle.read(out).model_sha256, out.stat().st_ino
        export = subprocess.Popen(
            command("testing", out, seed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while not MOMENTS[moment](out, inode):
            assert export.poll() is None, f"the export ended, and {moment} was not seen"
            time.sleep(0.0005)
        export.kill()
        assert export.wait() == -signal.SIGKILL
        left = Bundle.read(out)
        ensure_verified(left, full=True)
        if moment != "a manifest":  # the exchange may come between that and the kill
            assert (left.model_sha256 == old) == (moment != "the exchange"), moment
    assert main(command("testing", out)[3:]) == 0  # in this process, which has torch already
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"], "a dead stage was not swept"


@pytest.mark.slow
def test_the_export_of_base_stays_below_twice_the_weights_plus_700_mb(
    base: tuple[Path, int],
) -> None:
    """Large and huge: benchmarks/export_memory.py."""
    shapes = parameter_shapes(variant("base-patch16-224").architecture).values()
    weights = 4 * sum(math.prod(shape) for shape in shapes)
    _, peak_rss_bytes = base
    assert weights < peak_rss_bytes < 2 * weights + 700e6
