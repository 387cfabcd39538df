"""INT8 weights: 8-bit weights in blocks, float activations. See weight_only."""

from __future__ import annotations

from vit_edge.quantize import CalibrationUse, Quantized, Task, weight_only
from vit_edge.quantize.weight_only import Settings

__all__ = ["CALIBRATION", "LEAST_OPSET", "Settings", "quantize"]

CALIBRATION: CalibrationUse = "required"
LEAST_OPSET = weight_only.LEAST_OPSET


def quantize(task: Task, settings: Settings) -> Quantized:
    """Store the weights of the Linears in 8 bits; see `weight_only.quantize`."""
    return weight_only.quantize(task, settings, bits=8)
