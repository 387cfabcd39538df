"""No pass gives a name that a graph has, whatever its exporter called things."""

from __future__ import annotations

import onnx_ir
import pytest

from vit_edge.graphs.building import Builder
from vit_edge.graphs.names import Names, tell_apart
from vit_edge.graphs.readable import SCOPES, name_by_module

requires = ("onnx_ir",)


def value(name: str, *shape: int) -> onnx_ir.Value:
    return onnx_ir.Value(
        name=name, shape=onnx_ir.Shape(shape), type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT)
    )


def model_of(*nodes: onnx_ir.Node, inputs: tuple[onnx_ir.Value, ...]) -> onnx_ir.Model:
    graph = onnx_ir.Graph(
        inputs, nodes[-1].outputs, nodes=nodes, opset_imports={"": 20}, name="graph"
    )
    return onnx_ir.Model(graph, ir_version=9)


def test_a_wish_is_numbered_where_it_is_taken() -> None:
    names = Names(["a", "a_1", None])
    assert [names.fresh(wish) for wish in ("b", "b", "a", "a", "a_1", "")] == [
        "b", "b_1", "a_2", "a_3", "a_1_1", "",
    ]  # fmt: skip


def test_nodes_values_and_initializers_are_all_taken() -> None:
    x = value("x", 2)
    node = onnx_ir.node("Relu", [x], name="block/Relu")
    node.outputs[0].name = "y"
    model = model_of(node, inputs=(x,))
    weight = value("w", 1)
    weight.const_value = onnx_ir.tensor([1.0], name="w")
    model.graph.register_initializer(weight)
    names = Names.of(model)
    for taken in ("x", "y", "w", "block/Relu"):
        assert names.fresh(taken) == f"{taken}_1"


def test_names_inside_a_subgraph_are_taken_too() -> None:
    x, chosen = value("x", 2), value("c")
    inner = onnx_ir.node("Relu", [x], name="inner")
    inner.outputs[0].name = "inner:0"
    branch = onnx_ir.Graph((), inner.outputs, nodes=[inner], name="branch")
    node = onnx_ir.node("If", [chosen], {"then_branch": branch, "else_branch": branch}, name="if")
    node.outputs[0].name = "y"
    names = Names.of(model_of(node, inputs=(x, chosen)))
    assert names.fresh("inner") == "inner_1"
    assert names.fresh("inner:0") == "inner:0_1"


@pytest.mark.parametrize(
    ("short", "long", "expected"),
    [
        (["a", "b"], ["a/MatMul", "b/MatMul"], ["a", "b"]),
        (["a", "a", "b"], ["a/MatMul", "a/Gemm", "b/Gemm"], ["a/MatMul", "a/Gemm", "b"]),
        # the long name of one is the short name of another
        (["a/MatMul", "a", "a"], ["a/MatMul/Gemm", "a/MatMul", "a/Gemm"],
         ["a/MatMul", "a/MatMul_1", "a/Gemm"]),
        ([], [], []),
    ],
)  # fmt: skip
def test_things_that_share_a_name_are_told_apart(
    short: list[str], long: list[str], expected: list[str]
) -> None:
    assert tell_apart(short, long) == expected


def test_what_is_built_has_names_of_its_own() -> None:
    x = value("x", 2)
    node = onnx_ir.node("Relu", [x], name="block/Relu")
    node.outputs[0].name = "block/Mul:0"  # what a new Mul's output would be called
    model = model_of(node, inputs=(x,))
    build = Builder(model, node)
    made = [build("Mul", [x, x], [2], x.dtype) for _ in range(2)]
    names = [value.name for node in model.graph for value in node.outputs]
    names += [node.name for node in model.graph]
    assert len(set(names)) == len(names) == 6
    assert [value.producer().name for value in made] == ["block/Mul", "block/Mul_1"]  # type: ignore[union-attr]


def test_modules_that_are_called_twice_give_two_names_and_initializers_keep_theirs() -> None:
    x = value("x", 2)
    weight = value("block/Mul:0", 2)
    weight.const_value = onnx_ir.tensor([1.0, 2.0], name="block/Mul:0")
    first = onnx_ir.node("Mul", [x, weight], name="n")
    second = onnx_ir.node("Mul", [first.outputs[0], weight], name="n2")
    for node in (first, second):
        node.metadata_props[SCOPES] = str(["", "block", "mul"])
    model = model_of(first, second, inputs=(x,))
    model.graph.register_initializer(weight)
    name_by_module(model)
    assert first.outputs[0].name == "block/Mul:0_1"
    assert weight.name == "block/Mul:0"
    assert [node.name for node in model.graph] == ["block/Mul", "block/Mul_1"]
