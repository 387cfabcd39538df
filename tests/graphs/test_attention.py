"""Attention is taken to pieces where it can be, and masks that hide nothing are taken out."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx_ir.passes import common

from vit_edge.graphs.attention import decompose
from vit_edge.graphs.masks import drop_open_masks

requires = ("onnx", "onnx_ir", "onnxruntime")

SHAPE = ("n", 2, 5, 4)  # heads, tokens, head_dim


def model_of(
    nodes: list[onnx.NodeProto], constants: dict[str, NDArray[Any]], inputs: str = "qkv"
) -> onnx_ir.Model:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE) for name in inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 23)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return onnx_ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))


def answer(model: onnx_ir.Model, batch: int = 3) -> NDArray[np.float32]:
    data = onnx_ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    feeds = {
        value.name: rng.standard_normal((batch, *SHAPE[1:]), np.float32)
        for value in session.get_inputs()
    }
    found: NDArray[np.float32] = session.run(["y"], feeds)[0]
    return found


def operators(model: onnx_ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("attributes", [{}, {"scale": 0.3}, {"softcap": 0.0, "is_causal": 0}])
def test_pieces_compute_what_the_operator_does(attributes: dict[str, Any]) -> None:
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], name="a", **attributes)
    model = model_of([node], {})
    expected = answer(model)
    assert decompose(model) == ["a"]
    assert operators(model) == ["Mul", "Transpose", "Mul", "MatMul", "Softmax", "MatMul"]
    assert [value.name for value in model.graph.outputs] == ["y"]
    np.testing.assert_allclose(answer(model), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("inputs", "attributes"),
    [
        (["q", "k", "v"], {"is_causal": 1}),
        (["q", "k", "v"], {"softcap": 2.0}),
        (["q", "k", "v", "mask"], {}),
    ],
)
def test_an_attention_that_does_more_stays(inputs: list[str], attributes: dict[str, Any]) -> None:
    node = helper.make_node("Attention", inputs, ["y"], **attributes)
    model = model_of([node], {"mask": np.tril(np.ones((5, 5), bool))})
    expected = answer(model)
    assert decompose(model) == []
    drop_open_masks(model)
    np.testing.assert_array_equal(answer(model), expected)


def test_two_attentions_are_decomposed_under_names_of_their_own() -> None:
    nodes = [
        helper.make_node("Attention", ["q", "k", "v"], ["inner"], name="block/Attention"),
        helper.make_node("Attention", ["inner", "k", "v"], ["y"], name="block/Attention_1"),
    ]
    model = model_of(nodes, {})
    expected = answer(model)
    assert len(decompose(model)) == 2
    names = [node.name for node in model.graph]
    assert len(set(names)) == len(names) == 12
    np.testing.assert_allclose(answer(model), expected, atol=1e-6)


def masked(mask: NDArray[Any], *, fused: bool) -> onnx_ir.Model:
    """Attention with a mask as torch's dynamo exporter writes it, before opset 23 and from then."""
    constants = {
        "seen": mask,
        "size": np.array([1, 1, 5, 5]),
        "zero": np.array(0, np.float32),
        "least": np.array(np.finfo(np.float32).min, np.float32),
    }
    spread = helper.make_node("Expand", ["seen", "size"], ["mask"])
    if fused:
        return model_of(
            [spread, helper.make_node("Attention", ["q", "k", "v", "mask"], ["y"])], constants
        )
    nodes = [
        spread,
        helper.make_node("Where", ["mask", "zero", "least"], ["added"]),
        helper.make_node("Transpose", ["k"], ["turned"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["q", "turned"], ["scores"]),
        helper.make_node("Add", ["scores", "added"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["weights"]),
        helper.make_node("IsNaN", ["weights"], ["nan"]),
        helper.make_node("Where", ["nan", "zero", "weights"], ["guarded"]),
        helper.make_node("MatMul", ["guarded", "v"], ["y"]),
    ]
    return model_of(nodes, constants)


@pytest.mark.parametrize("fused", [True, False])
def test_an_open_mask_is_taken_out(fused: bool) -> None:
    model = masked(np.ones((1, 1, 5, 1), bool), fused=fused)
    expected = answer(model)
    drop_open_masks(model)
    np.testing.assert_array_equal(answer(model), expected)
    common.RemoveUnusedNodesPass()(model)
    if fused:
        assert decompose(model)
    else:
        assert operators(model) == ["Transpose", "MatMul", "Softmax", "MatMul"]


@pytest.mark.parametrize("fused", [True, False])
def test_a_mask_that_hides_one_token_stays(fused: bool) -> None:
    seen = np.ones((1, 1, 5, 5), bool)
    seen[..., 3] = False
    model = masked(seen, fused=fused)
    expected, before = answer(model), operators(model)
    drop_open_masks(model)
    assert operators(model) == before
    np.testing.assert_array_equal(answer(model), expected)
    assert decompose(model) == []


def test_a_zero_bias_is_no_mask() -> None:
    """Its Linear keeps it: quantizers correct it."""
    nodes = [
        helper.make_node("Add", ["q", "bias"], ["sum"]),
        helper.make_node("Softmax", ["sum"], ["y"]),
    ]
    model = model_of(nodes, {"bias": np.zeros(4, np.float32)}, "q")
    drop_open_masks(model)
    assert operators(model) == ["Add", "Softmax"]
    assert model.graph[1].inputs[0] is model.graph[0].outputs[0]
