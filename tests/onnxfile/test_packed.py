"""Rewriting where an optimized model's weights lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from vit_edge.backends.ort import packed
from vit_edge.errors import ModelError

requires = ("onnx", "hypothesis")

TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF), max_size=200)


def model_with(external: dict[str, dict[str, str]]) -> onnx.ModelProto:
    """A graph of one node, and initializers that say where they lie."""
    node = helper.make_node("Identity", ["x"], ["y"], name="node")
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in "xy"]
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    for name, pairs in external.items():
        tensor = graph.initializer.add(name=name, data_type=TensorProto.INT8, dims=[4])
        if pairs:
            tensor.data_location = TensorProto.EXTERNAL
        else:
            tensor.raw_data = b"abcd"
        for key, value in pairs.items():
            tensor.external_data.add(key=key, value=value)
    return helper.make_model(graph, producer_name="test")


@settings(deadline=None, max_examples=60)
@given(value=TEXT, other=TEXT)
def test_replacing_one_tensors_place_leaves_all_else(
    tmp_path_factory: pytest.TempPathFactory, value: str, other: str
) -> None:
    path = tmp_path_factory.mktemp("packed") / "model.onnx"
    before = model_with({"a": {"location": "d", "offset": "0"}, "b": {}, "c": {"location": other}})
    path.write_bytes(before.SerializeToString())
    changed = packed.with_external_data(path, {"a": {"location": value, "offset": "12345678901"}})
    after = onnx.ModelProto.FromString(changed)
    pairs = {pair.key: pair.value for pair in after.graph.initializer[0].external_data}
    assert pairs == {"location": value, "offset": "12345678901"}
    del after.graph.initializer[0].external_data[:]
    del before.graph.initializer[0].external_data[:]
    assert after == before


def test_places_are_read_by_name(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    external = {"a": {"location": "d", "offset": "0", "length": "4"}}
    path.write_bytes(model_with({**external, "b": {}}).SerializeToString())
    assert packed.external_data(path) == external


@pytest.mark.parametrize("text", ["key", "key|", "key|1;2", "key|a;2;0", "key|1;2;0|;;"])
def test_packed_weights_described_in_another_way_are_refused(text: str) -> None:
    with pytest.raises(ModelError, match="packed weights described as"):
        packed.blobs({"prepacked_0": text})


def entry(offset: int, length: int, blob: int) -> dict[str, str]:
    return {
        "location": "data", "offset": str(offset), "length": str(length),
        "prepacked_0": f"key{offset}|{blob};{length};0",
    }  # fmt: skip


def test_blobs_move_whole_and_stand_ins_differ(tmp_path: Path) -> None:
    content = np.random.default_rng(0).integers(0, 256, 40_000).astype(np.uint8)
    content.tofile(tmp_path / "data")
    external = {"a": entry(0, 5000, 10_000), "b": entry(5000, 5000, 20_000)}
    external["plain"] = {"location": "data", "offset": "30000", "length": "7"}
    keys = {name: {"prepacked_0": f"other-{name}|0;1;0"} for name in "ab"}
    changed = packed.compacted(external, keys, tmp_path / "data", tmp_path / "new")
    found = np.fromfile(tmp_path / "new", np.uint8)
    for name, start in (("a", 10_000), ("b", 20_000)):
        ((key, (blob,)),) = packed.blobs(changed[name]).values()
        assert key == f"other-{name}"
        assert blob.offset % packed.ALIGNMENT == 0
        moved = found[blob.offset : blob.offset + blob.length]
        np.testing.assert_array_equal(moved, content[start : start + 5000])
    offset = int(changed["plain"]["offset"])
    np.testing.assert_array_equal(found[offset : offset + 7], content[30_000:30_007])
    stand_ins = [found[(at := int(changed[n]["offset"])) : at + 5000] for n in "ab"]
    assert [int(each.sum()) for each in stand_ins] == [1, 1]
    assert (stand_ins[0] != stand_ins[1]).any()


def test_stand_ins_that_share_a_key_are_refused(tmp_path: Path) -> None:
    """The runtime finds packed weights by the key alone: both would get the same."""
    np.zeros(40_000, np.uint8).tofile(tmp_path / "data")
    external = {"a": entry(0, 5000, 10_000), "b": entry(5000, 5000, 20_000)}
    keys = {name: {"prepacked_0": "same|0;1;0"} for name in "ab"}
    with pytest.raises(ModelError, match="not packed alike"):
        packed.compacted(external, keys, tmp_path / "data", tmp_path / "new")


def test_data_that_ends_inside_a_weight_is_refused(tmp_path: Path) -> None:
    np.zeros(12_000, np.uint8).tofile(tmp_path / "data")
    keys = {"a": {"prepacked_0": "k|0;1;0"}}
    with pytest.raises(ModelError, match="inside a weight"):
        packed.compacted({"a": entry(0, 5000, 10_000)}, keys, tmp_path / "data", tmp_path / "new")
