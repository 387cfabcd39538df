"""What each precision keeps: agreement, accuracy and noise on labelled images, over several seeds.

    python benchmarks/low_precision.py --checkpoint HF_DIR --calibration DIR --images DIR

Every row is one export by a recipe as it comes, calibrated on images drawn by a seed, and judged by
the gate on all `--images` (a folder for each class); the worst seed counts. What the stock tools
reach on the same images: peers/stock_int8.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import script

from vit_edge.bundle import Bundle
from vit_edge.checkpoints import Request
from vit_edge.errors import ParityError
from vit_edge.export.draft import Draft, answer_golden_images, write_draft
from vit_edge.export.pipeline import finish_bundle
from vit_edge.export.plan import ExportOptions, plan_export
from vit_edge.export.recipe import find_recipe
from vit_edge.export.source import open_checkpoint
from vit_edge.quantize.calibration import CalibrationRequest

# recipe, and what is set besides
ROWS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("cpu-int8", ()),
    ("gpu-int8", ()),
    ("gpu-fp16", ()),
    ("gpu-bf16", ()),
    ("cpu-int4", ("block_size=32",)),
    ("cpu-int4", ("block_size=64",)),
    ("cpu-int8-weights", ()),
    ("gpu-fp8", ()),
    ("cpu-int8-dynamic", ()),
)
COLUMNS = ("recipe", "seed", "agreement", "top-1", "drop", "McNemar 95 %", "SQNR dB", "KL", "float")


def main(argv: list[str] | None = None) -> int:
    parser = script.parser(__doc__)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--count", type=int, default=128, help="calibration images; default: 128")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--recipes", default="", help="only these, separated by commas")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured too")
    return script.run(parser, run, argv)


def run(arguments: argparse.Namespace) -> int:
    wanted = set(arguments.recipes.split(",")) - {""}
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    measured: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        floats = drafts(arguments, Path(scratch))
        for recipe, settings in ROWS:
            if wanted and recipe not in wanted:
                continue
            draft = floats[recipe.partition("-")[0]]
            found = [measure(draft, recipe, settings, arguments, n) for n in range(arguments.seeds)]
            measured += found
            print(row(min(found, key=lambda entry: entry.get("top1_agreement", -1.0))), flush=True)
            if arguments.json is not None:
                arguments.json.write_text(json.dumps(measured, indent=2) + "\n")
    return 0


def drafts(
    arguments: argparse.Namespace,
    scratch: Path,
    count: int | None = None,
    output: str = "logits",
) -> dict[str, Draft]:
    """The float32 graph in the form of each target, with the reference's answers.

    Args:
        arguments: The checkpoint and the images.
        scratch: A folder for the graphs and the images.
        count: How many of the images are drawn and answered; all where there is no number.
        output: What the graph answers.
    """
    found: dict[str, Draft] = {}
    for target in ("cpu", "gpu"):
        folder = scratch / target
        folder.mkdir()
        source = open_checkpoint(arguments.checkpoint, Request(), (output,))
        recipe = find_recipe(f"{target}-fp32", None)
        options = ExportOptions(recipe, outputs=(output,), golden_images=arguments.images)
        plan = dataclasses.replace(plan_export(options), single_file_limit=0)
        drawn = np.sort(np.random.default_rng(0).permutation(len(plan.golden.files))[:count])
        files = tuple(plan.golden.files[index] for index in drawn)
        plan = dataclasses.replace(plan, golden=dataclasses.replace(plan.golden, files=files))
        # the answers are the model's, whatever the form of its graph
        golden = found["cpu"].golden if found else answer_golden_images(plan, source, folder)
        if golden.classes is not None and len(golden.classes) > len(golden):  # of the whole folder
            golden = dataclasses.replace(golden, classes=golden.classes[drawn])
        found[target] = write_draft(plan, source, golden, folder)
    return found


def measure(
    draft: Draft, name: str, settings: tuple[str, ...], arguments: argparse.Namespace, seed: int
) -> dict[str, Any]:
    """Lower once, and take what the gate found."""
    recipe = find_recipe(name, None).changed(quantization=settings)
    entry: dict[str, Any] = {"recipe": " ".join((name, *settings)), "seed": seed}
    request = CalibrationRequest(arguments.calibration, arguments.count, seed)
    options = ExportOptions(recipe, golden_images=arguments.images, calibration=request)
    with tempfile.TemporaryDirectory() as stage, tempfile.TemporaryDirectory() as scratch:
        started = time.perf_counter()
        try:
            finish_bundle(plan_export(options), draft, Path(stage), Path(scratch))
        except ParityError as error:
            return {**entry, "refused": str(error)}
        entry["seconds"] = time.perf_counter() - started
        bundle = Bundle.read(stage)
        rows = [r for r in bundle.parity()["comparisons"] if r["output"] == "logits"]
        quantization = bundle.manifest.quantization or {}
        entry["kept_float"] = (quantization.get("trials") or [{}])[-1].get("kept_float")
        entry["model_bytes"] = bundle.model_bytes
    return {**entry, **max(rows, key=lambda r: int(r["images"]))}  # the largest batch saw them all


def row(entry: dict[str, Any]) -> str:
    """One line of the table."""
    if "refused" in entry:
        return f"| {entry['recipe']} | {entry['seed']} | refused: {entry['refused'][:80]}... |"
    low, high = (100 * end for end in entry["accuracy_drop_interval"])
    cells = (
        entry["recipe"],
        str(entry["seed"]),
        f"{entry['top1_agreement']:.2%}",
        f"{entry['accuracy']:.2%} of {entry['reference_accuracy']:.2%}",
        f"{100 * entry['accuracy_drop']:.2f}",
        f"{low:.2f} to {high:.2f}",
        f"{entry['sqnr_centred_db']:.1f}",
        f"{entry['kl_median']:.1e}",
        "-" if entry["kept_float"] is None else str(len(entry["kept_float"])),
    )
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
