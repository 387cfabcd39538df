"""Intel NNCF's post-training quantization, on and for OpenVINO.

python nncf_peers.py FP32.onnx PIXELS.npy OUT.xml     the setting for transformers, by itself
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import openvino
from nncf.quantization.advanced_parameters import (
    AdvancedQuantizationParameters,
    AdvancedSmoothQuantParameters,
)
from peer import Images, Peer

TRANSFORMER = {
    "model_type": nncf.ModelType.TRANSFORMER,
    "preset": nncf.QuantizationPreset.MIXED,
}
WITHOUT_SMOOTHQUANT = AdvancedQuantizationParameters(
    smooth_quant_alphas=AdvancedSmoothQuantParameters(convolution=-1, matmul=-1)
)


def peers() -> list[Peer]:
    """NNCF's settings, and OpenVINO without it, to tell the runtime's share."""
    return [
        Peer("OpenVINO", "float32", _convert, "none", ".xml"),
        Peer("NNCF quantize", "transformer, mixed (SmoothQuant 0.95)", _default, "seeds", ".xml"),
        Peer("NNCF quantize", "the same without SmoothQuant", _plain, "seeds", ".xml"),
        Peer("NNCF quantize_with_accuracy_control", "max_drop 0.01", _controlled, "all", ".xml"),
    ]


def _convert(fp32: Path, calibration: Images, out: Path) -> None:
    _save(openvino.Core().read_model(fp32), out)


def _default(fp32: Path, calibration: Images, out: Path) -> None:
    _save(nncf.quantize(openvino.Core().read_model(fp32), _pixels(calibration), **TRANSFORMER), out)


def _plain(fp32: Path, calibration: Images, out: Path) -> None:
    model = nncf.quantize(
        openvino.Core().read_model(fp32),
        _pixels(calibration),
        advanced_parameters=WITHOUT_SMOOTHQUANT,
        **TRANSFORMER,
    )
    _save(model, out)


def _controlled(fp32: Path, calibration: Images, out: Path) -> None:
    """Layers go back to float until the calibration images lose at most 0.01 of their top-1.

    NNCF's own default of 0.01. The evaluation images judge it later: it must not have seen them.
    """
    model = nncf.quantize_with_accuracy_control(
        openvino.Core().read_model(fp32),
        _pixels(calibration),
        nncf.Dataset(list(zip(calibration.pixels[:, None], calibration.labels, strict=True))),
        _top1,
        max_drop=0.01,
        **TRANSFORMER,
    )
    _save(model, out)


def _pixels(calibration: Images) -> nncf.Dataset:
    """One image at a time, as NNCF's statistics expect."""
    return nncf.Dataset(list(calibration.pixels[:, None]))


def _top1(model: Any, validation: Iterable[Any]) -> tuple[float, list[float]]:
    """NNCF's validation function: the metric, and each image's share in it."""
    right = [float(model(image)[0].argmax() == label) for image, label in validation]
    return float(np.mean(right)), right


def _save(model: Any, out: Path) -> None:
    openvino.save_model(model, out, compress_to_fp16=False)


if __name__ == "__main__":
    source, images, result = map(Path, sys.argv[1:])
    calibration = np.load(images)
    _default(source, Images(calibration, np.zeros(len(calibration), np.int64)), result)
