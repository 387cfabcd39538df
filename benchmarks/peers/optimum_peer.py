"""optimum-onnx: transformers' model exported, and quantized as its AVX512-VNNI preset says."""

from __future__ import annotations

import sys
from pathlib import Path

import hf_model
import process
from process import Setup

FP32, INT8 = "optimum-fp32", "optimum-int8"  # folders
EXPORTED, QUANTIZED = "model.onnx", "model_quantized.onnx"


def export(folder: Path) -> None:
    """ORTModelForImageClassification.from_pretrained(export=True)."""
    if (folder / FP32 / EXPORTED).exists():
        return
    from optimum.onnxruntime import ORTModelForImageClassification

    path = hf_model.checkpoint(folder)
    model = ORTModelForImageClassification.from_pretrained(path, export=True)
    model.save_pretrained(folder / FP32)


def quantize(folder: Path) -> None:
    """ORTQuantizer, dynamic, by channel."""
    export(folder)
    if (folder / INT8 / QUANTIZED).exists():
        return
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    preset = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True)
    quantizer = ORTQuantizer.from_pretrained(folder / FP32)
    quantizer.quantize(save_dir=folder / INT8, quantization_config=preset)


def setups() -> dict[str, Setup]:
    return {
        "fp32": process.onnxruntime_setup(f"{FP32}/{EXPORTED}", export),
        "dynamic-int8": process.onnxruntime_setup(f"{INT8}/{QUANTIZED}", quantize),
    }


if __name__ == "__main__":
    sys.exit(process.main(setups()))
