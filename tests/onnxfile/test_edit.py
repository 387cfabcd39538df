"""Editing a graph by its bytes does what onnx would do, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from vit_edge.bundle import Bundle
from vit_edge.errors import ModelError
from vit_edge.onnxfile.edit import tap_name, tensor_names, with_outputs, with_values

requires = ("onnx", "onnxruntime")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """x -> Split -> (a + 1, b) -> Concat, with a float16 detour."""
    graph = helper.make_graph(
        [
            helper.make_node("Split", ["x"], ["a", "b"], name="split", axis=1, num_outputs=2),
            helper.make_node("Add", ["a", "one"], ["a1"], name="add"),
            helper.make_node("Cast", ["b"], ["half"], name="down", to=TensorProto.FLOAT16),
            helper.make_node("Mul", ["half", "half"], ["squares"], name="mul"),
            helper.make_node("Cast", ["squares"], ["wide"], name="up", to=TensorProto.FLOAT),
            helper.make_node("Concat", ["a1", "wide"], ["y"], name="concat", axis=1),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(np.float32(1), "one")],
    )
    path = tmp_path / "model.onnx"
    made = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10, producer_name="test"
    )
    onnx.save(made, path)
    return path


X = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32)


def answers(content: bytes) -> dict[str, Any]:
    import onnxruntime

    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"x": X}), strict=True))


def test_tensors_are_listed_in_the_order_of_computation(model: Path) -> None:
    assert tensor_names(model) == ["a", "b", "a1", "half", "squares", "wide", "y"]


def test_outputs_are_added_as_float32_and_the_old_ones_stay(model: Path) -> None:
    found = answers(with_outputs(model, {"a1": ("n", 2), "squares": ("n", 2)}))
    assert list(found) == ["y", tap_name("a1"), tap_name("squares")]
    assert np.array_equal(found[tap_name("a1")], X[:, :2] + 1)
    assert found[tap_name("squares")].dtype == np.float32
    assert np.array_equal(found[tap_name("squares")], X[:, 2:] ** 2)
    assert np.array_equal(found["y"], np.hstack([X[:, :2] + 1, X[:, 2:] ** 2]))


@given(names=st.sets(st.sampled_from(["a", "b", "a1", "squares", "wide"]), min_size=1))
def test_given_values_take_the_place_of_computed_ones(
    names: set[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path: Path = model.__wrapped__(tmp_path_factory.mktemp("model"))  # type: ignore[attr-defined]
    values = {name: np.full((2, 2), 10.0 + n, np.float32) for n, name in enumerate(sorted(names))}
    a, b = values.get("a", X[:, :2]), values.get("b", X[:, 2:])
    squares = values.get("squares", b**2)
    expected = np.hstack([values.get("a1", a + 1), values.get("wide", squares)])
    assert np.array_equal(answers(with_values(path, values))["y"], expected)


def test_a_tensor_that_is_not_there_is_refused(model: Path) -> None:
    with pytest.raises(ModelError, match="computes no nothing, x"):
        with_outputs(model, {"x": ("n", 4), "nothing": ("n", 2)})
    with pytest.raises(ModelError, match="computes no y2"):
        with_values(model, {"y2": X})


def test_everything_else_stays_as_it_is(testing_bundle: Bundle) -> None:
    before = onnx.load(testing_bundle.model_path)
    name = tensor_names(testing_bundle.model_path)[0]
    after = onnx.load_from_string(with_outputs(testing_bundle.model_path, {name: ("n", 3, 4, 4)}))
    assert after.graph.output.pop().name == tap_name(name)
    assert after.graph.node.pop().op_type == "Cast"
    assert after == before


def test_a_damaged_file_is_refused(model: Path) -> None:
    model.write_bytes(model.read_bytes()[:-3])
    with pytest.raises(ModelError, match="not a sound ONNX file"):
        tensor_names(model)
