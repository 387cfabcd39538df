"""`--precision bf16`: GEMMs in bfloat16, which has float32's range and 8 bits of precision.

It cannot overflow; what it costs is rounding. Centring (rescale/centring) is what helps against
that: half as much noise and less on models with outlier channels.
"""

from __future__ import annotations

from vit_edge.graphs.workspace import Workspace
from vit_edge.quantize import CalibrationUse, Quantized, Task
from vit_edge.quantize.formats.half import BFLOAT16, convert, prepare
from vit_edge.quantize.parts import HalfSettings
from vit_edge.quantize.rescale.centring import centre
from vit_edge.quantize.search.simulate import sentence, simulate

CALIBRATION: CalibrationUse = "optional"  # for centring
LEAST_OPSET = {"cpu": 17, "gpu": 17}


Settings = HalfSettings


def quantize(task: Task, settings: HalfSettings) -> Quantized:
    """Compute the GEMMs of a float32 graph in bfloat16.

    Raises:
        UsageError: A node to keep that is not there.
        ModelError: A graph that is not understood.
    """
    workspace = Workspace(task.scratch / "bf16")
    prepare(task.model)
    model = workspace.settle(task.model)
    shifted: list[str] = []
    if settings.centre and task.calibration is not None:
        shifted = centre(model, workspace, task.calibration, task.progress)
    convert(model, BFLOAT16, settings.also_half, settings.keep_float32)
    simulation = simulate(model, BFLOAT16)
    return Quantized(model, {"centred": shifted}, (), simulation, sentence(BFLOAT16))
