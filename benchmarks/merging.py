"""What merging tokens saves and changes: time, agreement and accuracy for several numbers.

    python benchmarks/merging.py --checkpoint HF_DIR --images DIR --merge 2,4,8,auto \\
        --calibration DIR [--precision int8]

Each row is an export with --merge-tokens, judged by its gate on all `--images` (a folder for each
class) against the model that merges nothing. Times are of one thread, taken in turn in one run, and
stand beside the same precision unmerged on the first backend of `--on`. `--beside MODEL.xml` is
timed with them: a model of OpenVINO's, such as peers/nncf_peers.py makes of the float32 graph. With
--list, `--merge` takes schedules with a number for every block, separated by semicolons.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import script
from timing import ratio, timings

import vit_edge
from vit_edge import cli
from vit_edge.backends import auto
from vit_edge.bundle import Bundle
from vit_edge.errors import ParityError
from vit_edge.images.preprocess import input_from_resized
from vit_edge.quantize.calibration import CalibrationRequest

COLUMNS = ("merged", "left", "time", "95 %", "agreement", "SQNR dB", "top-1", "drop")


def main(argv: list[str] | None = None) -> int:
    parser = script.parser(__doc__)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--merge", required=True, help="numbers, and auto, separated by commas")
    parser.add_argument("--list", action="store_true", help="they are schedules, see above")
    parser.add_argument("--calibration")
    parser.add_argument("--count", type=int, default=128, help="calibration images; default: 128")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--target", help="what must hold, as for vit-edge export")
    parser.add_argument("--on", default="ort", help="backends, as ort,openvino; default: ort")
    parser.add_argument("--beside", type=Path, metavar="MODEL.xml", help="timed with them")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    return script.run(parser, run, argv)


def run(arguments: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as folder:
        bundles = {"none": made(arguments, None, Path(folder) / "none")}
        refused: dict[str, str] = {}
        for asked in arguments.merge.split(";" if arguments.list else ","):
            try:
                bundles[asked] = made(arguments, asked, Path(folder) / asked)
            except ParityError as error:
                refused[asked] = str(error).splitlines()[1].strip()
        taken = timed(bundles, arguments)
        base = next(iter(taken.values()))
        lines = [row(asked, bundles.get(asked), times, base) for asked, times in taken.items()]
    print(script.machine())
    print(cli.table([COLUMNS, *lines]))
    for asked, problem in refused.items():
        print(f"{asked}: refused, {problem}")
    return 0


def made(arguments: argparse.Namespace, merge: str | None, out: Path) -> Bundle:
    """Export, and judge on all images."""
    folder = arguments.calibration
    wanted = folder is not None and (arguments.precision != "fp32" or merge == "auto")
    return vit_edge.export(
        arguments.checkpoint,
        precision=arguments.precision,
        merge_tokens=merge,
        calibration=CalibrationRequest(folder, arguments.count) if wanted else None,
        golden_images=arguments.images if merge is not None else None,
        target=None if arguments.precision == "fp32" and merge is None else arguments.target,
        outputs="logits",
        out=out,
    )


def timed(bundles: dict[str, Bundle], arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each bundle on one thread of each backend, in turn, and of what is beside them."""
    spec = bundles["none"].manifest.preprocessing
    shape = (arguments.batch, *spec.crop_hw, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    pixels = input_from_resized(images, bundles["none"].manifest)
    calls: dict[str, Callable[[], object]] = {}
    for place, name in enumerate(arguments.on.split(",")):
        for asked, bundle in bundles.items():
            backend = auto.open_choice(bundle, auto.Choice(name, {"threads": 1}), None)
            calls[f"{asked} on {name}" if place else asked] = partial(backend.run, pixels)
    if arguments.beside is not None:
        threads = {"INFERENCE_NUM_THREADS": 1}
        compiled = openvino.Core().compile_model(arguments.beside, "CPU", threads)
        calls[arguments.beside.stem] = partial(compiled, pixels)
    return timings(calls, arguments.rounds)


def row(
    asked: str, bundle: Bundle | None, times: list[float], base: list[float]
) -> tuple[str, ...]:
    """One line of the table; no bundle of ours has only a time."""
    took = ratio(times, base)
    span = f"{took.low:.3f} to {took.high:.3f}"
    record: dict[str, Any] = {} if bundle is None else bundle.parity().get("merging", {})
    if not record:
        return asked, "", f"{took.value:.3f}", span, "", "", "", ""
    found = record["against_unmerged"]["comparisons"][0]
    labelled = ("-", "-")
    if found.get("accuracy") is not None:
        labelled = (f"{found['accuracy']:.2%}", f"{found['accuracy_drop']:+.2%}")
    counts = ",".join(map(str, record["merged_tokens"]))
    return (
        f"auto: {counts}" if asked == "auto" else asked,
        f"{record['tokens'][-1]}/{record['tokens'][0]}",
        f"{took.value:.3f}",
        span,
        f"{found['top1_agreement']:.2%}",
        f"{found['sqnr_centred_db']:.1f}",
        *labelled,
    )


if __name__ == "__main__":
    raise SystemExit(main())
