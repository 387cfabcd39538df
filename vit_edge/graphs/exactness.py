"""A test that two float32 graphs compute the same, up to rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir
from numpy.typing import NDArray

from vit_edge.errors import ModelError
from vit_edge.graphs.workspace import Workspace
from vit_edge.parity.statistics import Difference

# float32 rounding over up to 32 blocks: 3e-7 to 3e-6 is what is found (docs/bundle.md)
EXACT_RELATIVE = 1e-5


def relative_difference(
    actual: NDArray[np.floating[Any]], expected: NDArray[np.floating[Any]]
) -> float:
    """Max |difference| / max |expected| of float[N, ...]; infinite where one is not finite."""
    difference = Difference()
    difference.add(np.arange(len(expected)), actual, expected)
    return difference.relative


def prove_same(
    model: onnx_ir.Model, rewritten: onnx_ir.Model, workspace: Workspace, what: str, remedy: str
) -> None:
    """Run noise through a settled model and what was made of it.

    Args:
        model: As it was.
        rewritten: With the same input and outputs.
        workspace: Where to run both.
        what: What was done, for the message.
        remedy: What to do instead.

    Raises:
        ModelError: They differ by more than rounding.
    """
    shape = [size if isinstance(size, int) else 2 for size in model.graph.inputs[0].shape or ()]
    pixels = np.random.default_rng(0).standard_normal(shape, np.float32)
    (expected,) = workspace.observe(model, model.graph.outputs, [pixels])
    (actual,) = workspace.observe(rewritten, rewritten.graph.outputs, [pixels])
    for name, answer in expected.items():
        relative = relative_difference(actual[name], answer)
        if not relative <= EXACT_RELATIVE:
            raise ModelError(
                f"{what}, the graph's {name} differ by {relative:.1e} of the largest, allowed "
                f"{EXACT_RELATIVE:.0e}. {remedy}"
            )
