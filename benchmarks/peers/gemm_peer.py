"""A float32 product in PyTorch (oneDNN's or MKL's) and in onnxruntime: what this CPU can do.

It answers no images: its time is what the arithmetic of a model is set against.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import process
from process import Opened, Setup

SIDE = 2048  # GEMM_SIDE of ../comparisons.py
FILE = "product.onnx"


def matrices() -> tuple[Any, Any]:
    import numpy as np

    random = np.random.default_rng(0)
    return random.random((SIDE, SIDE), np.float32), random.random((SIDE, SIDE), np.float32)


def make(folder: Path) -> None:
    """Write an ONNX file of one product; one factor is constant, as weights are."""
    from onnx import TensorProto, helper, numpy_helper, save

    shape = [SIDE, SIDE]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a", "b"], ["c"])],
        "gemm",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(matrices()[1], "b")],
    )
    opsets = [helper.make_opsetid("", 17)]
    save(helper.make_model(graph, opset_imports=opsets, ir_version=8), folder / FILE)


def open_torch(folder: Path, threads: int) -> Opened:
    import torch

    torch.set_num_threads(threads)
    left, right = (torch.from_numpy(matrix) for matrix in matrices())

    def run() -> Any:
        with torch.inference_mode():
            return torch.matmul(left, right)

    return Opened({"runtime": f"torch {torch.__version__}"}, lambda pixels: run, lambda made: made)


def open_onnxruntime(folder: Path, threads: int) -> Opened:
    opened, left = process.onnxruntime_session(folder / FILE, threads), matrices()[0]
    return Opened(opened.facts, lambda pixels: opened.prepare(left), opened.logits)


def setups() -> dict[str, Setup]:
    return {
        "torch": Setup(("torch",), open_torch, make, FILE),
        "onnxruntime": Setup(("onnxruntime",), open_onnxruntime, make, FILE),
    }


if __name__ == "__main__":
    sys.exit(process.main(setups()))
