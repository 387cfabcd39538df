"""base-patch16-224 in float32 at batch 1: our graph against timm's as torch.onnx exports it.

    python benchmarks/fp32_latency.py --timm-python .venv-timm/bin/python

Both run in ONNX Runtime with the same options, taking turns. timm's side is made by
peers/timm_onnx.py in an environment of its own. Weights are random on both sides: the time of a
dense float32 graph does not depend on them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import interleaved
import numpy as np
import onnxruntime

from vit_edge import cpus
from vit_edge.backends import ort
from vit_edge.bundle import Bundle


def timm_session(python: Path, folder: Path, name: str) -> onnxruntime.InferenceSession:
    """Export timm's model with timm's own environment, and open it."""
    path = folder / "timm.onnx"
    script = Path(__file__).with_name("peers") / "timm_onnx.py"
    subprocess.run([python, script, name, path], check=True, stdout=sys.stderr)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cpus.usable_cpus()
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--timm-python", type=Path, required=True, metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=60)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        bundle_path = Path(scratch) / "bundle"
        subprocess.run(
            [
                sys.executable,
                "-m",
                "vit_edge.export",
                "--variant",
                "base-patch16-224",
                "--checkpoint",
                "seeded:0",
                "--max-batch",
                "4",
                "--out",
                str(bundle_path),
            ],
            check=True,
            stdout=sys.stderr,
        )
        timm = timm_session(arguments.timm_python, Path(scratch), "vit_base_patch16_224")
        bundle = Bundle.read(bundle_path)
        plain = ort.load(bundle, engine="never")
        ort.build(bundle)
        built = ort.load(bundle, engine="required")
        pixels = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
        found = interleaved.timings(
            {
                "timm, torch.onnx, opset 18": lambda: timm.run(None, {"x": pixels}),
                "vit_edge": lambda: plain.run(pixels),
                "vit_edge, built": lambda: built.run(pixels),
            },
            arguments.rounds,
        )
    print(f"{cpus.cpu_model()}, {cpus.usable_cpus()} CPUs, {' '.join(cpus.cpu_features())}")
    print(f"onnxruntime {onnxruntime.__version__}, batch 1, {arguments.rounds} rounds")
    print(interleaved.report(found, "timm, torch.onnx, opset 18", bar=0.9))
    return 0


if __name__ == "__main__":
    sys.exit(main())
