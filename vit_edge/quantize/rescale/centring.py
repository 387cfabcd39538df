"""Shifting activations to zero mean before they are rounded to half precision.

A float's rounding error grows with its magnitude, and outlier channels of a ViT are mostly offset:
behind LayerNormalization some stay near a mean twenty times their spread. The offset is the same
for every image. So it can go exactly into the bias of the next Linear, where it is not rounded
(Outlier Suppression+, arXiv:2304.09145, does it for integers).
"""

from __future__ import annotations

import numpy as np
import onnx_ir

from vit_edge.graphs.workspace import Workspace
from vit_edge.quantize import Progress
from vit_edge.quantize.calibration import Calibration
from vit_edge.quantize.linears import block_linears
from vit_edge.quantize.rescale.proving import IMAGES, prove_groups
from vit_edge.quantize.rounding.samples import collect_samples


def centre(
    model: onnx_ir.Model, workspace: Workspace, calibration: Calibration, progress: Progress
) -> list[str]:
    """Make what enters the Linears of a float32 graph zero-mean wherever that is exact, in place.

    Args:
        model: Settled in the workspace.
        workspace: Where to run it.
        calibration: The images whose means are taken.
        progress: Shown while they run.

    Returns:
        The names of what was shifted.
    """
    linears = block_linears(model)
    groups = prove_groups(workspace, model, linears, calibration.pixels(0, IMAGES))
    movable = [group for group in groups if group.can_shift]
    read = [group.linears[0] for group in movable]
    samples = collect_samples(workspace, model, read, calibration, progress)
    for group in movable:
        mean = samples[group.linears[0].input].rows.mean(axis=0, dtype=np.float64)
        group.fold(np.ones_like(mean), mean)
    return [group.name for group in movable]
