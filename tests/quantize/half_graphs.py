"""Small graphs and runs for the tests of half precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import onnx_ir
import onnxruntime
from numpy.typing import NDArray

from vit_edge.graphs.write import write_model

FLOAT = onnx.TensorProto.FLOAT


def run(
    model: onnx_ir.Model, folder: Path, pixels: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """The first output of a model for some pixels: normal noise by default."""
    folder.mkdir(parents=True)
    write_model(model, folder)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(folder / "model.onnx", options)
    if pixels is None:
        pixels = np.random.default_rng(0).standard_normal((2, 3, 32, 32), np.float32)
    answer: NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: pixels})[0]
    return answer


def decomposed_norm(dtype: str) -> onnx_ir.Model:
    """float32[N, 8] -> (x - mean) / std as a chain of operators in some type, the planted fault."""
    wide = getattr(onnx.TensorProto, dtype)
    nodes = [
        oh.make_node("Cast", ["x"], ["low"], to=wide),
        oh.make_node("ReduceMean", ["low", "axes"], ["mean"]),
        oh.make_node("Sub", ["low", "mean"], ["centred"]),
        oh.make_node("Mul", ["centred", "centred"], ["square"]),
        oh.make_node("ReduceMean", ["square", "axes"], ["variance"]),
        oh.make_node("Sqrt", ["variance"], ["deviation"]),
        oh.make_node("Div", ["centred", "deviation"], ["normal"]),
        oh.make_node("Cast", ["normal"], ["y"], to=FLOAT),
    ]
    for node in nodes:
        node.name = f"norm/{node.op_type}_{node.output[0]}"
    graph = oh.make_graph(
        nodes,
        "norm",
        [oh.make_tensor_value_info("x", FLOAT, ["batch", 8])],
        [oh.make_tensor_value_info("y", FLOAT, ["batch", 8])],
        [oh.make_tensor("axes", onnx.TensorProto.INT64, [1], [1])],
    )
    model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 20)], ir_version=9)
    return onnx_ir.from_proto(onnx.shape_inference.infer_shapes(model, strict_mode=True))
