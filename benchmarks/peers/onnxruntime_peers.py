"""onnxruntime's own quantizers: static, dynamic, and 4-bit weights."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationMethod,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    HQQWeightOnlyQuantConfig,
    MatMulNBitsQuantizer,
)
from peer import INPUT, Images, Peer

LINEARS = ["MatMul", "Gemm"]


def peers() -> list[Peer]:
    """Everything of onnxruntime's that needs no other package."""
    static, weights = "onnxruntime quantize_static", "onnxruntime MatMulNBits"
    minmax, percentile = CalibrationMethod.MinMax, CalibrationMethod.Percentile
    entropy = CalibrationMethod.Entropy
    # S8 weights by channel and U8 activations: what onnxruntime's documentation advises for x86.
    advised = {"per_channel": True, "activation_type": QuantType.QUInt8}
    found = [
        Peer(static, "all operators, MinMax", _static(None, minmax)),
        Peer(static, "MatMul+Gemm, MinMax", _static(LINEARS, minmax)),
        Peer(static, "MatMul+Gemm, MinMax, U8S8 per channel", _static(LINEARS, minmax, **advised)),
        Peer(static, "MatMul+Gemm, Percentile", _static(LINEARS, percentile)),
        Peer(static, "MatMul+Gemm, Entropy", _static(LINEARS, entropy), "all"),
        Peer("onnxruntime quantize_dynamic", "batch 100", _dynamic, "none"),
    ]
    for block in (32, 64):
        rounding = DefaultWeightOnlyQuantConfig(block_size=block)
        hqq = HQQWeightOnlyQuantConfig(block_size=block)
        found += [
            Peer(weights, f"int4, block {block}, rounding", partial(_nbits, rounding), "none"),
            Peer(weights, f"int4, block {block}, HQQ", partial(_nbits, hqq), "none"),
        ]
    return found


def _static(operators: list[str] | None, method: CalibrationMethod, **options: Any) -> Any:
    def quantize(fp32: Path, calibration: Images, out: Path) -> None:
        quantize_static(
            fp32,
            out,
            _Feeds(calibration.pixels),
            op_types_to_quantize=operators,
            calibrate_method=method,
            **options,
        )

    return quantize


def _dynamic(fp32: Path, calibration: Images, out: Path) -> None:
    quantize_dynamic(fp32, out)


def _nbits(algorithm: Any, fp32: Path, calibration: Images, out: Path) -> None:
    quantizer = MatMulNBitsQuantizer(onnx.load(fp32), algo_config=algorithm)
    quantizer.process()
    quantizer.model.save_model_to_file(str(out))


class _Feeds:
    """What quantize_static asks for images: one feed after the other, then None."""

    def __init__(self, pixels: NDArray[np.float32]) -> None:
        self._feeds = ({INPUT: image[None]} for image in pixels)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(self._feeds, None)
