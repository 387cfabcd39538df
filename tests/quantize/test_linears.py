"""The Linears of a graph are found by what they are, and what is none is refused by name."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from vit_edge.bundle import Bundle
from vit_edge.errors import ModelError
from vit_edge.quantize.linears import all_linears, block_linears, norms

requires = ("torch", "onnx", "onnxscript", "onnxruntime")


def test_every_linear_of_the_blocks_is_found_and_the_head_is_not(testing_bundle: Bundle) -> None:
    model = onnx_ir.load(testing_bundle.model_path)
    assert testing_bundle.manifest.architecture is not None
    depth = testing_bundle.manifest.architecture.depth
    names = [linear.name for linear in block_linears(model)]
    kinds = ["attention.qkv", "attention.out", "mlp.fc1", "mlp.fc2"]
    expected = [f"blocks.{block}.{kind}" for block in range(depth) for kind in kinds]
    expected[-4] = f"blocks.{depth - 1}.attention.q"  # the class token's block
    assert names == expected
    assert [linear.name for linear in all_linears(model)] == [*expected, "readout.head"]
    assert all(linear.bias is not None for linear in block_linears(model))
    assert len(list(norms(model))) == 2 * depth + 1


def graph(*nodes: onnx.NodeProto, weights: dict[str, np.ndarray]) -> onnx_ir.Model:
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(array.astype(np.float32), name)
            for name, array in weights.items()
        ],
    )
    return onnx_ir.from_proto(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)]))


NORM = helper.make_node("LayerNormalization", ["h", "gamma", "beta"], ["y"], name="norm")
WEIGHTS = {"w": np.eye(4), "b": np.arange(4), "gamma": np.ones(4), "beta": np.zeros(4)}


@pytest.mark.parametrize("order", [["m", "b"], ["b", "m"]])
def test_the_bias_is_found_on_either_side_of_its_add(order: list[str]) -> None:
    matmul = helper.make_node("MatMul", ["x", "w"], ["m"], name="/fc/MatMul")
    add = helper.make_node("Add", order, ["h"], name="/fc/Add")
    (linear,) = block_linears(graph(matmul, add, NORM, weights=WEIGHTS))
    assert linear.name == "fc"
    assert linear.bias is not None
    assert linear.bias.name == "b"


def test_a_transposed_gemm_is_a_linear() -> None:
    gemm = helper.make_node("Gemm", ["x", "w", "b"], ["h"], name="fc", transB=1)
    weight = np.arange(16).reshape(4, 4)
    (linear,) = block_linears(graph(gemm, NORM, weights={**WEIGHTS, "w": weight}))
    assert linear.transposed
    np.testing.assert_array_equal(linear.matrix(), weight.T)


def test_a_scaled_gemm_is_refused_by_name() -> None:
    gemm = helper.make_node("Gemm", ["x", "w", "b"], ["h"], name="odd", alpha=0.5)
    with pytest.raises(ModelError, match=r"odd.*alpha"):
        block_linears(graph(gemm, NORM, weights=WEIGHTS))


def test_a_shared_weight_is_refused_by_name() -> None:
    one = helper.make_node("MatMul", ["x", "w"], ["m"], name="one")
    two = helper.make_node("MatMul", ["m", "w"], ["h"], name="two")
    with pytest.raises(ModelError, match=r"two and one share the weight w"):
        block_linears(graph(one, two, NORM, weights=WEIGHTS))


def test_a_graph_without_layer_normalization_is_no_vit() -> None:
    matmul = helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")
    with pytest.raises(ModelError, match="LayerNormalization"):
        block_linears(graph(matmul, weights=WEIGHTS))
