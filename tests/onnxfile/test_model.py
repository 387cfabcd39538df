"""Reading the structure: what is found, and that hostile bytes get ModelError and nothing else."""

from __future__ import annotations

import contextlib
import os
import random
import struct
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.onnxfile import files
from tests.onnxfile.files import field
from vit_edge.errors import ModelError
from vit_edge.onnxfile import (
    check_external_data,
    check_finite,
    check_operators,
    initializer_array,
    protobuf,
    read_model,
)


def everything(path: Path) -> None:
    """All that is ever done with a file that came from elsewhere."""
    facts = read_model(path)
    check_external_data(path, facts)
    check_operators(facts, max_opset=23, max_ir=10)
    check_finite(path, facts)
    for tensor in facts.tensors:
        initializer_array(path, tensor)


def refused(folder: Path, data: bytes, match: str) -> None:
    with pytest.raises(ModelError, match=match):
        read_model(files.write(folder, data))


def test_the_facts_of_a_small_model_are_all_found(tmp_path: Path) -> None:
    facts = read_model(files.write(tmp_path, files.small_model()))
    assert (facts.ir_version, facts.opsets) == (10, {"": 20, "local": 1})
    assert facts.operators[""] == {"MatMul": 1, "If": 1, "Constant": 1, "Relu": 1, "Add": 1}
    assert facts.operators["local"] == {"Twice": 1}
    assert facts.functions == {("local", "Twice")}
    assert facts.inputs[0] == ("pixel_values", "float32", ("batch", 3, 4, 4))
    assert facts.outputs[0] == ("logits", "float32", ("batch", 10))
    assert facts.metadata == {"labels": "cat,dog"}
    assert {t.name for t in facts.initializers} == {"weight", "typed", "deep", "sparse", "where"}
    assert {t.name for t in facts.tensors} - {t.name for t in facts.initializers} == {"c", "f"}
    assert facts.graph_depth == 2


def test_the_small_model_passes_every_check(tmp_path: Path) -> None:
    everything(files.write(tmp_path, files.small_model()))


def test_the_domain_ai_onnx_is_the_standard_one(tmp_path: Path) -> None:
    graph = files.graph(nodes=(files.node("Relu", domain="ai.onnx"), files.node("Relu")))
    facts = read_model(files.write(tmp_path, files.model(graph)))
    assert facts.operators == {"": {"Relu": 2}}


def test_a_file_cut_off_at_any_byte_is_refused_or_sound_in_what_is_left(tmp_path: Path) -> None:
    data = files.small_model()
    outcomes = set()
    for end in range(len(data)):
        try:
            everything(files.write(tmp_path, data[:end]))
            outcomes.add("sound")
        except ModelError:
            outcomes.add("refused")
    assert "refused" in outcomes


@settings(max_examples=400)
@given(
    changes=st.lists(
        st.tuples(
            st.integers(0, 10_000),
            st.sampled_from(["set", "cut", "insert"]),
            st.binary(max_size=12),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_a_mutated_file_raises_nothing_but_model_error(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, str, bytes]]
) -> None:
    data = bytearray(files.small_model())
    for place, kind, new in changes:
        at = place % (len(data) + 1)
        data[at : at + (0 if kind == "insert" else len(new))] = b"" if kind == "cut" else new
    path = files.write(tmp_path_factory.getbasetemp(), bytes(data), "mutated.onnx")
    with contextlib.suppress(ModelError):
        everything(path)


@settings(max_examples=100)
@given(data=st.binary(max_size=200))
def test_random_bytes_raise_nothing_but_model_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = files.write(tmp_path_factory.getbasetemp(), data, "random.onnx")
    with pytest.raises(ModelError):
        everything(path)


def test_an_error_names_the_file_and_the_byte(tmp_path: Path) -> None:
    refused(tmp_path, files.small_model()[:-1], r"model\.onnx: .* at byte \d+ of \d+")


@pytest.mark.parametrize("bits", [0xFF, 0x80])
def test_an_integer_without_an_end_is_refused(tmp_path: Path, bits: int) -> None:
    refused(tmp_path, b"\x08" + bytes([bits]) * 40, "more than 64 bits")


def test_an_integer_of_65_bits_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, b"\x08" + b"\xff" * 9 + b"\x02", "more than 64 bits")


@pytest.mark.parametrize("length", [2**31, 2**63, 2**64 - 1])
def test_a_length_beyond_the_file_is_refused(tmp_path: Path, length: int) -> None:
    refused(tmp_path, files.varint(7 << 3 | 2) + files.varint(length), "behind what holds it")


def test_an_inner_message_may_not_reach_out_of_the_outer_one(tmp_path: Path) -> None:
    inner = files.varint(1 << 3 | 2) + files.varint(50)  # the graph ends here, the file does not
    refused(tmp_path, field(7, inner) + field(14, b"\0" * 60), "behind what holds it")


@pytest.mark.parametrize(("tag", "what"), [(3, "wire type 3"), (4, "wire type 4"), (7, "type 7")])
def test_wire_types_that_onnx_never_had_are_refused(tmp_path: Path, tag: int, what: str) -> None:
    refused(tmp_path, files.varint(99 << 3 | tag) + b"\0" * 8, what)


def test_field_number_zero_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, b"\x00\x00", "field number 0")


def test_a_field_of_another_type_than_declared_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, files.model(files.graph()) + field(7, 5), "Model.graph has wire type 0")


def test_a_second_graph_which_protobuf_would_merge_is_refused(tmp_path: Path) -> None:
    graph = files.graph()
    refused(tmp_path, files.model(graph) + field(7, graph), "Model.graph occurs twice")


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    graph = files.graph(initializers=(files.tensor("x", b"\0" * 8, more=b""),))
    refused(tmp_path, files.model(graph.replace(b"\x01x", b"\x01\xff")), "not UTF-8")


def test_graphs_nested_beyond_the_limit_are_refused_in_no_time(tmp_path: Path) -> None:
    graph = files.graph()
    for _ in range(5_000):
        graph = field(1, files.node("If", files.attribute("body", 6, graph)))
    started = time.monotonic()
    refused(tmp_path, files.model(graph), "messages inside each other")
    assert time.monotonic() - started < 1.0


def test_millions_of_fields_are_refused_in_bounded_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protobuf, "MAX_FIELDS", 1000)  # the class default is bound already
    reader = protobuf.Reader(field(99, 1) * 2_000, "many.onnx", {"M": {}}, fields_left=1000)
    with pytest.raises(ModelError, match="more than 1000 fields"):
        reader.message("M", 0, len(reader.data))


def test_packed_integers_count_as_fields(tmp_path: Path) -> None:
    schema = {"M": {1: protobuf.Entry("dims", "ints")}}
    reader = protobuf.Reader(field(1, b"\1" * 2_000), "many.onnx", schema, fields_left=1000)
    with pytest.raises(ModelError, match="fields"):
        reader.message("M", 0, len(reader.data))


def test_megabytes_of_names_are_refused(tmp_path: Path) -> None:
    reader = protobuf.Reader(
        field(1, "x" * 100), "long.onnx", {"M": {1: protobuf.Entry("name", "text")}}, text_left=99
    )
    with pytest.raises(ModelError, match="names and metadata"):
        reader.message("M", 0, len(reader.data))


def test_weights_are_skipped_and_not_read(tmp_path: Path) -> None:
    path = tmp_path / "big.onnx"
    head = files.tensor("w", dims=(1 << 30,))  # 4 GiB of float32, none of it on the disk
    raw = files.varint(9 << 3 | 2) + files.varint(4 << 30)
    graph = files.varint(5 << 3 | 2) + files.varint(len(head) + len(raw) + (4 << 30)) + head + raw
    total = len(graph) + (4 << 30)
    before = field(1, 10) + files.varint(7 << 3 | 2) + files.varint(total) + graph
    path.write_bytes(before)
    os.truncate(path, len(before) + (4 << 30))
    started = time.monotonic()
    facts = read_model(path)
    assert facts.initializers[0].raw == (len(before), 4 << 30)
    assert time.monotonic() - started < 0.5


def test_a_negative_dimension_is_refused(tmp_path: Path) -> None:
    graph = files.graph(initializers=(files.tensor("w", dims=(-2,)),))
    refused(tmp_path, files.model(graph), r"'w' has a negative dimension: \[-2\]")


def test_raw_data_of_the_wrong_length_is_refused(tmp_path: Path) -> None:
    graph = files.graph(initializers=(files.tensor("w", b"\0" * 9),))
    refused(tmp_path, files.model(graph), r"9 bytes of data; float32\[2\] needs 8")


def test_data_in_two_places_is_refused(tmp_path: Path) -> None:
    twice = files.tensor("w", b"\0" * 8, more=field(4, struct.pack("<2f", 1, 2)))
    refused(tmp_path, files.model(files.graph(initializers=(twice,))), "more than one place")


def test_a_file_without_a_graph_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, field(1, 10), "it has no graph")


def test_an_empty_file_a_folder_a_missing_one_and_a_fifo_are_refused(tmp_path: Path) -> None:
    refused(tmp_path, b"", "is empty")
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "missing", tmp_path / "fifo", tmp_path / "nul\0"):
        with pytest.raises(ModelError):
            read_model(path)


def test_a_plain_text_file_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, b"version 1 of a model, to be downloaded\n", "not a sound ONNX file")


def test_noise_as_long_as_a_model_is_refused_quickly(tmp_path: Path) -> None:
    noise = random.Random(0).randbytes(4 << 20)
    started = time.monotonic()
    refused(tmp_path, noise, "not a sound ONNX file")
    assert time.monotonic() - started < 1.0
