"""What the INT8 recipe costs: time against running its images once in float32, and peak memory.

    python benchmarks/int8_cost.py --calibration DIR [--variant base-patch16-224] [--count 128]

The bars: 40 times one float32 pass over the images at batch 1, and 2 GB with 512 images (the word
"random" as DIR takes noise, which costs the same). Weights are seeded.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import onnx_ir
import script

import vit_edge.quantize as quantize
from vit_edge.checkpoints import Request
from vit_edge.export.draft import answer_golden_images, write_draft
from vit_edge.export.plan import ExportOptions, plan_export
from vit_edge.export.recipe import find_recipe
from vit_edge.export.source import open_checkpoint
from vit_edge.graphs.workspace import Workspace
from vit_edge.machine.child import run_child
from vit_edge.quantize import Task
from vit_edge.quantize.calibration import (
    CalibrationRequest,
    calibration_files,
    load_calibration,
)
from vit_edge.variants import variant


def main(argv: list[str] | None = None) -> int:
    parser = script.parser(__doc__)
    parser.add_argument("--variant", default="base-patch16-224")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--count", type=int, default=128)
    parser.add_argument("--in-child", action="store_true", help=argparse.SUPPRESS)
    return script.run(parser, run, argv)


def run(arguments: argparse.Namespace) -> int:
    if arguments.in_child:
        measure(arguments)
        return 0
    result = run_child([sys.executable, *sys.argv, "--in-child"]).check("int8")
    print(result.stdout, end="")
    print(f"peak memory of the whole: {result.peak_rss_bytes / 1e6:.0f} MB")
    return 0


def measure(arguments: argparse.Namespace) -> None:
    """Print each step's time, and the ratio."""
    source = open_checkpoint("seeded:0", Request(variant(arguments.variant)), ("logits",))
    recipe = find_recipe("cpu-int8", None)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        plan = plan_export(ExportOptions(find_recipe("cpu-fp32", None), outputs=("logits",)))
        plan = dataclasses.replace(plan, single_file_limit=0)
        golden = answer_golden_images(plan, source, scratch)
        draft = write_draft(plan, source, golden, scratch)
        request = CalibrationRequest(arguments.calibration, arguments.count)
        images = load_calibration(calibration_files(request), draft.manifest.preprocessing, scratch)
        model = onnx_ir.load(scratch / "model.onnx")
        once = time.perf_counter()
        for _ in Workspace(scratch / "once").answers(model, images.batches(1), "logits"):
            pass
        once = time.perf_counter() - once
        settings = quantize.settings_from_table("int8", recipe.quantization, recipe.name)
        task = Task(model, "cpu", images, None, scratch, None, timed)
        started = time.perf_counter()
        quantize.module("int8").quantize(task, settings)
        took = time.perf_counter() - started
    print(f"{len(images)} images once in float32: {once:.1f} s; int8: {took:.1f} s")
    print(f"ratio {took / once:.1f} (bar: 40)")


class _Quiet:
    def update(self, n: int) -> None:
        """Show nothing."""


@contextlib.contextmanager
def timed(what: str, total: int, unit: str = "image") -> Iterator[_Quiet]:
    """Progress that tells how long each step took."""
    started = time.perf_counter()
    yield _Quiet()
    print(f"{what:<16} {total:>4} {unit}s {time.perf_counter() - started:>8.1f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
