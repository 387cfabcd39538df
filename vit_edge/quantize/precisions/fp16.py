"""`--precision fp16`: GEMMs in float16; what would leave its range, and what needs more bits, not.

LayerNormalization is one operator in float32: as a chain of operators its squares pass 65504 from
|x| = 256 on. Residual stream, softmax, patch embedding and readout are float32 too: see parts.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from vit_edge.errors import UsageError
from vit_edge.graphs.workspace import Workspace
from vit_edge.quantize import CalibrationUse, Quantized, Task
from vit_edge.quantize.formats.half import FLOAT16, convert, prepare
from vit_edge.quantize.parts import HalfSettings, half_nodes
from vit_edge.quantize.rescale.centring import centre
from vit_edge.quantize.search import overflow
from vit_edge.quantize.search.overflow import scan, underflow
from vit_edge.quantize.search.simulate import sentence, simulate

CALIBRATION: CalibrationUse = "required"  # float16 overflows, and random images do not show where
LEAST_OPSET = {"cpu": 17, "gpu": 17}


@dataclass(frozen=True)
class Settings(HalfSettings):
    """The choices of float16.

    Attributes:
        margin: How many times the largest |x| on the calibration images must fit float16.
    """

    margin: float = overflow.MARGIN

    def problems(self) -> list[str]:
        """List everything that cannot be followed; empty if nothing."""
        problems = super().problems()
        if not 1 <= self.margin <= FLOAT16.largest:
            problems.append(f"margin: must be at least 1, not {self.margin}")
        return problems


def quantize(task: Task, settings: Settings) -> Quantized:
    """Compute the GEMMs of a float32 graph in float16.

    Raises:
        UsageError: No calibration images, or a node to keep that is not there.
        ModelError: A graph that is not understood, or that overflows float32 already.
    """
    if task.calibration is None:
        raise UsageError("fp16 looks at real images for what overflows: give --calibration DIR")
    workspace = Workspace(task.scratch / "fp16")
    prepare(task.model)
    model = workspace.settle(task.model)
    shifted = centre(model, workspace, task.calibration, task.progress) if settings.centre else []
    reach = scan(
        model, workspace, task.calibration, FLOAT16, settings.also_half, settings.keep_float32,
        settings.margin, task.progress,
    )  # fmt: skip
    keep = (*settings.keep_float32, *reach.kept)
    weights = underflow(model, FLOAT16, half_nodes(model, settings.also_half, keep))
    convert(model, FLOAT16, settings.also_half, keep)
    record = {"centred": shifted, "overflow_scan": reach.as_dict(), "underflow": weights}
    simulation = simulate(model, FLOAT16)
    return Quantized(model, record, reach.table(), simulation, sentence(FLOAT16))
