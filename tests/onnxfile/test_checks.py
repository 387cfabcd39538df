"""External data, operators, and values: each thing that must be refused, refused."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest

from tests.onnxfile import files
from tests.onnxfile.files import field
from vit_edge.errors import ModelError
from vit_edge.onnxfile import (
    check_external_data,
    check_finite,
    check_operators,
    initializer_array,
    read_model,
)

GOOD = (("location", "weights.bin"), ("offset", "0"), ("length", "8"))


def check(path: Path) -> None:
    check_external_data(path, read_model(path))


def with_initializer(folder: Path, tensor: bytes) -> Path:
    return files.write(folder, files.model(files.graph(initializers=(tensor,))))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder with 16 good bytes, beside something secret."""
    (tmp_path / "secret").write_bytes(b"s" * 16)
    home = tmp_path / "bundle"
    home.mkdir()
    (home / "weights.bin").write_bytes(struct.pack("<4f", 1, 2, 3, 4))
    return home


def test_external_data_in_a_plain_file_beside_the_model_is_accepted(folder: Path) -> None:
    path = with_initializer(folder, files.external(*GOOD))
    check(path)
    assert initializer_array(path, read_model(path).initializers[0]).tolist() == [1, 2]


def test_the_offset_and_the_length_may_be_left_out(folder: Path) -> None:
    check(with_initializer(folder, files.external(("location", "weights.bin"))))


def test_external_data_in_a_folder_below_is_accepted(folder: Path) -> None:
    (folder / "data").mkdir()
    (folder / "data" / "w").write_bytes(b"\0" * 8)
    check(with_initializer(folder, files.external(("location", "data/w"))))


@pytest.mark.parametrize(
    "location",
    [
        "../secret",  # CVE-2022-25882
        "sub/../../secret",  # CVE-2024-27318: a folder first
        "./../secret",
        "weights.bin/../../secret",
        "..",
        "/etc/passwd",
        "//etc/passwd",
        "..\\secret",
        "C:secret",
        "C:\\secret",
        "file:///etc/passwd",
        "",
        ".",
        "./weights.bin",
        "data//w",
        "weights.bin/",
        "weights.bin\0.txt",
        "weights.bin\n",
        "*/_ORT_MEM_ADDR_/*",  # ONNX Runtime's own mark for "offset is a pointer"
        "missing.bin",
        "x" * 5000,
    ],
)
def test_a_location_that_is_no_plain_path_below_is_refused(folder: Path, location: str) -> None:
    path = with_initializer(folder, files.external(("location", location)))
    with pytest.raises(ModelError, match="'weight'") as caught:
        check(path)
    assert repr(location) in str(caught.value)


def test_a_symbolic_link_is_refused(folder: Path) -> None:
    (folder / "link").symlink_to("../secret")
    with pytest.raises(ModelError, match="symbolic link"):
        check(with_initializer(folder, files.external(("location", "link"))))


def test_a_symbolic_link_to_a_folder_on_the_way_is_refused(folder: Path) -> None:
    (folder / "data").symlink_to("..")
    with pytest.raises(ModelError, match="symbolic link"):
        check(with_initializer(folder, files.external(("location", "data/secret"))))


def test_a_hard_link_is_refused(folder: Path) -> None:
    os.link(folder.parent / "secret", folder / "linked")
    with pytest.raises(ModelError, match="hard link"):
        check(with_initializer(folder, files.external(("location", "linked"))))


def test_a_fifo_and_a_folder_are_refused(folder: Path) -> None:
    os.mkfifo(folder / "fifo")
    (folder / "sub").mkdir()
    for location in ("fifo", "sub"):
        with pytest.raises(ModelError, match="no regular file"):
            check(with_initializer(folder, files.external(("location", location))))


def test_the_model_file_itself_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match="the model file itself"):
        check(with_initializer(folder, files.external(("location", "model.onnx"))))


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("offset", "-1", "not a byte count"),
        ("offset", "9", "behind the end"),
        ("offset", "9223372036854775807", "behind the end"),
        ("offset", "1e3", "not a byte count"),
        ("offset", "٣", "not a byte count"),
        ("offset", " 1", "not a byte count"),
        ("offset", "9" * 5000, "not a byte count"),
        ("length", "7", "needs 8 bytes"),
        ("length", "16", "needs 8 bytes"),
        ("length", "-8", "not a byte count"),
        ("length", "", "not a byte count"),
        ("path", "weights.bin", "unknown key 'path'"),
        ("location", "../secret", "'location' occurs 2 times"),
        ("offset\0", "1", "unknown key"),
    ],
)
def test_a_bad_entry_beside_a_good_location_is_refused(
    folder: Path, key: str, value: str, match: str
) -> None:
    entries = (("location", "weights.bin"), (key, value))
    with pytest.raises(ModelError, match=match) as caught:
        check(with_initializer(folder, files.external(*entries)))
    assert "'weight'" in str(caught.value)
    assert "'weights.bin'" in str(caught.value)


BAD = files.external(("location", "../secret"))
IN_ATTRIBUTE = files.node("Constant", files.attribute("value", 5, BAD))


@pytest.mark.parametrize(
    ("place", "where"),
    [
        (files.model(files.graph(nodes=(IN_ATTRIBUTE,))), "Constant node 'n', attribute 'value'"),
        (
            files.model(files.graph(nodes=(files.node("X", files.attribute("ts", 10, BAD)),))),
            "X node 'n', attribute 'ts'",
        ),
        (
            files.model(
                files.graph(
                    nodes=(
                        files.node(
                            "If", files.attribute("then", 6, files.graph(initializers=(BAD,)))
                        ),
                    )
                )
            ),
            "attribute 'then', initializer",
        ),
        (
            files.model(
                files.graph(
                    nodes=(
                        files.node(
                            "Scan",
                            files.attribute("bodies", 11, files.graph(nodes=(IN_ATTRIBUTE,))),
                        ),
                    )
                )
            ),
            "attribute 'bodies', Constant node",
        ),
        (files.model(files.graph(more=field(15, field(1, BAD)))), "sparse initializer 0, values"),
        (files.model(files.graph(more=field(15, field(2, BAD)))), "sparse initializer 0, indices"),
        (
            files.model(
                files.graph(nodes=(files.node("X", files.attribute("s", 22, field(1, BAD))),))
            ),
            "attribute 's', values",
        ),
        (
            files.model(
                files.graph(nodes=(files.node("X", files.attribute("s", 23, field(2, BAD))),))
            ),
            "attribute 's', indices",
        ),
        (
            files.model(files.graph(), more=field(25, field(1, "F") + field(7, IN_ATTRIBUTE))),
            "function 'F', Constant node",
        ),
        (
            files.model(
                files.graph(),
                more=field(25, field(1, "F") + field(11, files.attribute("d", 5, BAD))),
            ),
            "function 'F', attribute 'd'",
        ),
        (
            files.model(files.graph(), more=field(20, field(1, files.graph(initializers=(BAD,))))),
            "training_info 0, initialization",
        ),
        (
            files.model(files.graph(), more=field(20, field(2, files.graph(initializers=(BAD,))))),
            "training_info 0, algorithm",
        ),
    ],
)
def test_external_data_is_found_wherever_a_tensor_can_be(
    folder: Path, place: bytes, where: str
) -> None:
    with pytest.raises(ModelError, match="leaves the model's folder") as caught:
        check(files.write(folder, place))
    assert where in str(caught.value)


def test_entries_without_the_external_mark_are_checked_all_the_same(folder: Path) -> None:
    unmarked = files.tensor("weight", more=field(13, files.pair("location", "../secret")))
    with pytest.raises(ModelError, match="leaves the model's folder"):
        check(with_initializer(folder, unmarked))


def test_the_external_mark_without_a_location_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match="missing or empty"):
        check(with_initializer(folder, files.external()))


def test_text_cannot_be_external(folder: Path) -> None:
    text = files.tensor(
        "t", dtype=8, more=field(13, files.pair("location", "weights.bin")) + field(14, 1)
    )
    with pytest.raises(ModelError, match="string cannot be stored externally"):
        check(with_initializer(folder, text))


def test_all_problems_are_listed_up_to_a_limit(folder: Path) -> None:
    bad = tuple(files.external(("location", "../s"), name=f"w{i}") for i in range(30))
    with pytest.raises(ModelError, match=r"30 problem\(s\)[\s\S]*'w19'[\s\S]*and 10 more"):
        check(files.write(folder, files.model(files.graph(initializers=bad))))


def test_an_array_of_unsafe_external_data_is_refused_too(folder: Path) -> None:
    path = with_initializer(folder, files.external(("location", "../secret")))
    facts = read_model(path)
    for use in (
        lambda: initializer_array(path, facts.tensors[0]),
        lambda: check_finite(path, facts),
    ):
        with pytest.raises(ModelError, match="leaves the model's folder"):
            use()


@pytest.mark.parametrize(
    ("ir", "opset", "match"),
    [
        (11, 20, "IR version 11, the runtime reads up to 10"),
        (10, 24, "opset 24, the runtime knows up to 23"),
        (0, 20, "no IR version"),
    ],
)
def test_a_model_newer_than_the_runtime_is_refused(
    tmp_path: Path, ir: int, opset: int, match: str
) -> None:
    facts = read_model(files.write(tmp_path, files.model(files.graph(), ir=ir, opset=opset)))
    with pytest.raises(ModelError, match=f"{match}[\\s\\S]*--opset 23"):
        check_operators(facts, max_opset=23, max_ir=10)


def test_an_unknown_domain_is_refused_and_its_operators_named(tmp_path: Path) -> None:
    graph = files.graph(nodes=(files.node("FusedGelu", domain="com.microsoft"),))
    facts = read_model(files.write(tmp_path, files.model(graph)))
    with pytest.raises(ModelError, match="'com.microsoft': FusedGelu"):
        check_operators(facts, max_opset=23, max_ir=10)
    check_operators(facts, max_opset=23, max_ir=10, domains=("", "com.microsoft"))


def test_a_domain_hidden_in_a_subgraph_is_found(tmp_path: Path) -> None:
    inner = files.graph(nodes=(files.node("Evil", domain="x"),))
    graph = files.graph(nodes=(files.node("If", files.attribute("then_branch", 6, inner)),))
    with pytest.raises(ModelError, match="'x': Evil"):
        check_operators(
            read_model(files.write(tmp_path, files.model(graph))), max_opset=23, max_ir=10
        )


BITS_OF_NAN = {
    1: np.float32(np.nan).tobytes(),
    10: np.float16(np.inf).tobytes(),
    11: np.float64(-np.inf).tobytes(),
    14: np.complex64(complex(0, np.nan)).tobytes(),
    16: b"\xc0\x7f",
    17: b"\xff",
    18: b"\x80",
    19: b"\x7c",
    20: b"\x80",
}
BITS_OF_LARGEST = {
    1: np.finfo(np.float32).max.tobytes(),
    10: np.finfo(np.float16).max.tobytes(),
    11: np.finfo(np.float64).max.tobytes(),
    14: np.complex64(complex(-1, 1)).tobytes(),
    16: b"\x7f\x7f",
    17: b"\x7e",
    18: b"\x7f",
    19: b"\x7b",
    20: b"\x7f",
}


@pytest.mark.parametrize("dtype", BITS_OF_NAN)
def test_nan_and_infinity_are_found_in_every_float_type(tmp_path: Path, dtype: int) -> None:
    fine, bad = BITS_OF_LARGEST[dtype], BITS_OF_NAN[dtype]
    path = with_initializer(tmp_path, files.tensor("w", fine * 2, dtype=dtype))
    check_finite(path, read_model(path))
    path = with_initializer(tmp_path, files.tensor("w", fine + bad, dtype=dtype))
    with pytest.raises(ModelError, match="'w': 1 of 2 values are not finite"):
        check_finite(path, read_model(path))


def test_the_last_value_of_a_large_tensor_is_looked_at(tmp_path: Path) -> None:
    values = np.zeros((5 << 20) // 4 + 1, np.float32)
    values[-1] = np.nan
    path = with_initializer(tmp_path, files.tensor("w", values.tobytes(), dims=values.shape))
    with pytest.raises(ModelError, match="1 of 1310721"):
        check_finite(path, read_model(path))


def test_nan_in_external_and_in_typed_data_is_found(folder: Path) -> None:
    (folder / "weights.bin").write_bytes(struct.pack("<2f", 1, np.nan))
    typed = files.tensor("typed", more=field(4, struct.pack("<2f", np.inf, 1)))
    graph = files.graph(initializers=(files.external(*GOOD), typed))
    path = files.write(folder, files.model(graph))
    with pytest.raises(ModelError, match="'weight': 1 of 2[\\s\\S]*'typed': 1 of 2"):
        check_finite(path, read_model(path))


@pytest.mark.parametrize(
    ("dtype", "number", "data", "expected"),
    [
        (6, 5, b"".join(map(files.varint, (-5, 2**31 - 1))), [-5, 2**31 - 1]),
        (3, 5, b"".join(map(files.varint, (-128, 127))), [-128, 127]),
        (9, 5, b"\0\1", [False, True]),
        (10, 5, files.varint(0x3C00) + files.varint(0xC000), [1.0, -2.0]),
        (16, 5, files.varint(0x3F80) + files.varint(0xC000), [1.0, -2.0]),
        (7, 7, b"".join(map(files.varint, (-(2**63), 2**63 - 1))), [-(2**63), 2**63 - 1]),
        (13, 11, files.varint(2**64 - 1) + b"\0", [2**64 - 1, 0]),
        (11, 10, struct.pack("<2d", 0.1, -0.2), [0.1, -0.2]),
    ],
)
def test_values_in_fields_of_their_own_type_are_decoded(
    tmp_path: Path, dtype: int, number: int, data: bytes, expected: list[float]
) -> None:
    path = with_initializer(tmp_path, files.tensor("w", dtype=dtype, more=field(number, data)))
    assert initializer_array(path, read_model(path).initializers[0]).tolist() == expected


@pytest.mark.parametrize(
    ("dtype", "number", "data", "match"),
    [
        (3, 5, files.varint(300) + b"\0", "outside int8"),
        (7, 7, b"\1\x80", "cut off"),
        (7, 7, b"\x80" * 11 + b"\1\1", "more than 64 bits"),
        (7, 7, b"\1\1\1", "has 3 values"),
        (1, 4, b"\0" * 7, "cut off"),
        (1, 7, b"\1\1", "int64_data cannot hold float32"),
    ],
)
def test_damaged_typed_values_are_refused(
    tmp_path: Path, dtype: int, number: int, data: bytes, match: str
) -> None:
    path = with_initializer(tmp_path, files.tensor("w", dtype=dtype, more=field(number, data)))
    with pytest.raises(ModelError, match=match):
        initializer_array(path, read_model(path).initializers[0])


def test_an_array_is_mapped_and_cannot_be_written(tmp_path: Path) -> None:
    path = with_initializer(tmp_path, files.tensor("w", struct.pack("<2f", 1, 2)))
    array = initializer_array(path, read_model(path).initializers[0])
    assert isinstance(array.base, np.memmap | np.ndarray)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 3


def test_a_tensor_without_data_is_refused(tmp_path: Path) -> None:
    path = with_initializer(tmp_path, files.tensor("w"))
    with pytest.raises(ModelError, match="has no data"):
        initializer_array(path, read_model(path).initializers[0])
