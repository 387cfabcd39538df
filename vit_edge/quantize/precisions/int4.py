"""INT4: 4-bit weights in blocks, float activations. See weight_only."""

from __future__ import annotations

from dataclasses import dataclass

from vit_edge.quantize import CalibrationUse, Quantized, Task, weight_only

CALIBRATION: CalibrationUse = "required"
LEAST_OPSET = weight_only.LEAST_OPSET


@dataclass(frozen=True)
class Settings(weight_only.Settings):
    """The choices of every weight-only precision, and how much may be wider.

    Attributes:
        wide_part: The part of the weights that take 8 bits: the Linears whose noise in the answers
            is largest for their size. ONNX Runtime before 1.25 cannot multiply them as they are.
    """

    wide_part: float = 0.0

    def problems(self) -> list[str]:
        """List everything that cannot be followed; empty if nothing."""
        problems = super().problems()
        if not 0 <= self.wide_part <= 1:
            problems.append(f"wide_part must lie between 0 and 1, not {self.wide_part}")
        return problems


def quantize(task: Task, settings: Settings) -> Quantized:
    """Store the weights of the Linears in 4 bits; see `weight_only.quantize`."""
    return weight_only.quantize(task, settings, bits=4, wide_part=settings.wide_part)
