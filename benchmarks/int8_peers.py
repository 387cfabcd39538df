"""INT8 of trained weights beside onnxruntime's own quantizers: the same graph, pixels and machine.

    python benchmarks/int8_peers.py --checkpoint HF_DIR --calibration DIR --images DIR --seeds 5

Every row quantizes the same float32 graph, ours by the recipe as it comes but without a target, so
that what the gate would refuse has numbers as well. Seeds choose the calibration images, and the
worst counts in each column. Times take turns at batch 1, relative to quantize_dynamic; recipes
that ONNX Runtime's CPU provider only simulates have none. NNCF and ModelOpt: peers/stock_int8.py.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx_ir
import script
from int8_cost import timed
from low_precision import drafts
from numpy.typing import NDArray
from onnxruntime.quantization import QuantType, quantize_dynamic, quantize_static
from timing import ratio, timings

import vit_edge.quantize as quantize
from vit_edge import cli
from vit_edge.export.draft import Draft
from vit_edge.export.recipe import find_recipe
from vit_edge.graphs.workspace import Workspace
from vit_edge.images.preprocess import pixels_from_resized
from vit_edge.parity.logits import LogitComparison
from vit_edge.quantize import Task
from vit_edge.quantize.calibration import (
    Calibration,
    CalibrationRequest,
    calibration_files,
    load_calibration,
)
from vit_edge.quantize.precisions.fp8 import SIMULATION

OURS = ("cpu-int8", "cpu-int8-dynamic", "cpu-int4", "gpu-int8", "gpu-fp8")
BASELINE = "onnxruntime quantize_dynamic"
LINEARS = ["MatMul", "Gemm"]
BATCH = 10  # ranges of a batch are shared where they are dynamic
COLUMNS = ("", "agreement", "centred SQNR", "top-1", "drop, points", "float", "time")


class Made(NamedTuple):
    """A quantized graph, ready to run."""

    model: onnx_ir.Model
    kept: int | None  # Linears in float
    simulated: bool = False


Quantizer = Callable[[Draft, Calibration, Path], Made]


def main(argv: list[str] | None = None) -> int:
    parser = script.parser(__doc__)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--images", type=Path, required=True, help="a folder for each class")
    parser.add_argument("--count", type=int, default=128, help="calibration images; default: 128")
    parser.add_argument("--first", type=int, help="judge by this many of the images, drawn once")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", default="", help="rows, separated by semicolons")
    parser.add_argument("--rounds", type=int, default=30, help="of the timing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured too")
    return script.run(parser, run, argv)


def run(arguments: argparse.Namespace) -> int:
    only = [name for name in arguments.only.split(";") if name]
    measured: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(sys.stderr):
        scratch = Path(name)
        draft = drafts(arguments, scratch, arguments.first)["cpu"]
        first: dict[str, Made] = {}
        for seed in range(arguments.seeds):
            images = calibration(draft, arguments, seed, scratch)
            for title, quantizer in rows().items():
                if (only and title not in only) or (seed and title == BASELINE):
                    continue
                made = quantizer(draft, images, scratch)
                first.setdefault(title, made)
                entry = {"row": title, "seed": seed, "kept_float": made.kept}
                measured.append(entry | judge(made, draft, scratch))
                print(json.dumps(measured[-1]), flush=True)
        times = speeds(first, draft, arguments.rounds, scratch)
    print(f"{len(draft.golden)} images; {script.machine()}\n" + table(measured, times))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"rows": measured, "seconds": times}, indent=1) + "\n")
    return 0


def calibration(
    draft: Draft, arguments: argparse.Namespace, seed: int, scratch: Path
) -> Calibration:
    request = CalibrationRequest(arguments.calibration, arguments.count, seed)
    return load_calibration(calibration_files(request), draft.manifest.preprocessing, scratch)


def rows() -> dict[str, Quantizer]:
    """Ours, and theirs with the settings that serve ViTs best."""
    return {
        **{name: partial(ours, name) for name in OURS},
        BASELINE: dynamic,
        "onnxruntime quantize_static, U8S8 per channel": static,
    }


def ours(name: str, draft: Draft, images: Calibration, scratch: Path) -> Made:
    """Quantize by a recipe, without a target."""
    recipe = find_recipe(name, None)
    precision = recipe.precision
    settings = quantize.settings_from_table(precision, recipe.quantization, recipe.name)
    model = onnx_ir.load(draft.folder / "model.onnx")
    target = recipe.target
    made = quantize.module(precision).quantize(
        Task(model, target, images, None, scratch, None, timed), settings
    )
    trials = made.record.get("trials")
    kept = None if not trials else len(trials[-1]["kept_float"])
    return Made(made.simulation or made.model, kept, made.simulation is not None)


def dynamic(draft: Draft, images: Calibration, scratch: Path) -> Made:
    fp32, out = draft.folder / "model.onnx", scratch / "dynamic.onnx"
    quantize_dynamic(
        fp32, out, per_channel=True, op_types_to_quantize=LINEARS, nodes_to_exclude=of_heads(fp32)
    )
    return Made(onnx_ir.load(out), None)


def static(draft: Draft, images: Calibration, scratch: Path) -> Made:
    fp32, out = draft.folder / "model.onnx", scratch / "static.onnx"
    quantize_static(
        fp32, out, Feeds(images), op_types_to_quantize=LINEARS, nodes_to_exclude=of_heads(fp32),
        per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return Made(onnx_ir.load(out), None)


def of_heads(fp32: Path) -> list[str]:
    """List products whose weights have a dimension for heads: their kernel refuses them."""
    return [
        str(node.name)
        for node in onnx_ir.load(fp32).graph
        for value in node.inputs
        if node.op_type == "MatMul" and value is not None
        if value.is_initializer() and len(value.shape or ()) == 3
    ]


class Feeds:
    """What quantize_static asks for images: one feed after the other, then None."""

    def __init__(self, images: Calibration) -> None:
        self._batches = images.batches(1)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """Return the next image."""
        pixels = next(self._batches, None)
        return None if pixels is None else {"pixel_values": pixels}


def judge(made: Made, draft: Draft, scratch: Path) -> dict[str, Any]:
    """Every statistic of the logits against the reference's."""
    golden = draft.golden
    workspace = Workspace(scratch / "judge")
    settled = workspace.settle(made.model.clone())  # a settled model gives up its weights
    entries = SIMULATION if made.simulated else None
    found = np.concatenate(
        list(workspace.answers(settled, batches(draft, len(golden)), "logits", entries))
    )
    comparison = LogitComparison()
    expected = golden.expected["logits"]
    comparison.add(np.arange(len(golden)), found, expected, golden.classes)
    return comparison.summary()


def batches(draft: Draft, count: int) -> Iterator[NDArray[np.float32]]:
    for start in range(0, count, BATCH):
        resized = draft.golden.resized[start : min(start + BATCH, count)]
        yield pixels_from_resized(resized, draft.manifest.preprocessing)


def speeds(
    made: dict[str, Made], draft: Draft, rounds: int, scratch: Path
) -> dict[str, list[float]]:
    """Seconds of each graph at batch 1, in turn; the first seed's, and float32 beside them."""
    graphs = {name: each.model for name, each in made.items() if not each.simulated}
    graphs["float32"] = onnx_ir.load(draft.folder / "model.onnx")
    workspace = Workspace(scratch / "time")
    pixels = next(batches(draft, 1))
    calls = {}
    for name, model in graphs.items():
        session = workspace.session(workspace.settle(model.clone()))
        feed = {session.get_inputs()[0].name: pixels}
        calls[name] = partial(session.run, ["logits"], feed)
    return timings(calls, rounds) if rounds else {}


def table(measured: list[dict[str, Any]], times: dict[str, list[float]]) -> str:
    """Every row; of several seeds the worst in each column."""
    lines = [COLUMNS]
    for title in dict.fromkeys(entry["row"] for entry in measured):
        found = [entry for entry in measured if entry["row"] == title]
        kept = [entry["kept_float"] for entry in found if entry["kept_float"] is not None]
        labelled = "accuracy" in found[0]
        lines.append((
            title,
            f"{min(e['top1_agreement'] for e in found):.2%}",
            f"{min(e['sqnr_centred_db'] for e in found):.1f} dB",
            f"{min(e['accuracy'] for e in found):.2%}" if labelled else "-",
            f"{100 * max(e['accuracy_drop'] for e in found):.2f}" if labelled else "-",
            str(max(kept)) if kept else "-",
            relative(times, title),
        ))  # fmt: skip
    return cli.table(lines)


def relative(times: dict[str, list[float]], title: str) -> str:
    """A time beside the baseline's, with its interval."""
    if title not in times or BASELINE not in times:
        return "-"
    found = ratio(times[title], times[BASELINE])
    return f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"


if __name__ == "__main__":
    sys.exit(main())
