"""LiteRT: litert-torch's export, and its quantizer's dynamic INT8; XNNPACK runs both."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import hf_model
import process
from process import Opened, Setup

FP32, INT8 = "litert-fp32.tflite", "litert-int8.tflite"
BATCH = 1  # the graph is exported for it


def export(folder: Path) -> None:
    """litert_torch.convert."""
    if (folder / FP32).exists():
        return
    import litert_torch
    import numpy as np
    import torch

    pixels = torch.from_numpy(np.load(folder / process.PIXELS)[:BATCH])
    litert_torch.convert(hf_model.load(folder), (pixels,)).export(str(folder / FP32))


def quantize(folder: Path) -> None:
    """ai-edge-quantizer's recipe of dynamic ranges: weights int8, activations as they come."""
    export(folder)
    if (folder / INT8).exists():
        return
    from ai_edge_quantizer import quantizer, recipe

    dynamic = quantizer.Quantizer(str(folder / FP32), recipe.dynamic_wi8_afp32())
    dynamic.quantize().export_model(str(folder / INT8))


def open_model(file: str, folder: Path, threads: int) -> Opened:
    """The interpreter, which takes the XNNPACK delegate by itself."""
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(folder / file), num_threads=threads)
    interpreter.allocate_tensors()
    (given,), (answer,) = interpreter.get_input_details(), interpreter.get_output_details()

    def one(image: Any) -> Any:
        interpreter.set_tensor(given["index"], image)
        interpreter.invoke()
        return interpreter.get_tensor(answer["index"])

    def prepare(pixels: Any) -> process.Run:
        images = [image[None] for image in pixels]
        return lambda: [one(image) for image in images]

    facts = {"runtime": f"ai-edge-litert {_version()}", "micro_batch": str(BATCH)}
    return Opened(facts, prepare, np.concatenate)


def _version() -> str:
    from importlib.metadata import version

    return version("ai-edge-litert")


def setups() -> dict[str, Setup]:
    rows = (("fp32", FP32, export), ("dynamic-int8", INT8, quantize))
    return {
        name: Setup(("ai_edge_litert.interpreter",), partial(open_model, file), make, file)
        for name, file, make in rows
    }


if __name__ == "__main__":
    sys.exit(process.main(setups()))
