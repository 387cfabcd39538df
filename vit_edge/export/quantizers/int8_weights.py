"""INT8 weights: 8-bit weights in blocks, float activations. See _weight_only."""

from __future__ import annotations

from vit_edge.export.quantizers import CalibrationUse, Quantized, Task, _weight_only
from vit_edge.export.quantizers._weight_only import Settings

__all__ = ["CALIBRATION", "LEAST_OPSET", "Settings", "quantize"]

CALIBRATION: CalibrationUse = "required"
LEAST_OPSET = _weight_only.LEAST_OPSET


def quantize(task: Task, settings: Settings) -> Quantized:
    """Store the weights of the Linears in 8 bits; see `_weight_only.quantize`."""
    return _weight_only.quantize(task, settings, bits=8)
