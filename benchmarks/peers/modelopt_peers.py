"""NVIDIA ModelOpt's ONNX post-training quantization, run from its command line on the CPU.

It asks for older onnx and onnxruntime than the others: an environment of its own (README.md).
Its files are meant for TensorRT; here onnxruntime runs them, so the numbers are the quantizer's
and not the engine's.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from peer import Images, Peer

# onnxruntime's optimizer has no FP8 kernels to fuse into: the Q/DQ pairs are run as they stand.
UNFUSED = {"session.disable_quant_qdq": "1"}
FP32 = ("--high_precision_dtype", "fp32")
LINEARS = ("--op_types_to_quantize", "MatMul", "Gemm")


def peers(python: Path) -> list[Peer]:
    """ModelOpt's settings; of itself it takes the entropy method, and FP16 for the rest.

    Args:
        python: The interpreter of ModelOpt's environment.
    """

    def run(mode: str, *options: str) -> partial[None]:
        return partial(_quantize, python, ("--quantize_mode", mode, *options))

    most, entropy = (
        ("--calibration_method", "max", *FP32),
        ("--calibration_method", "entropy", *FP32),
    )
    rounding = ("--calibration_method", "rtn_dq", *FP32)
    tool, linears = "ModelOpt", "MatMul+Gemm"
    return [
        Peer(tool, "int8, as it comes (entropy, rest fp16)", run("int8"), "all"),
        Peer(tool, "int8, max", run("int8", *most)),
        Peer(tool, f"int8, max, {linears}", run("int8", *most, *LINEARS)),
        Peer(tool, f"int8, entropy, {linears}", run("int8", *entropy, *LINEARS), "all"),
        Peer(tool, "fp8, entropy", run("fp8", *entropy), "all", session=UNFUSED),
        Peer(tool, "int4, block 128, rounding", run("int4", *rounding), "none"),
    ]


def _quantize(
    python: Path, options: tuple[str, ...], fp32: Path, calibration: Images, out: Path
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        pixels = Path(scratch) / "calibration.npy"
        np.save(pixels, calibration.pixels)
        argv = [str(python), "-m", "modelopt.onnx.quantization", "--onnx_path", str(fp32)]
        argv += ["--output_path", str(out), "--calibration_data_path", str(pixels)]
        argv += ["--calibration_eps", "cpu", "--log_level", "WARNING", *options]
        subprocess.run(argv, check=True, stdout=sys.stderr)
