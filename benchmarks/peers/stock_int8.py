"""What the stock quantizers do to a ViT: top-1 and agreement with its float32 answers.

    .venv-peers/bin/python benchmarks/peers/stock_int8.py CHECKPOINT_DIR \\
        --calibration DIR --eval DIR --modelopt-python .venv-modelopt/bin/python --json out.json

README.md says how to make the environments. The graph is transformers' own through hf_onnx.py; its
float32 answers in onnxruntime are the reference. Each tool is calibrated with all images of the
folder and, where that is cheap, with a random subset for each of several seeds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import hf_onnx
import numpy as np
import peer
from labelled_images import Calibration, calibrations, read
from numpy.typing import NDArray
from peer import Images, Peer
from tabulate import tabulate

from vit_edge import cli
from vit_edge.checkpoints import Request, load_checkpoint
from vit_edge.parity.logits import LogitComparison

TOOLS = ("onnxruntime", "nncf")


@dataclass(frozen=True)
class Result:
    """One quantized model, judged."""

    tool: str
    setting: str
    calibration: str
    seed: int | None  # of a subset
    parity: dict[str, Any]  # LogitComparison.summary(); empty if the tool failed
    failure: str = ""


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    logging.basicConfig(level=logging.WARNING)
    return cli.guarded(lambda: compare(arguments))


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="folder with config.json and weights")
    parser.add_argument("--calibration", type=Path, required=True, metavar="DIR")
    parser.add_argument("--eval", type=Path, required=True, metavar="DIR", help="as --calibration")
    parser.add_argument("--tools", nargs="*", choices=TOOLS, default=TOOLS)
    parser.add_argument("--only", default="", metavar="TEXT", help="settings that contain TEXT")
    parser.add_argument("--modelopt-python", type=Path, metavar="PYTHON", help="ModelOpt, too")
    parser.add_argument("--exporter", choices=sorted(hf_onnx.OPSETS), default="torchscript")
    parser.add_argument("--seeds", type=int, default=5, help="subsets to calibrate on (default 5)")
    parser.add_argument("--onnx", type=Path, metavar="FILE", help="keep the float32 graph here")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="every result with all statistics"
    )
    return parser.parse_args(argv)


def compare(arguments: argparse.Namespace) -> int:
    """Export, quantize with every tool, print the table; 1 if a tool failed."""
    # The tools print on stdout, which belongs to the table.
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(sys.stderr):
        checkpoint = load_checkpoint(f"hf:{arguments.checkpoint}", Request())
        evaluation = read(arguments.eval, checkpoint)
        drawn = calibrations(arguments.calibration, checkpoint, arguments.seeds, Path(scratch))
        subsets = list(drawn)
        fp32 = arguments.onnx or Path(scratch) / "fp32.onnx"
        hf_onnx.export(arguments.checkpoint, fp32, arguments.exporter)
        reference = peer.logits(fp32, {}, evaluation)
        results = [
            judged(candidate, calibration, fp32, evaluation, reference)
            for candidate in chosen_peers(arguments)
            if arguments.only in f"{candidate.tool}, {candidate.setting}"
            for calibration in wanted(candidate, subsets)
        ]
    top1 = (reference.argmax(axis=1) == evaluation.labels).mean()
    print(f"float32 top-1: {top1:.2%} of {len(evaluation)} images\n")
    print(table(results))
    if arguments.json:
        text = json.dumps([asdict(result) for result in results], indent=1)
        arguments.json.write_text(text + "\n", encoding="utf-8")
    return 1 if any(result.failure for result in results) else 0


def chosen_peers(arguments: argparse.Namespace) -> Iterator[Peer]:
    """The tools asked for; each is imported only then."""
    if "onnxruntime" in arguments.tools:
        import onnxruntime_peers

        yield from onnxruntime_peers.peers()
    if "nncf" in arguments.tools:
        import nncf_peers

        yield from nncf_peers.peers()
    if arguments.modelopt_python is not None:
        import modelopt_peers

        yield from modelopt_peers.peers(arguments.modelopt_python)


def wanted(candidate: Peer, subsets: list[Calibration]) -> list[Calibration]:
    """What a peer is to be calibrated with."""
    if candidate.calibration == "none":
        return [Calibration("-", None, subsets[0].images)]
    return subsets[:1] if candidate.calibration == "all" else subsets


def judged(
    candidate: Peer,
    calibration: Calibration,
    fp32: Path,
    evaluation: Images,
    reference: NDArray[np.float32],
) -> Result:
    """Quantize, run over the evaluation images, compare with the reference's logits."""
    name = (candidate.tool, candidate.setting, calibration.name, calibration.seed)
    comparison = LogitComparison()
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / f"model{candidate.suffix}"
        try:
            candidate.quantize(fp32, calibration.images, out)
            found = peer.logits(out, candidate.session, evaluation)
        except Exception as error:  # a tool that fails is a result, and the others go on
            logging.exception("%s", name)
            return Result(*name, {}, f"{type(error).__name__}: {error}")
    comparison.add(np.arange(len(evaluation)), found, reference, evaluation.labels)
    result = Result(*name, comparison.summary())
    print(*row([result]), sep=", ", flush=True)
    return result


def table(results: list[Result]) -> str:
    """Markdown; of several seeds the worst, column by column."""
    rows = []
    for _, members in groupby(results, lambda r: (r.tool, r.setting, r.calibration)):
        rows.append(row(list(members)))
    headers = ["tool", "setting", "calibration", "top-1", "agreement", "drop, points"]
    text: str = tabulate(rows, headers, tablefmt="github", disable_numparse=True)
    return text


def row(members: list[Result]) -> list[str]:
    """The worst of the results that differ in their seed only."""
    first = members[0]
    alone = "" if first.seed is None else f", seed {first.seed}"
    seeds = f", worst of {len(members)} seeds" if len(members) > 1 else alone
    names = [first.tool, first.setting, first.calibration + seeds]
    failures = [member.failure for member in members if member.failure]
    if failures:
        return [*names, f"failed: {failures[0].splitlines()[0][:60]}", "", ""]
    top1 = min(member.parity["accuracy"] for member in members)
    agreement = min(member.parity["top1_agreement"] for member in members)
    drop = max(member.parity["accuracy_drop"] for member in members)
    return [*names, f"{top1:.2%}", f"{agreement:.2%}", f"{drop * 100:+.2f}"]


if __name__ == "__main__":
    sys.exit(main())
