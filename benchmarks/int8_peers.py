"""INT8 of trained weights beside onnxruntime's own quantizers: the same graph, pixels and machine.

    python benchmarks/int8_peers.py --checkpoint HF_DIR --calibration DIR --images DIR --seeds 5

Every row quantizes the same float32 graph, ours by the recipe as it comes but without a target, so
that what the gate would refuse has numbers as well. Seeds choose the calibration images, and the
worst counts in each column. *Expected* is the agreement that the noise allows by the margins of the
reference's answers: luck with single images plays a smaller part. Times take turns at batch 1,
relative to quantize_dynamic; recipes that ONNX Runtime's CPU provider only simulates have none.

NNCF needs an environment of its own (peers/README.md), which --nncf-python names; OpenVINO runs
what it makes. ModelOpt: peers/stock_int8.py. `--output features` judges a model without its head,
by the cosine of each image.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx_ir
import openvino
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
from vit_edge.machine import cpus
from vit_edge.parity.logits import LogitComparison
from vit_edge.parity.statistics import Difference, cosine
from vit_edge.parity.statistics import rows as flat
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
NNCF = "NNCF, transformer, mixed, SmoothQuant (OpenVINO)"
LINEARS = ["MatMul", "Gemm"]
BATCH = 10  # ranges of a batch are shared where they are dynamic
COLUMNS = (
    "", "agreement", "expected", "centred SQNR", "top-1", "drop, points",
    "cosine: median, 5 %, least", "float", "time",
)  # fmt: skip


class Made(NamedTuple):
    """A quantized graph, ready to run."""

    model: onnx_ir.Model | Path  # a file: OpenVINO's
    kept: int | None = None  # Linears in float
    simulated: bool = False


# (the float32 graph in the form of each target, calibration images, a folder)
Quantizer = Callable[[Mapping[str, Draft], Calibration, Path], Made]


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
    parser.add_argument("--output", default="logits", help="or features; default: logits")
    parser.add_argument("--nncf-python", metavar="PYTHON", help="of an environment with NNCF")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured too")
    return script.run(parser, run, argv)


def run(arguments: argparse.Namespace) -> int:
    only = [name for name in arguments.only.split(";") if name]
    measured: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(sys.stderr):
        scratch = Path(name)
        floats = drafts(arguments, scratch, arguments.first, arguments.output)
        draft = floats["cpu"]
        first: dict[str, Made] = {}
        for seed in range(arguments.seeds):
            images = calibration(draft, arguments, seed, scratch)
            for title, quantizer in rows(arguments.nncf_python).items():
                if (only and title not in only) or (seed and title == BASELINE):
                    continue
                made = quantizer(floats, images, scratch)
                first.setdefault(title, made)
                entry = {"row": title, "seed": seed, "kept_float": made.kept}
                measured.append(entry | judge(made, draft, scratch))
                print(json.dumps(measured[-1]), flush=True)
                write(arguments.json, measured, {})
        times = speeds(first, draft, arguments.rounds, scratch)
    print(f"{len(draft.golden)} images; {script.machine()}\n" + table(measured, times))
    write(arguments.json, measured, times)
    return 0


def write(
    file: Path | None, measured: list[dict[str, Any]], times: Mapping[str, list[float]]
) -> None:
    if file is not None:
        file.write_text(json.dumps({"rows": measured, "seconds": times}, indent=1) + "\n")


def calibration(
    draft: Draft, arguments: argparse.Namespace, seed: int, scratch: Path
) -> Calibration:
    request = CalibrationRequest(arguments.calibration, arguments.count, seed)
    return load_calibration(calibration_files(request), draft.manifest.preprocessing, scratch)


def rows(nncf_python: str | None = None) -> dict[str, Quantizer]:
    """Ours, and theirs with the settings that serve ViTs best."""
    return {
        **{name: partial(ours, name) for name in OURS},
        BASELINE: dynamic,
        "onnxruntime quantize_static, U8S8 per channel": static,
        **({NNCF: partial(nncf, nncf_python)} if nncf_python else {}),
    }


def ours(name: str, floats: Mapping[str, Draft], images: Calibration, scratch: Path) -> Made:
    """Quantize by a recipe, without a target."""
    recipe = find_recipe(name, None)
    precision = recipe.precision
    settings = quantize.settings_from_table(precision, recipe.quantization, recipe.name)
    target = recipe.target
    model = onnx_ir.load(floats[target].folder / "model.onnx")
    made = quantize.module(precision).quantize(
        Task(model, target, images, None, scratch, None, timed), settings
    )
    trials = made.record.get("trials")
    kept = None if not trials else len(trials[-1]["kept_float"])
    return Made(made.simulation or made.model, kept, made.simulation is not None)


def dynamic(floats: Mapping[str, Draft], images: Calibration, scratch: Path) -> Made:
    fp32, out = floats["cpu"].folder / "model.onnx", scratch / "dynamic.onnx"
    quantize_dynamic(
        fp32, out, per_channel=True, op_types_to_quantize=LINEARS, nodes_to_exclude=of_heads(fp32)
    )
    return Made(onnx_ir.load(out))


def static(floats: Mapping[str, Draft], images: Calibration, scratch: Path) -> Made:
    fp32, out = floats["cpu"].folder / "model.onnx", scratch / "static.onnx"
    quantize_static(
        fp32, out, Feeds(images), op_types_to_quantize=LINEARS, nodes_to_exclude=of_heads(fp32),
        per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return Made(onnx_ir.load(out))


def nncf(python: str, floats: Mapping[str, Draft], images: Calibration, scratch: Path) -> Made:
    """Quantize in NNCF's environment: the graph whose attention is written out, which it knows."""
    pixels, out = scratch / "calibration.npy", scratch / "nncf.xml"
    np.save(pixels, images.pixels(0, len(images)))
    peer = script.REPOSITORY / "benchmarks" / "peers" / "nncf_peers.py"
    argv = [python, str(peer), str(floats["gpu"].folder / "model.onnx"), str(pixels), str(out)]
    subprocess.run(argv, check=True, stdout=sys.stderr)
    return Made(out)


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
    """Every statistic of the answers against the reference's."""
    golden = draft.golden
    ((output, expected),) = golden.expected.items()
    answer = opened(made, Workspace(scratch / "judge"), output)
    found = np.concatenate([answer(pixels) for pixels in batches(draft, len(golden))])
    if output != "logits":
        difference = Difference()
        difference.add(np.arange(len(golden)), found, expected)
        cosines = np.quantile(cosine(flat(found), flat(expected)), [0.5, 0.05, 0])
        return {**difference.summary(), "cosines": cosines.tolist()}
    comparison = LogitComparison()
    comparison.add(np.arange(len(golden)), found, expected, golden.classes)
    return {**comparison.summary(), "expected_agreement": expected_agreement(found, expected)}


def opened(
    made: Made, workspace: Workspace, output: str
) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Open a graph, to be asked for one of its outputs; each answer is the caller's."""
    if isinstance(made.model, Path):
        threads = {"INFERENCE_NUM_THREADS": cpus.default_threads()}
        compiled = openvino.Core().compile_model(
            made.model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", **threads}
        )
        return lambda pixels: compiled(pixels)[output].copy()
    settled = workspace.settle(made.model.clone())  # a settled model gives up its weights
    session = workspace.session(settled, entries=SIMULATION if made.simulated else None)
    name = session.get_inputs()[0].name
    return lambda pixels: session.run([output], {name: pixels})[0]


def expected_agreement(found: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """The agreement that noise of this covariance lets one expect.

    Each answer's first class is beaten by the second or third if their noise makes up for the
    margin; noise is taken as normal, and the same for every image.

    Args:
        found: float32[N, classes].
        reference: float32[N, classes].
    """
    noise = found.astype(np.float64) - reference
    covariance = noise.T @ noise / len(noise)
    first, *others = np.argsort(-reference, axis=1)[:, :3].T
    images, variances = np.arange(len(reference)), np.diag(covariance)
    lost = 0.0
    for other in others:
        margin = reference[images, first] - reference[images, other]
        spread = variances[first] + variances[other] - 2 * covariance[first, other]
        ratios = margin / np.sqrt(np.maximum(2 * spread, 1e-300))
        lost += float(np.mean([0.5 * math.erfc(ratio) for ratio in ratios]))
    return 1 - lost


def batches(draft: Draft, count: int) -> Iterator[NDArray[np.float32]]:
    for start in range(0, count, BATCH):
        resized = draft.golden.resized[start : min(start + BATCH, count)]
        yield pixels_from_resized(resized, draft.manifest.preprocessing)


def speeds(
    made: dict[str, Made], draft: Draft, rounds: int, scratch: Path
) -> dict[str, list[float]]:
    """Seconds of each graph at batch 1, in turn; the first seed's, and float32 beside them."""
    if not rounds:
        return {}
    graphs = {name: each for name, each in made.items() if not each.simulated}
    graphs["float32"] = Made(onnx_ir.load(draft.folder / "model.onnx"))
    workspace, (output,) = Workspace(scratch / "time"), draft.golden.expected
    pixels = next(batches(draft, 1))
    calls = {
        name: partial(opened(each, workspace, output), pixels) for name, each in graphs.items()
    }
    return timings(calls, rounds)


def table(measured: list[dict[str, Any]], times: dict[str, list[float]]) -> str:
    """Every row; of several seeds the worst in each column."""
    lines = [COLUMNS]
    for title in dict.fromkeys(entry["row"] for entry in measured):
        found = [entry for entry in measured if entry["row"] == title]
        kept = [entry["kept_float"] for entry in found if entry["kept_float"] is not None]
        labelled, scored = "accuracy" in found[0], "top1_agreement" in found[0]
        cosines = np.min([entry.get("cosines", [0.0]) for entry in found], axis=0)
        lines.append((
            title,
            f"{min(e['top1_agreement'] for e in found):.2%}" if scored else "-",
            f"{min(e['expected_agreement'] for e in found):.1%}" if scored else "-",
            f"{min(e['sqnr_centred_db'] for e in found):.1f} dB",
            f"{min(e['accuracy'] for e in found):.2%}" if labelled else "-",
            f"{100 * max(e['accuracy_drop'] for e in found):.2f}" if labelled else "-",
            "-" if scored else ", ".join(f"{value:.4f}" for value in cosines),
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
