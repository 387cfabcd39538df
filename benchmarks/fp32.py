"""base-patch16-224 in float32: latency against timm's export, and the cold start of a built bundle.

    python benchmarks/fp32.py --timm-python .venv-timm/bin/python

Latency: batch 1, both graphs in ONNX Runtime with the same options, taking turns. timm's side is
made by peers/timm_onnx.py in an environment of its own; without one that part is left out. Weights
are random on both sides: the time of a dense float32 graph does not depend on them.

Cold start: from starting Python to the first answer, a process each time. The page cache is warm
and the files' hashes are known, as on a device that has run the bundle before.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import script
import timing

from vit_edge.backends import ort
from vit_edge.bundle import Bundle
from vit_edge.machine import cpus

FIRST_ANSWER = """
import sys
from vit_edge import Bundle, Predictor
from vit_edge.backends import ort
bundle = Bundle.read(sys.argv[1])
Predictor(bundle, ort.load(bundle, engine=sys.argv[2])).predict(sys.argv[3])
"""
TIMM = "timm, torch.onnx, opset 18"


def main(argv: list[str] | None = None) -> int:
    parser = script.parser(__doc__)
    parser.add_argument("--timm-python", type=Path, metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--starts", type=int, default=20)
    return script.run(parser, run, argv)


def run(arguments: argparse.Namespace) -> int:
    print(script.machine())
    print(f"onnxruntime {onnxruntime.__version__}")
    with tempfile.TemporaryDirectory() as scratch:
        bundle = exported(Path(scratch) / "bundle")
        if arguments.timm_python is not None:
            print(f"\nlatency, batch 1, {arguments.rounds} rounds")
            timm = timm_session(arguments.timm_python, Path(scratch) / "timm.onnx")
            print(timing.report(latency(bundle, timm, arguments.rounds), TIMM, bar=0.9))
        print(f"\nPython start to first answer, {arguments.starts} starts")
        print(timing.report(cold_start(bundle, arguments.starts), "unbuilt", bar=0.7))
    return 0


def exported(path: Path) -> Bundle:
    """Export and build the bundle that is measured."""
    argv = [sys.executable, "-m", "vit_edge.export", "--variant", "base-patch16-224"]
    argv += ["--checkpoint", "seeded:0", "--max-batch", "4", "--out", str(path)]
    subprocess.run(argv, check=True, stdout=sys.stderr)
    bundle = Bundle.read(path)
    ort.build(bundle)
    return bundle


def timm_session(python: Path, path: Path) -> onnxruntime.InferenceSession:
    """Export timm's model with timm's own environment, and open it."""
    exporter = Path(__file__).with_name("peers") / "timm_onnx.py"
    subprocess.run([python, exporter, "vit_base_patch16_224", path], check=True, stdout=sys.stderr)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cpus.usable_cpus()
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def latency(
    bundle: Bundle, timm: onnxruntime.InferenceSession, rounds: int
) -> dict[str, list[float]]:
    """Seconds per run."""
    pixels = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
    candidates: dict[str, Callable[[], object]] = {
        TIMM: lambda: timm.run(None, {"x": pixels}),
        "vit_edge": partial(ort.load(bundle, engine="never").run, pixels),
        "vit_edge, built": partial(ort.load(bundle, engine="required").run, pixels),
    }
    return timing.timings(candidates, rounds)


def cold_start(bundle: Bundle, starts: int) -> dict[str, list[float]]:
    """Seconds per process."""

    first_answer = partial(script.start, FIRST_ANSWER, bundle.path)
    candidates: dict[str, Callable[[], object]] = {
        "unbuilt": partial(first_answer, "never", script.PHOTO),
        "built": partial(first_answer, "required", script.PHOTO),
        "python alone": partial(script.start, ""),
    }
    return timing.timings(candidates, starts)


if __name__ == "__main__":
    sys.exit(main())
