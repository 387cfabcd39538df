"""timm's own exporter, and onnxruntime's quantizers on what it writes."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import process
from cpu_models import timm_model
from process import Model, Setup

FP32, DYNAMIC, STATIC = "timm-export.onnx", "timm-dynamic.onnx", "timm-static.onnx"
DYNAMO = "timm-dynamo.onnx"
LINEARS = ["MatMul", "Gemm"]


def export(folder: Path) -> None:
    """timm.utils.onnx, TorchScript's exporter: onnxruntime's quantizers stop at dynamo's graph."""
    if (folder / FP32).exists():
        return
    from timm.utils.onnx import onnx_export

    model, side = _model(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript's exporter is deprecated, and says so
        onnx_export(
            model,
            str(folder / FP32),
            batch_size=2,
            input_size=(3, side, side),
            opset=17,  # the first with LayerNormalization
            input_names=["input"],
            output_names=["logits"],
        )


def export_by_dynamo(folder: Path) -> None:
    """torch.onnx.export as it comes: the graph that people have today."""
    if (folder / DYNAMO).exists():
        return
    import torch

    model, side = _model(folder)
    torch.onnx.export(
        model,
        (torch.randn(2, 3, side, side),),
        folder / DYNAMO,
        dynamo=True,
        opset_version=18,
        dynamic_shapes={"x": {0: torch.export.Dim("batch")}},
        external_data=False,
    )


def _model(folder: Path) -> tuple[Any, int]:
    """timm's model with the weights of the folder, and the side of its images."""
    model = Model.read(folder)
    if model.timm is None:
        raise SystemExit("timm has no such model")
    return timm_model(model.timm, folder / process.WEIGHTS), model.image_px


def quantize_dynamic(folder: Path) -> None:
    """As onnxruntime advises for transformers on CPUs: dynamic, by channel."""
    export(folder)
    if (folder / DYNAMIC).exists():
        return
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(
        folder / FP32, folder / DYNAMIC, op_types_to_quantize=LINEARS, per_channel=True
    )


def quantize_static(folder: Path) -> None:
    """QDQ, activations U8, weights S8 by channel: what onnxruntime advises for x86 with VNNI."""
    export(folder)
    if (folder / STATIC).exists():
        return
    from onnxruntime.quantization import QuantType, quantize_static

    quantize_static(
        folder / FP32,
        folder / STATIC,
        process.feeds(folder, "input"),
        op_types_to_quantize=LINEARS,
        per_channel=True,
        activation_type=QuantType.QUInt8,
    )


def setups() -> dict[str, Setup]:
    return {
        "fp32": process.onnxruntime_setup(FP32, export),
        "dynamo": process.onnxruntime_setup(DYNAMO, export_by_dynamo),
        "dynamic": process.onnxruntime_setup(DYNAMIC, quantize_dynamic),
        "static": process.onnxruntime_setup(STATIC, quantize_static),
    }


if __name__ == "__main__":
    sys.exit(process.main(setups()))
