"""A variant runs from where it differs, and answers as if it had run whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir
import pytest
from numpy.typing import NDArray

from vit_edge.bundle import Bundle
from vit_edge.graphs.sections import SharedRuns, Values, shared_nodes, waists
from vit_edge.graphs.workspace import Workspace
from vit_edge.quantize.linears import all_linears

requires = ("torch", "onnx", "onnxscript", "onnxruntime")


class Counted(Workspace):
    """Remembers how many nodes of each graph it ran."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.nodes: list[int] = []

    def values(self, model: onnx_ir.Model, *args: object, **more: object) -> Iterator[Values]:
        """Count, then run."""
        self.nodes.append(len(model.graph))
        return super().values(model, *args, **more)  # type: ignore[arg-type]


def halved(model: onnx_ir.Model, index: int) -> onnx_ir.Model:
    """A variant: one Linear has half its weights."""
    copy = model.clone()
    linear = all_linears(copy)[index]
    linear.set_matrix(linear.matrix() / 2)
    return copy


@pytest.fixture
def workspace(tmp_path: Path) -> Counted:
    return Counted(tmp_path)


@pytest.fixture
def model(testing_bundle: Bundle, workspace: Counted) -> onnx_ir.Model:
    return workspace.settle(onnx_ir.load(testing_bundle.model_path))


def batches(model: onnx_ir.Model) -> list[NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    sizes = [size for size in list(model.graph.inputs[0].shape or ())[1:] if isinstance(size, int)]
    return [rng.standard_normal((count, *sizes)).astype(np.float32) for count in (2, 1)]


def test_the_sums_of_every_block_are_waists(model: onnx_ir.Model) -> None:
    names = {str(values[0].name) for values in waists(model).values() if len(values) == 1}
    blocks = {linear.name.split(".")[1] for linear in all_linears(model) if "block" in linear.name}
    for block in blocks:
        assert len([name for name in names if name.startswith(f"blocks.{block}/Add")]) == 2
    assert not [name for name in names if "attention" in name or "fc1" in name]


def test_every_variant_answers_as_whole(model: onnx_ir.Model, workspace: Counted) -> None:
    """In the order of the graph, against it, and one that differs nowhere."""
    pixels = batches(model)
    runs = SharedRuns(workspace, model, pixels)
    count = len(all_linears(model))
    for index in (0, 1, count // 2, count - 1, 0, count // 2):
        variant = halved(model, index)
        found = runs.answers(variant, "logits")
        expected = np.concatenate(list(workspace.answers(variant, pixels, "logits")))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    same = np.concatenate(list(workspace.answers(model, pixels, "logits")))
    np.testing.assert_allclose(runs.answers(model.clone(), "logits"), same, rtol=1e-4, atol=1e-5)


def test_what_variants_share_runs_once(model: onnx_ir.Model, workspace: Counted) -> None:
    runs = SharedRuns(workspace, model, batches(model))
    for index in range(len(all_linears(model)) - 1):
        runs.answers(halved(model, index), "logits")
    whole = len(model.graph) * (len(all_linears(model)) - 1)
    assert sum(workspace.nodes) < 0.75 * whole  # two blocks; of twelve it is a half


def test_a_node_that_nobody_reads_is_no_hindrance(model: onnx_ir.Model, workspace: Counted) -> None:
    """As other exporters leave them: behind it the same values wait as before it."""
    linear = all_linears(model)[-2]
    dead = onnx_ir.Node("", "Relu", [linear.input], name="dead")
    dead.outputs[0].name = "nobody reads this"
    model.graph.insert_before(linear.node, dead)
    other = model.clone()
    next(node for node in other.graph if node.name == "dead").op_type = "Abs"
    runs = SharedRuns(workspace, model, batches(model))
    for variant in (other, halved(model, -2)):
        whole = workspace.answers(variant, batches(model), "logits")
        found = runs.answers(variant, "logits")
        np.testing.assert_allclose(found, np.concatenate(list(whole)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("what", ["weight", "attribute", "operator", "input"])
def test_a_difference_is_seen_where_it_is(what: str, model: onnx_ir.Model) -> None:
    variant = model.clone()
    nodes = list(variant.graph)
    if what == "weight":
        place = next(i for i, node in enumerate(nodes) if node.op_type == "MatMul")
        weight = nodes[place].inputs[1]
        assert weight is not None
        assert weight.const_value is not None
        weight.const_value = onnx_ir.tensor(weight.const_value.numpy().copy(), name=weight.name)
    elif what == "attribute":
        place = next(i for i, node in enumerate(nodes) if node.op_type == "LayerNormalization")
        nodes[place].attributes["epsilon"] = onnx_ir.AttrFloat32("epsilon", 0.5)
    elif what == "operator":
        place = next(i for i, node in enumerate(nodes) if node.op_type == "Gelu")
        nodes[place].op_type = "Relu"
    else:
        place = [i for i, node in enumerate(nodes) if node.op_type == "Add"][1]
        nodes[place].replace_input_with(0, nodes[place].inputs[1])
    assert shared_nodes(model, variant) == place
    assert shared_nodes(model, model.clone()) == len(nodes)
