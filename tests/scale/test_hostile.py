"""Large jobs over inputs and folders as people and machines leave them."""

from __future__ import annotations

import gzip
import importlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.scale.test_batch import labels, rows
from tests.scale.test_tables import BAD
from vit_edge import Bundle, InputError, Predictor, UsageError
from vit_edge.errors import MissingExtraError, ResourceError
from vit_edge.scale import __main__ as command
from vit_edge.scale.batch import batch
from vit_edge.scale.segments import segments
from vit_edge.scale.tables import Classifier

requires = ("onnxruntime", "pyarrow")


@pytest.fixture(scope="module")
def small(photos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three photos, small ones: it is not decoding that is tested here."""
    folder = tmp_path_factory.mktemp("small")
    for path in photos[:3]:
        Image.open(path).convert("RGB").resize((48, 36)).save(folder / path.name)
    return [folder / path.name for path in photos[:3]]


@pytest.fixture(scope="module")
def encoded(small: list[Path]) -> list[bytes]:
    return [path.read_bytes() for path in small]


@pytest.fixture(scope="module")
def expected(testing_bundle: Bundle, encoded: list[bytes]) -> list[str]:
    """The labels of the three photos."""
    with Predictor(testing_bundle, "ort") as predictor:
        return [answer.label for answer in predictor.stream(encoded)]


@pytest.fixture(scope="module")
def classify(testing_bundle: Bundle) -> Iterator[Classifier]:
    opened = Classifier(testing_bundle.path)
    yield opened
    opened.close()


@pytest.fixture
def files(tmp_path: Path, encoded: list[bytes]) -> list[str]:
    """Six files: the photos twice."""
    (tmp_path / "in").mkdir()
    paths = [tmp_path / "in" / f"{index}.jpg" for index in range(6)]
    for index, path in enumerate(paths):
        path.write_bytes(encoded[index % 3])
    return [str(path) for path in paths]


# --- tables -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        pa.binary(), pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int8(), pa.binary()),
        pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string()),
    ],
    ids=str,
)  # fmt: skip
def test_every_type_of_bytes_and_text_is_taken(
    classify: Classifier, encoded: list[bytes], expected: list[str], small: list[Path], kind: Any
) -> None:
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    text = any(is_(plain) for is_ in (pa.types.is_string, pa.types.is_large_string,
                                      pa.types.is_string_view))  # fmt: skip
    values = [*map(str, small)] if text else encoded
    base = pa.array([*values, None], pa.string() if text else pa.binary())
    column = base.dictionary_encode().cast(kind) if plain is not kind else base.cast(kind)
    found = classify(pa.table({"image": column}))
    assert found["label"].to_pylist() == [*expected, None]
    assert ("image" in found.column_names) == text
    assert found["error"][3].as_py() == "ImageDecodeError: no image: the cell is null"


def test_a_column_of_nulls_alone_has_rows_with_errors(classify: Classifier) -> None:
    found = classify(pa.table({"path": pa.nulls(2)}))
    assert found["label"].null_count == 2
    assert found["error"].null_count == 0


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1.5]), pa.array([["a.jpg"]]), pa.array([[1, 2]]), pa.array([{"url": "a.jpg"}]),
        pa.array([{"bytes": [1]}]), pa.array([{"path": 3}]),
        pa.array([b"ab"], pa.binary(2)), pa.array([True]),
    ],
    ids=lambda column: str(column.type),
)  # fmt: skip
def test_other_types_are_refused_with_their_name(classify: Classifier, column: Any) -> None:
    with pytest.raises(UsageError, match=r"column 'image' is .*; images are encoded bytes"):
        classify(pa.table({"image": column}))


def test_a_column_that_fits_goes_before_one_that_does_not(
    classify: Classifier, small: list[Path], expected: list[str]
) -> None:
    table = pa.table({"image": [1, 2, 3], "path": [str(path) for path in small]})
    found = classify(table)
    assert found["label"].to_pylist() == expected
    assert found["image"].to_pylist() == [1, 2, 3]


def test_two_columns_of_one_name_are_refused(classify: Classifier) -> None:
    table = pa.Table.from_arrays(
        [pa.array(["a"]), pa.array([1]), pa.array([2])], ["path", "x", "x"]
    )
    with pytest.raises(UsageError, match="two columns 'x'"):
        classify(table)


def test_empty_bytes_are_an_error_and_the_path_beside_them_is_not_read(
    classify: Classifier, photos: list[Path]
) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = [{"bytes": b"", "path": str(photos[0])}, {"bytes": None, "path": None}]
    found = classify(pa.table({"image": pa.array(cells, kind)}))
    assert found["label"].to_pylist() == [None, None]
    assert found["error"].null_count == 0


def test_a_table_s_own_metadata_stays(classify: Classifier, encoded: list[bytes]) -> None:
    """pandas has its index there; tests/scale/test_engines.py looks at that of datasets."""
    given = pa.table({"bytes": encoded}).replace_schema_metadata({"mine": "kept"})
    assert classify(given).schema.metadata == {b"mine": b"kept"}


def test_a_stream_of_tables_reads_three_batches_ahead_and_keeps_nothing(
    classify: Classifier, encoded: list[bytes]
) -> None:
    """Memory is flat: of forty tables only those in work are alive."""
    seen: list[weakref.ref[Any]] = []

    def tables() -> Iterator[pa.Table]:
        for _ in range(40):
            table = pa.table({"bytes": encoded[:2] * 2})
            seen.append(weakref.ref(table))
            yield table

    ahead = alive = 0
    for number, _ in enumerate(classify.stream(tables())):
        ahead = max(ahead, len(seen) - number)
        alive = max(alive, sum(ref() is not None for ref in seen))
    assert number == 39
    assert ahead <= 3 * classify._batch // 4 + 2
    assert alive <= ahead + 2


def test_a_stream_of_tables_gives_each_its_own_rows(
    classify: Classifier, encoded: list[bytes], expected: list[str]
) -> None:
    """Tables without rows, without images, larger and smaller than a batch."""
    pattern = [[0], [], [None, None], [1, None, 2], [], [2, 1, 0] * 20, [None]]
    tables = [
        pa.table({
            "n": [number] * len(rows),
            "bytes": pa.array([None if i is None else encoded[i] for i in rows], pa.binary()),
        })
        for number, rows in enumerate(pattern)
    ]  # fmt: skip
    found = list(classify.stream(tables))
    assert [table["label"].to_pylist() for table in found] == [
        [None if i is None else expected[i] for i in rows] for rows in pattern
    ]
    assert [table["n"].to_pylist() for table in found] == [t["n"].to_pylist() for t in tables]


@pytest.mark.parametrize("option", ["top_k", "batch_size"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_numbers_that_are_none_are_refused_at_once(
    testing_bundle: Bundle, option: str, value: Any
) -> None:
    with pytest.raises(UsageError, match=f"{option} must be a whole number"):
        Classifier(testing_bundle.path, **{option: value})


# --- lists and folders --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["{}\n{}\n", "{}\r\n\r\n{}\r\n", "\n  \n{}\n\n{}", "\ufeff{}\r\n{}"],
    ids=["plain", "crlf", "blank", "bom"],
)
def test_lists_are_read_whatever_ends_their_lines(
    testing_bundle: Bundle, files: list[str], expected: list[str], tmp_path: Path, text: str
) -> None:
    (tmp_path / "list.txt").write_bytes(text.format(*files[:2]).encode())
    batch(testing_bundle, str(tmp_path / "list.txt"), out=tmp_path / "out")
    assert labels(tmp_path / "out") == [(files[0], expected[0]), (files[1], expected[1])]


def test_what_a_list_names_and_is_not_there_has_a_row(
    testing_bundle: Bundle, files: list[str], expected: list[str], tmp_path: Path
) -> None:
    (tmp_path / "empty.jpg").touch()
    lines = [files[0], str(tmp_path / "absent.jpg"), str(tmp_path / "empty.jpg"), str(tmp_path),
             "nosuch://bucket/a.jpg", "a\0b.jpg", files[0], "memory://none/a.jpg"]  # fmt: skip
    (tmp_path / "list.txt").write_text("\n".join(lines))
    result = batch(testing_bundle, str(tmp_path / "list.txt"), out=tmp_path / "out")
    assert [row["path"] for row in rows(tmp_path / "out")] == lines
    assert [row["label"] for row in rows(tmp_path / "out")] == [
        expected[0], *[None] * 5, expected[0], None,
    ]  # fmt: skip
    assert result.failed == 6


def test_a_list_in_utf_16_is_refused(testing_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.jpg\n", encoding="utf-16")
    with pytest.raises(InputError, match="UTF-16; save it in UTF-8"):
        batch(testing_bundle, str(tmp_path / "list.txt"), out=tmp_path / "out")


def test_a_list_comes_from_stdin_or_a_pipe(
    testing_bundle: Bundle, files: list[str], expected: list[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    given = io.TextIOWrapper(io.BytesIO(f"{files[0]}\r\n{files[1]}".encode()))
    monkeypatch.setattr(sys, "stdin", given)
    batch(testing_bundle, "-", out=tmp_path / "stdin")
    assert [label for _, label in labels(tmp_path / "stdin")] == expected[:2]
    read, write = os.pipe()
    os.write(write, f"{files[2]}\n".encode())
    os.close(write)
    batch(testing_bundle, f"/dev/fd/{read}", out=tmp_path / "pipe")
    os.close(read)
    assert [label for _, label in labels(tmp_path / "pipe")] == [expected[2]]


@pytest.mark.parametrize("name", [b"\xff\xfe.jpg", "Büro ☃ 写真.jpg".encode(), b"a b%20#?.jpg",
                                  b"new\nline.jpg", b"-x.jpg"])  # fmt: skip
def test_any_name_is_read(
    testing_bundle: Bundle, files: list[str], expected: list[str], tmp_path: Path, name: bytes
) -> None:
    (tmp_path / "odd").mkdir()
    shutil.copy(files[1], os.fsdecode(bytes(tmp_path / "odd") + b"/" + name))
    shutil.copy(files[2], tmp_path / "odd" / "~.jpg")
    batch(testing_bundle, str(tmp_path / "odd"), out=tmp_path / "out")
    assert sorted(label or "" for _, label in labels(tmp_path / "out")) == sorted(expected[1:])
    shown = name.decode(errors="backslashreplace")
    assert any(path.endswith(shown) for path, _ in labels(tmp_path / "out"))
    assert {"image", "bytes"}.isdisjoint(rows(tmp_path / "out")[0])


def test_a_folder_behind_a_file_url_has_the_files_that_it_has_as_a_path(
    testing_bundle: Bundle, files: list[str], expected: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "odd %41?b=c"
    folder.mkdir()
    for name, file in zip(("100%41.jpg", "a b%20#?d=e.jpg", "~%.jpg"), files, strict=False):
        shutil.copy(file, folder / name)
    batch(testing_bundle, f"{folder.as_uri()}/", out=tmp_path / "out")
    assert [label for _, label in labels(tmp_path / "out")] == expected
    batch(testing_bundle, labels(tmp_path / "out")[0][0], out=tmp_path / "one")
    assert labels(tmp_path / "one") == labels(tmp_path / "out")[:1]


def test_a_file_url_that_cannot_be_listed_is_refused(
    testing_bundle: Bundle, files: list[str], tmp_path: Path
) -> None:
    """A name that is no UTF-8, for which Arrow has no text; and a URL that lacks a slash."""
    shutil.copy(files[0], os.fsdecode(bytes(tmp_path / "in") + b"/\xff.jpg"))
    for url in ((tmp_path / "in").as_uri(), "file://photos"):
        with pytest.raises(UsageError, match=f"{url}: cannot be listed"):
            batch(testing_bundle, url, out=tmp_path / "out")


def test_what_is_no_input_is_refused_before_any_work(
    testing_bundle: Bundle, files: list[str], tmp_path: Path
) -> None:
    (tmp_path / "photos.csv").write_text("a.jpg,cat\n")
    for inputs, message in (
        ([files[0], str(tmp_path / "photos.csv")], r"photos\.csv: expected a directory"),
        ([files[0], str(tmp_path / "absent.tar")], r"absent\.tar: no such file"),
        ([files[0], "a\0b"], "null"),
        ([files[0], ""], "write ."),
        ([files[0], "/dev/null"], "/dev/null: a device or a socket"),
    ):
        with pytest.raises(UsageError, match=message):
            batch(testing_bundle, inputs, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "--workers 0"),
        ({"workers": 10_000}, "ask for at most"),
        ({"shard_rows": 0}, "shard of 0 rows"),
        ({"columns": ["label", ""]}, "has no ''"),
        ({"columns": ["label", "label"]}, "different names"),
        ({"top_k": 0}, "top_k"),
        ({"engine": "spark"}, "expected local or ray"),
        ({"ray_address": "auto"}, "--ray-address is for --engine ray"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_wrong_with_a_call_leaves_nothing_behind(
    testing_bundle: Bundle, files: list[str], tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        batch(testing_bundle, files, out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_no_folder_is_not_the_working_directory(
    testing_bundle: Bundle, files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(UsageError, match="--out is the empty text"):
        batch(testing_bundle, files, out="")
    assert list(Path().iterdir()) == []


def test_a_folder_named_ray_is_not_ray(
    testing_bundle: Bundle, files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray itself makes a folder ray for its files; who starts beside it has it on Python's path."""
    (tmp_path / "ray").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for name in [name for name in sys.modules if name.partition(".")[0] == "ray"]:
        monkeypatch.delitem(sys.modules, name)
    importlib.invalidate_caches()
    with pytest.raises(MissingExtraError, match=r"pip install \"vit-edge\[cpu,ray\]\""):
        batch(testing_bundle, files, out=tmp_path / "out", engine="ray")
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    assert not (tmp_path / "out").exists()


def test_after_a_run_that_answered_nothing_another_may_begin(
    testing_bundle: Bundle, files: list[str], tmp_path: Path
) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(UsageError, match="no images"):
        batch(testing_bundle, str(tmp_path / "none"), out=tmp_path / "out")
    pq.write_table(pa.table({"path": files, "label": ["x"] * 6}), tmp_path / "in.parquet")
    with pytest.raises(UsageError, match="prefix"):
        batch(testing_bundle, str(tmp_path / "in.parquet"), out=tmp_path / "out")
    batch(testing_bundle, str(tmp_path / "in.parquet"), out=tmp_path / "out", prefix="our_")
    assert [row["label"] for row in rows(tmp_path / "out")] == ["x"] * 6


# --- Parquet and tar files ----------------------------------------------------------------------


def test_a_folder_of_parquet_files_is_one_table(
    testing_bundle: Bundle, files: list[str], expected: list[str], tmp_path: Path
) -> None:
    (tmp_path / "a.parquet").mkdir()
    pq.write_table(pa.table({"path": files[:2]}), tmp_path / "a.parquet" / "part-0.parquet")
    pq.write_table(pa.table({"path": files[2:3]}), tmp_path / "a.parquet" / "part-1.parquet")
    batch(testing_bundle, str(tmp_path / "a.parquet"), out=tmp_path / "out")
    assert [label for _, label in labels(tmp_path / "out")] == expected


def test_a_partitioned_folder_of_parquet_is_read_to_its_leaves(
    testing_bundle: Bundle, files: list[str], expected: list[str], tmp_path: Path
) -> None:
    """As Spark writes it by year and month; what engines put aside is no data."""
    for name, path in {
        "year=2024/part-0.parquet": files[0], "year=2025/month=1/part-0.PARQUET": files[1],
        "part-0.parquet": files[2], "_temporary/part-0.parquet": files[3],
        "year=2025/.part-0.parquet": files[3], "year=2025/_metadata.parquet": files[3],
    }.items():  # fmt: skip
        (tmp_path / "hive.parquet" / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"path": [path]}), tmp_path / "hive.parquet" / name)
    batch(testing_bundle, str(tmp_path / "hive.parquet"), out=tmp_path / "out")
    assert [label for _, label in labels(tmp_path / "out")] == [expected[2], *expected[:2]]


def test_a_part_of_a_parquet_folder_that_cannot_be_listed_is_said(
    testing_bundle: Bundle, files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for year in ("2024", "2025"):
        (tmp_path / "a.parquet" / year).mkdir(parents=True)
        pq.write_table(pa.table({"path": files}), tmp_path / "a.parquet" / year / "0.parquet")
    listed = os.scandir

    def scandir(path: Any) -> Any:  # permissions would not hold root
        if str(path).endswith("2024"):
            raise PermissionError(13, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InputError, match=r"a\.parquet/2024: cannot be read as Parquet"):
        batch(testing_bundle, str(tmp_path / "a.parquet"), out=tmp_path / "out")
    assert len(rows(tmp_path / "out")) == 6


def test_each_input_that_yields_nothing_is_named(
    testing_bundle: Bundle, files: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for folder in ("empty", "empty.parquet"):
        (tmp_path / folder).mkdir()
    (tmp_path / "empty.txt").write_text("\n")
    pq.write_table(pa.table({"path": pa.array([], pa.string())}), tmp_path / "rows.parquet")
    with tarfile.open(tmp_path / "empty.tar", "w") as archive:
        archive.addfile(*member("a.json", b"{}"))
    empty = [tmp_path / name for name in ("empty", "empty.parquet", "empty.txt", "rows.parquet",
                                          "empty.tar")]  # fmt: skip
    inputs = [*map(str, empty), (tmp_path / "empty").as_uri(), str(tmp_path / "in")]
    assert batch(testing_bundle, inputs, out=tmp_path / "out").rows == 6
    assert sorted(caplog.messages) == sorted(f"{given}: no images" for given in inputs[:-1])


def test_a_column_of_another_name_is_named(
    testing_bundle: Bundle, files: list[str], expected: list[str], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    pq.write_table(pa.table({"file": files[:3]}), tmp_path / "a.parquet")
    arguments = [str(testing_bundle.path), str(tmp_path / "a.parquet"), "-o", str(tmp_path / "out")]
    assert command.main(arguments) == 2
    assert "there is: file. Name one with --images" in capsys.readouterr().err
    assert command.main([*arguments, "--images", "file", "--columns", "label, score"]) == 0
    assert [row["label"] for row in rows(tmp_path / "out")] == expected


def test_one_damaged_file_does_not_keep_the_others_from_their_answers(
    testing_bundle: Bundle, files: list[str], expected: list[str], tmp_path: Path
) -> None:
    good, cut, page = (tmp_path / f"{name}.parquet" for name in ("good", "cut", "page"))
    table = pa.table({"path": files[:3] * 10})
    for path in (good, cut, page):
        pq.write_table(table, path, compression="none", use_dictionary=False)
    cut.write_bytes(cut.read_bytes()[:-20])
    damaged = bytearray(page.read_bytes())
    damaged[4:40] = b"\xff" * 36  # the header of the first page; the footer stays as it is
    page.write_bytes(damaged)
    out = tmp_path / "out"
    for options in ({}, {"resume": True}):
        with pytest.raises(InputError, match=r"(?s)cut\.parquet.*page\.parquet.*other 1 shards"):
            batch(testing_bundle, [str(cut), str(page), str(good)], out=out, **options)
        assert len(rows(out)) == 30
    shutil.copy(good, cut)
    shutil.copy(good, page)
    result = batch(testing_bundle, [str(cut), str(page), str(good)], out=out, resume=True)
    assert result.rows == len(rows(out)) == 90
    assert [shard.resumed for shard in result.shards] == [False, False, True]


def member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE) -> tuple[Any, Any]:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data), kind, "a.jpg"
    return info, io.BytesIO(data)


def test_members_that_are_no_images_have_rows_and_what_systems_leave_has_none(
    testing_bundle: Bundle, encoded: list[bytes], expected: list[str], tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for info, data in (
            member("./a.jpg", encoded[0]), member("link.jpg", kind=tarfile.LNKTYPE),
            member("soft.jpg", kind=tarfile.SYMTYPE), member("empty.jpg"), member("bad.jpg", BAD),
            member("._a.jpg", b"x"), member("__MACOSX/a.jpg", b"x"), member("a.cls", b"3"),
            member("d.jpg", kind=tarfile.DIRTYPE), member("a.jpg", encoded[1]),
            member("Büro.JPG", encoded[2]),
        ):  # fmt: skip
            archive.addfile(info, data)
    result = batch(testing_bundle, str(tmp_path / "a.tar"), out=tmp_path / "out")
    names = [row["path"].removeprefix(f"{tmp_path}/a.tar/") for row in rows(tmp_path / "out")]
    assert names == ["./a.jpg", "link.jpg", "soft.jpg", "empty.jpg", "bad.jpg", "a.jpg", "Büro.JPG"]
    assert [row["label"] for row in rows(tmp_path / "out")] == [
        expected[0], None, None, None, None, expected[1], expected[2],
    ]  # fmt: skip
    assert result.failed == 4


def made_tar(folder: Path, encoded: list[bytes]) -> bytes:
    with tarfile.open(folder / "whole.tar", "w") as archive:
        for number in range(4):
            archive.addfile(*member(f"{number}.jpg", encoded[number % 3]))
    return (folder / "whole.tar").read_bytes()


def header(data: bytes, name: str) -> int:
    return data.index(name.encode())


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "within a member": lambda tar: tar[: header(tar, "2.jpg") + 700],
    "between two members": lambda tar: tar[: header(tar, "2.jpg")],
    "within a header": lambda tar: tar[: header(tar, "2.jpg") + 100],
    "a header of noise": lambda tar: tar.replace(b"2.jpg", b"2\xff\xff\xff\xff", 1),
    "a header of zeros": lambda tar: (
        tar[: header(tar, "2.jpg")] + bytes(512) + tar[header(tar, "2.jpg") + 512 :]
    ),
    "two joined": lambda tar: tar + tar,
    "nothing": lambda tar: b"",
    "no tar": lambda tar: b"PK\3\4" * 500,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_a_damaged_archive_loses_no_image_in_silence(
    testing_bundle: Bundle, encoded: list[bytes], tmp_path: Path, damage: str, packed: bool
) -> None:
    damaged = DAMAGES[damage](made_tar(tmp_path, encoded))
    path = tmp_path / ("a.tar.gz" if packed else "a.tar")
    path.write_bytes(gzip.compress(damaged) if packed else damaged)
    with pytest.raises(InputError, match="cannot be read as a tar file"):
        batch(testing_bundle, [str(path), str(tmp_path / "whole.tar")], out=tmp_path / "out")
    assert [row["path"][-5:] for row in rows(tmp_path / "out")] == [f"{n}.jpg" for n in range(4)]


def test_a_packed_archive_that_is_cut_off_is_refused(
    testing_bundle: Bundle, encoded: list[bytes], tmp_path: Path
) -> None:
    packed = gzip.compress(made_tar(tmp_path, encoded))
    (tmp_path / "a.tgz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(InputError, match=r"a\.tgz: cannot be read as a tar file"):
        batch(testing_bundle, str(tmp_path / "a.tgz"), out=tmp_path / "out")


def test_an_archive_without_images_is_there_and_found_again(
    testing_bundle: Bundle, encoded: list[bytes], tmp_path: Path
) -> None:
    made_tar(tmp_path, encoded)
    with tarfile.open(tmp_path / "none.tar", "w") as archive:
        archive.addfile(*member("a.json", b"{}"))
    both = [str(tmp_path / "none.tar"), str(tmp_path / "whole.tar")]
    batch(testing_bundle, both, out=tmp_path / "out")
    again = batch(testing_bundle, both, out=tmp_path / "out", resume=True)
    assert [(shard.rows, shard.resumed) for shard in again.shards] == [(0, True), (4, True)]


def test_a_question_mark_in_a_name_is_one(
    testing_bundle: Bundle, encoded: list[bytes], tmp_path: Path
) -> None:
    """Of an archive, and of the folder of a run that finds nothing and leaves no shard."""
    made_tar(tmp_path, encoded)
    (tmp_path / "whole.tar").rename(tmp_path / "what?.tar")
    assert batch(testing_bundle, str(tmp_path / "what?.tar"), out=tmp_path / "out").rows == 4
    with tarfile.open(tmp_path / "none.tar", "w") as archive:
        archive.addfile(*member("a.json", b"{}"))
    with pytest.raises(UsageError, match="no images"):
        batch(testing_bundle, str(tmp_path / "none.tar"), out=tmp_path / "why?" / "out")
    assert [path.name for path in (tmp_path / "why?" / "out").iterdir()] == ["run.json"]


# --- going on -----------------------------------------------------------------------------------


def test_the_same_images_twice_are_answered_twice_also_after_a_kill(
    testing_bundle: Bundle, files: list[str], expected: list[str], tmp_path: Path
) -> None:
    """Segments alike have one digest; each has a shard of its own."""
    (tmp_path / "list.txt").write_text("\n".join(files[:2] * 3))
    out, given = tmp_path / "out", str(tmp_path / "list.txt")
    batch(testing_bundle, given, out=out, shard_rows=2)
    assert [label for _, label in labels(out)] == expected[:2] * 3
    sorted(out.glob("part-*.parquet"))[0].unlink()
    result = batch(testing_bundle, given, out=out, shard_rows=2, resume=True)
    assert [label for _, label in labels(out)] == expected[:2] * 3
    assert sum(shard.resumed for shard in result.shards) == 2


def test_images_that_came_went_or_changed_leave_no_row_behind(
    testing_bundle: Bundle, files: list[str], expected: list[str], tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    out, folder = tmp_path / "out", str(tmp_path / "in")
    batch(testing_bundle, folder, out=out, shard_rows=2)
    Path(files[3]).write_bytes(BAD)  # the second shard
    Path(files[5]).unlink()  # the third
    result = batch(testing_bundle, folder, out=out, shard_rows=2, resume=True)
    assert [path for path, _ in labels(out)] == files[:5]
    assert [label for _, label in labels(out)] == [*expected, None, expected[1]]
    assert [shard.resumed for shard in result.shards] == [True, False, False]
    assert result.failed == 1
    assert "2 shards of an earlier run" in caplog.text
    assert len(list((out / ".superseded").iterdir())) == 2
    # In front of all others: every shard is made of other images, but those of the last file.
    shutil.copy(files[0], tmp_path / "in" / "+.jpg")
    shutil.copy(files[0], tmp_path / "in" / "+2.jpg")
    result = batch(testing_bundle, folder, out=out, shard_rows=2, resume=True)
    assert [Path(path).name for path, _ in labels(out)] == [
        "+.jpg", "+2.jpg", "0.jpg", "1.jpg", "2.jpg", "3.jpg", "4.jpg",
    ]  # fmt: skip
    assert [shard.resumed for shard in result.shards] == [False, True, True, True]


@pytest.mark.parametrize("damage", [b"", b"PAR1 half"])
def test_a_damaged_shard_is_written_anew(
    testing_bundle: Bundle, files: list[str], expected: list[str], tmp_path: Path, damage: bytes
) -> None:
    out = tmp_path / "out"
    batch(testing_bundle, files, out=out, shard_rows=3)
    sorted(out.glob("part-*.parquet"))[1].write_bytes(damage)
    batch(testing_bundle, files, out=out, shard_rows=3, resume=True)
    assert [label for _, label in labels(out)] == expected * 2


def test_the_command_goes_on_with_what_python_began(
    testing_bundle: Bundle, files: list[str], tmp_path: Path
) -> None:
    batch(testing_bundle, str(tmp_path / "in"), out=tmp_path / "out", batch_size=2)
    arguments = [str(testing_bundle.path), str(tmp_path / "in"), "-o", str(tmp_path / "out")]
    assert command.main([*arguments, "--resume"]) == 0
    assert command.main([*arguments, "--resume", "--top-k", "3"]) == 2
    assert command.main([*arguments, "--resume", "--shard-rows", "3"]) == 2


def test_a_bundle_that_answers_otherwise_is_refused(
    bundle: Bundle, files: list[str], tmp_path: Path
) -> None:
    """The model is the same; its labels, or how images are prepared, are not."""
    out = tmp_path / "out"
    batch(bundle, files, out=out)
    path = bundle.path / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["preprocessing"]["mean"] = [0.1, 0.2, 0.3]
    path.write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match="other settings: preprocessing_and_labels"):
        batch(Bundle.read(bundle.path), files, out=out, resume=True)


def test_a_record_that_is_cut_off_is_named(
    testing_bundle: Bundle, files: list[str], tmp_path: Path
) -> None:
    batch(testing_bundle, files, out=tmp_path / "out")
    for text in ('{"model', "3"):
        (tmp_path / "out" / "run.json").write_text(text)
        with pytest.raises(UsageError, match=r"run\.json: cannot be read"):
            batch(testing_bundle, files, out=tmp_path / "out", resume=True)


def test_the_runtime_is_given_back_however_a_run_ends(
    testing_bundle: Bundle, files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[Classifier] = []
    monkeypatch.setattr(Classifier, "close", lambda self: closed.append(self))
    batch(testing_bundle, files, out=tmp_path / "out")
    assert len(closed) == 1
    with pytest.raises(UsageError, match="holds a run"):
        batch(testing_bundle, files, out=tmp_path / "out")
    assert len(closed) == 2
    with pytest.raises(ZeroDivisionError):
        batch(testing_bundle, files, out=tmp_path / "other", progress=lambda shard: print(1 // 0))
    assert len(closed) == 3


# --- two at once, kills, disks ------------------------------------------------------------------


def started(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    start = "import sys; from vit_edge.cli import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.Popen(
        [sys.executable, "-c", start, "batch", *arguments],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_two_runs_into_one_folder_are_refused(
    testing_bundle: Bundle, files: list[str], expected: list[str], tmp_path: Path
) -> None:
    """The first reads its list from a pipe, and so works until the pipe is closed."""
    out = tmp_path / "out"
    with started(
        str(testing_bundle.path), "-", "-o", str(out), "--shard-rows", "1", stdin=subprocess.PIPE
    ) as first:
        assert first.stdin is not None
        first.stdin.write(f"{files[0]}\n{files[1]}\n")
        first.stdin.flush()
        until(lambda: (out / "run.json").exists())
        for resume in (False, True):
            with pytest.raises(UsageError, match="another run writes there now"):
                batch(testing_bundle, files, out=out, resume=resume)
        first.communicate()
    assert first.returncode == 0
    assert [label for _, label in labels(out)] == expected[:2]


@pytest.mark.parametrize("ended_by", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_the_run_that_started_them(
    testing_bundle: Bundle, files: list[str], expected: list[str], tmp_path: Path, ended_by: int
) -> None:
    out, mark = tmp_path / "out", f"mark-{os.getpid()}-{ended_by}"
    env = {**os.environ, "VIT_EDGE_TEST_MARK": mark}

    def workers() -> list[Path]:
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                marked = mark.encode() in (path / "environ").read_bytes()
                state = (path / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if marked and state != "Z":
                found.append(path)
        return found

    with started(
        str(testing_bundle.path), "-", "-o", str(out), "--shard-rows", "1", "--workers", "2",
        stdin=subprocess.PIPE, env=env,
    ) as running:  # fmt: skip
        assert running.stdin is not None
        running.stdin.write("\n".join(files[:5]) + "\n")
        running.stdin.flush()
        until(lambda: list(out.glob("part-*.parquet")))
        assert len(workers()) > 1
        running.send_signal(ended_by)
        running.communicate(timeout=60)  # its workers hold the pipe, too
    until(lambda: not workers())
    (tmp_path / "list.txt").write_text("\n".join(files[:5]))
    batch(testing_bundle, str(tmp_path / "list.txt"), out=out, shard_rows=1, resume=True)
    assert [label for _, label in labels(out)] == [*expected, *expected[:2]]
    assert not list(out.glob(".*"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)],
        check=False, capture_output=True,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip("no tmpfs can be mounted here")
    yield disk
    # lazily: a worker that is still going away may hold a file there for a moment
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.parametrize(("pages", "workers"), [(0, 1), (1, 1), (2, 1), (2, 2)])
def test_a_full_disk_is_said_and_the_run_goes_on_when_there_is_room(
    testing_bundle: Bundle,
    files: list[str],
    tmp_path: Path,
    small_disk: Path,
    pages: int,
    workers: int,
) -> None:
    (small_disk / "filler").write_bytes(bytes(65_536 - pages * 4096))
    paths = files * 8
    (tmp_path / "list.txt").write_text("\n".join(paths))
    out, options = small_disk / "out", {"columns": ["features"], "shard_rows": 24}
    with pytest.raises(ResourceError, match=f"{out}: cannot be written: No space left"):
        batch(testing_bundle, str(tmp_path / "list.txt"), out=out, workers=workers, **options)
    assert not list(out.glob(".part*"))
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    result = batch(testing_bundle, str(tmp_path / "list.txt"), out=out, resume=True, **options)
    assert [row["path"] for row in rows(out)] == paths
    assert result.failed == 0


def test_a_folder_that_cannot_be_is_named(
    testing_bundle: Bundle, files: list[str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UsageError, match="is a file; name a directory for --out"):
            batch(testing_bundle, files, out=out)
    with pytest.raises(ResourceError, match="cannot be written"):
        batch(testing_bundle, files, out="/proc/no/such")


def test_a_folder_of_the_user_s_is_left_as_it_is(
    testing_bundle: Bundle, files: list[str], tmp_path: Path
) -> None:
    """Also what is named like a file that is written aside."""
    (tmp_path / "mine").mkdir()
    for name in (".notes.tmp", ".part.tmp", "part-000000-mine.parquet", "a.txt"):
        (tmp_path / "mine" / name).write_text("mine")
    with pytest.raises(UsageError, match="no run of ours"):
        batch(testing_bundle, files, out=tmp_path / "mine", resume=True)
    with pytest.raises(UsageError, match="no run of ours"):
        batch(testing_bundle, files, out=testing_bundle.path)
    assert {path.read_text() for path in (tmp_path / "mine").iterdir()} == {"mine"}
    assert len(list((tmp_path / "mine").iterdir())) == 4
    assert not (testing_bundle.path / "run.json").exists()


def test_segments_that_look_alike_have_digests_of_their_own(tmp_path: Path) -> None:
    names = [["a\0b"], ["a", "b"], ["a', 'b"], ["b", "a"], ["a"], ["a", ""]]
    digests = set()
    for number, paths in enumerate(names):
        file = tmp_path / f"{number}.txt"
        file.write_text("\n".join(paths))
        digests.update(segment.digest for segment in segments([str(file)]))
    assert len(digests) == len(names) - 1  # a blank line names nothing
