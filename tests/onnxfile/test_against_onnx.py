"""The walk finds in real files what onnx finds in them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from vit_edge.errors import ModelError
from vit_edge.onnxfile import check_external_data, check_finite, initializer_array, read_model

requires = ("onnx",)

DTYPES = ["float32", "float64", "float16", "int8", "uint8", "int16", "int32", "int64", "bool"]


def a_model(weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    graph = helper.make_graph(
        [
            helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.ones(3))),
            helper.make_node("Identity", ["x"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 3, None])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 3, None])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    helper.set_model_props(model, {"labels": "a,b", "empty": ""})
    return model


def random_weights(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = [(), (0,), (1,), (3, 4), (2, 3, 5)]
    return {
        f"{dtype}{shape}": (rng.normal(size=shape) * 50).astype(dtype)
        for dtype in DTYPES
        for shape in shapes
    }


def agree(path: Path) -> None:
    """Compare every fact with onnx's, and every initializer's values."""
    facts, model = read_model(path), onnx.load(path)
    assert facts.ir_version == model.ir_version
    assert facts.opsets == {o.domain: o.version for o in model.opset_import}
    assert facts.metadata == {p.key: p.value for p in model.metadata_props}
    assert facts.operators.get("", Counter()) == Counter(
        n.op_type for n in model.graph.node if not n.domain
    )
    for found, true in ((facts.inputs, model.graph.input), (facts.outputs, model.graph.output)):
        assert [v.name for v in found] == [v.name for v in true]
        for ours, theirs in zip(found, true, strict=True):
            dims = theirs.type.tensor_type.shape.dim
            assert ours.shape == tuple(
                d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in dims
            )
    assert len(facts.initializers) == len(model.graph.initializer)
    for tensor, proto in zip(facts.initializers, model.graph.initializer, strict=True):
        assert tensor.name == proto.name
        expected = numpy_helper.to_array(proto, base_dir=str(path.parent))
        found_array = initializer_array(path, tensor)
        assert found_array.dtype == expected.dtype
        np.testing.assert_array_equal(found_array, expected)


def test_a_model_with_every_common_dtype_reads_as_in_onnx(tmp_path: Path) -> None:
    onnx.save(a_model(random_weights()), tmp_path / "model.onnx")
    agree(tmp_path / "model.onnx")


def test_external_data_written_by_onnx_is_accepted_and_reads_the_same(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(
        a_model({f"w{i}": np.arange(500.0, dtype=np.float32) + i for i in range(3)}),
        path,
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=100,
    )
    facts = read_model(path)
    assert all(tensor.external for tensor in facts.initializers)
    check_external_data(path, facts)
    check_finite(path, facts)
    agree(path)


@pytest.mark.parametrize(
    "dtype", ["FLOAT", "DOUBLE", "INT32", "INT64", "INT8", "UINT8", "UINT64", "FLOAT16", "BOOL"]
)
def test_typed_fields_written_by_onnx_read_the_same(tmp_path: Path, dtype: str) -> None:
    model = a_model({})
    kind = getattr(onnx.TensorProto, dtype)
    model.graph.initializer.append(helper.make_tensor("t", kind, [2, 2], [0, 1, 1, 0]))
    assert not model.graph.initializer[0].raw_data
    onnx.save(model, tmp_path / "model.onnx")
    agree(tmp_path / "model.onnx")


def test_sub_byte_types_are_counted_in_bytes_as_onnx_stores_them(tmp_path: Path) -> None:
    model = a_model({})
    packed = helper.make_tensor("t", onnx.TensorProto.INT4, [3], b"\x21\x03", raw=True)
    model.graph.initializer.append(packed)
    onnx.save(model, tmp_path / "model.onnx")
    (tensor,) = read_model(tmp_path / "model.onnx").initializers
    assert (tensor.dtype, tensor.nbytes) == ("int4", 2)
    with pytest.raises(ModelError, match="NumPy has no int4"):
        initializer_array(tmp_path / "model.onnx", tensor)


@pytest.mark.parametrize("seed", range(200))
def test_what_we_call_sound_and_what_onnx_refuses_do_not_overlap(tmp_path: Path, seed: int) -> None:
    data = bytearray(a_model({"w": np.ones((2, 3), np.float32)}).SerializeToString())
    rng = np.random.default_rng(seed)
    for at in rng.integers(0, len(data), size=2):
        data[at] = rng.integers(256)
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    try:
        ours = {(t.name, t.dims) for t in read_model(path).initializers}
    except ModelError:
        return
    theirs = {(t.name, tuple(t.dims)) for t in onnx.load_from_string(bytes(data)).graph.initializer}
    assert ours == theirs


def test_every_model_that_onnx_ships_for_its_tests_reads_the_same() -> None:
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data"
    paths = sorted(folder.glob("**/*.onnx"))
    assert len(paths) > 100
    for path in paths:
        facts, model = read_model(path), onnx.load(path)
        found = {t.name: t.dims for t in facts.initializers if ", attribute" not in t.where}
        assert found == {t.name: tuple(t.dims) for t in model.graph.initializer}, path
        assert [v.name for v in facts.outputs] == [v.name for v in model.graph.output], path
