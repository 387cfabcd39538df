"""ExecuTorch with XNNPACK: float32, and INT8 by its XNNPACKQuantizer (static, by channel)."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import hf_model
import process
from process import Opened, Setup

BATCH = 1  # the graph is exported for it: XNNPACK's delegate plans its memory ahead
CALIBRATION = 16  # images


def make(int8: bool, folder: Path) -> None:
    """torch.export, the quantizer, XNNPACK's partitioner."""
    out = folder / _file(int8)
    if out.exists():
        return
    import numpy as np
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    model = hf_model.load(folder)
    pixels = torch.from_numpy(np.load(folder / process.PIXELS))
    given = (pixels[:BATCH],)
    if int8:
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
            XNNPACKQuantizer,
            get_symmetric_quantization_config,
        )
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        settings = get_symmetric_quantization_config(is_per_channel=True)
        quantizer = XNNPACKQuantizer().set_global(settings)
        model = prepare_pt2e(torch.export.export(model, given).module(), quantizer)
        for at in range(min(CALIBRATION, len(pixels))):
            model(pixels[at : at + 1])
        model = convert_pt2e(model)
    lowered = to_edge_transform_and_lower(
        torch.export.export(model, given), partitioner=[XnnpackPartitioner()]
    )
    out.write_bytes(lowered.to_executorch().buffer)


def open_model(int8: bool, folder: Path, threads: int) -> Opened:
    """The program; the number of its threads is the process's, set before the first run."""
    import torch
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime

    portable_lib._unsafe_reset_threadpool(threads)
    program = Runtime.get().load_program(folder / _file(int8))
    method = program.load_method("forward")

    def prepare(pixels: Any) -> process.Run:
        given = [torch.from_numpy(image[None]) for image in pixels]
        return lambda: [method.execute([image])[0].clone() for image in given]

    facts = {"runtime": f"executorch {_version()}", "micro_batch": str(BATCH)}
    facts["delegate"] = "XNNPACK"
    return Opened(facts, prepare, lambda answer: torch.cat(answer).numpy())


def _version() -> str:
    from importlib.metadata import version

    return version("executorch")


def _file(int8: bool) -> str:
    return "executorch-int8.pte" if int8 else "executorch-fp32.pte"


def setups() -> dict[str, Setup]:
    packages = ("torch", "executorch.runtime")
    return {
        name: Setup(packages, partial(open_model, int8), partial(make, int8), _file(int8))
        for name, int8 in (("fp32", False), ("int8", True))
    }


if __name__ == "__main__":
    sys.exit(process.main(setups()))
