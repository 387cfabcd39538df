"""Running a bfloat16 graph where a CPU does it: OpenVINO, on one with bfloat16 instructions.

OpenVINO keeps the graph's types only if told so: by default it runs everything, the readout too, in
bfloat16 where the CPU can, and without the instructions it runs bfloat16 graphs in float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vit_edge.backends.openvino.device import product_precisions
from vit_edge.backends.openvino.runtime import available, imported
from vit_edge.errors import BackendError, MissingExtraError
from vit_edge.machine import cpus


def bfloat16_answers(
    path: Path, batches: Iterable[NDArray[np.float32]], output: str
) -> Iterator[NDArray[np.float32]]:
    """Run a bfloat16 graph and give float32[N, ...] of one of its outputs, batch by batch.

    Args:
        path: The model, as formats.half.convert makes it.
        batches: Pixels, float32[N, 3, H, W].
        output: A name.

    Raises:
        MissingExtraError: OpenVINO is not installed.
        BackendError: It would run the GEMMs in another type, and so hide their rounding.
    """
    availability = available()
    if not availability.ok:
        raise MissingExtraError(availability.reason)
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": cpus.usable_cpus()}
    compiled = imported().Core().compile_model(str(path), "CPU", settings)
    found = product_precisions(compiled)
    if found["bf16"] <= found["f32"]:  # the head is f32 in any case
        raise BackendError(
            f"OpenVINO runs the GEMMs of {path} in {dict(found)}, not bf16: this CPU lacks the "
            "instructions; use the simulation"
        )
    for pixels in batches:
        yield np.array(compiled(pixels)[output])
