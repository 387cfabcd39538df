"""What is written without onnx is what onnx would write, and is read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from vit_edge.bundle import Bundle
from vit_edge.errors import ModelError
from vit_edge.onnxfile import writer
from vit_edge.onnxfile.protobuf import Entry, Reader

requires = ("onnx", "hypothesis")


@given(
    number=st.integers(0, 2**63 - 1),
    text=st.text(st.characters(exclude_categories=["Cs"])),
    field_number=st.integers(1, 2**29 - 1),
)
def test_fields_are_read_back(number: int, text: str, field_number: int) -> None:
    schema = {
        "whole": {1: Entry("number", "int"), 2: Entry("part", "part")},
        "part": {field_number: Entry("text", "text")},
    }
    content = writer.field(1, number) + writer.field(2, writer.field(field_number, text))
    read = Reader(content, "x", schema).message("whole", 0, len(content))
    assert read == {"number": number, "part": {"text": text}}


def test_a_node_is_the_one_that_onnx_writes() -> None:
    ours = onnx.NodeProto.FromString(
        writer.node("ReduceMax", ["x", "axes"], "y", keepdims=0, axes=(1, 300))
    )
    expected = helper.make_node(
        "ReduceMax", ["x", "axes"], ["y"], name="ReduceMax/y", keepdims=0, axes=[1, 300]
    )
    assert {a.name: a for a in ours.attribute} == {a.name: a for a in expected.attribute}
    del ours.attribute[:], expected.attribute[:]
    assert ours == expected


def test_a_value_is_the_one_that_onnx_writes() -> None:
    ours = onnx.ValueInfoProto.FromString(writer.value("x", ["n", 3, 224]))
    assert ours == helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 224])


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3)])
@pytest.mark.parametrize("dtype", ["float32", "int8", "uint8", ">f4", "int64", "float16", "bool"])
def test_a_tensor_is_the_one_that_onnx_writes(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    ours = onnx.TensorProto.FromString(writer.tensor("w", array))
    assert ours == numpy_helper.from_array(array.astype(array.dtype.newbyteorder("=")), "w")


def test_a_strided_array_is_written_in_order() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4).T
    assert np.array_equal(
        numpy_helper.to_array(onnx.TensorProto.FromString(writer.tensor("w", array))), array
    )


def test_a_model_passes_the_checker() -> None:
    content = writer.model(
        [writer.node("MatMul", ["x", "w"], "y")],
        {"x": ("n", 2)},
        {"y": ("n", 3)},
        {"w": np.ones((2, 3), np.float32)},
    )
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model, full_check=True)
    assert (model.ir_version, model.opset_import[0].version) == (7, 13)
    assert [i.name for i in model.graph.initializer] == ["w"]


def test_a_graph_with_nothing_replaced_is_the_same_model(testing_bundle: Bundle) -> None:
    path = testing_bundle.model_path
    copy = writer.with_graph_fields(path, lambda reader, item: None)
    assert onnx.load_from_string(copy) == onnx.load(path)


def test_a_field_can_be_replaced_and_dropped(testing_bundle: Bundle) -> None:
    path = testing_bundle.model_path
    copy = writer.with_graph_fields(
        path,
        lambda reader, item: {2: writer.field(2, "renamed"), writer.INPUT: b""}.get(item.number),
    )
    before, after = onnx.load(path), onnx.load_from_string(copy)
    assert after.graph.name == "renamed"
    del before.graph.input[:]
    before.graph.name = "renamed"
    assert after == before


def test_a_damaged_model_is_refused(testing_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(testing_bundle.model_path.read_bytes()[:-3])
    with pytest.raises(ModelError, match="not a sound ONNX file"):
        writer.with_graph_fields(tmp_path / "model.onnx", lambda reader, item: None)
