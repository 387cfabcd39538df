"""Tables in, the same rows with answers out."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from vit_edge import Bundle, PredictionError, Predictor, UsageError
from vit_edge.scale import suspects
from vit_edge.scale.tables import Classifier

requires = ("onnxruntime", "pyarrow")

BAD = b"\xff\xd8\xff no image"


@pytest.fixture(scope="module")
def classify(testing_bundle: Bundle) -> Iterator[Classifier]:
    opened = Classifier(testing_bundle.path, columns=("label", "index", "score", "top", "features"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def encoded(photos: list[Path]) -> list[bytes]:
    return [path.read_bytes() for path in photos[:3]]


def test_rows_stay_where_they_are_with_the_predictor_s_answers(
    classify: Classifier, testing_bundle: Bundle, encoded: list[bytes]
) -> None:
    images = [encoded[0], BAD, encoded[1], None, encoded[2]]
    table = pa.table({"id": [5, 3, 1, 2, 4], "bytes": images})
    found = classify(table)
    assert found.schema == classify.schema(table.schema)
    assert found["id"].to_pylist() == [5, 3, 1, 2, 4]
    assert "bytes" not in found.column_names
    with Predictor(testing_bundle, "ort") as predictor:
        for row, image in zip(found.to_pylist(), images, strict=True):
            if image in (None, BAD):
                assert row["label"] is row["features"] is row["top"] is None
                assert row["error"].startswith("ImageDecodeError: ")
                continue
            prediction, features = predictor.predict(image), predictor.features([image])[0]
            assert (row["label"], row["index"]) == (prediction.label, prediction.index)
            assert row["score"] == pytest.approx(prediction.score, rel=1e-5)
            assert [r["index"] for r in row["top"]] == [r.index for r in prediction.top]
            np.testing.assert_allclose(row["features"], features, rtol=1e-4, atol=1e-5)
            assert row["error"] is None


def test_the_schema_is_the_same_whether_all_fail_none_or_there_are_no_rows(
    classify: Classifier, encoded: list[bytes]
) -> None:
    found = [classify(pa.table({"bytes": pa.array(rows, pa.binary())})) for rows in
             ([encoded[0]], [BAD], [])]  # fmt: skip
    assert found[0].schema == found[1].schema == found[2].schema
    assert [table.num_rows for table in found] == [1, 1, 0]
    assert pa.concat_tables(found).num_rows == 2
    assert found[0].schema.field("error").type == pa.string()
    assert found[0].schema.field("features").type == pa.list_(pa.float32(), 64)


def test_paths_and_structs_of_datasets_are_images_too(
    classify: Classifier, photos: list[Path], encoded: list[bytes]
) -> None:
    expected = classify(pa.table({"bytes": encoded}))["label"].to_pylist()
    paths = pa.table({"path": [str(path) for path in photos[:3]]})
    assert classify(paths)["label"].to_pylist() == expected
    assert classify(paths)["path"] == paths["path"]
    structs = [{"bytes": encoded[0], "path": "a"}, {"bytes": None, "path": str(photos[1])}, None]
    found = classify(pa.table({"image": pa.array(structs, tables_struct())}))
    assert found["label"].to_pylist() == [*expected[:2], None]


def tables_struct() -> pa.DataType:
    return pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def test_what_is_wrong_with_a_call_is_said(testing_bundle: Bundle, encoded: list[bytes]) -> None:
    with pytest.raises(UsageError, match="has no 'tokens'"):
        Classifier(testing_bundle.path, columns=("tokens",))
    with pytest.raises(UsageError, match="list of different names"):
        Classifier(testing_bundle.path, columns="label")
    classify = Classifier(testing_bundle.path)
    for table, message in (
        (pa.table({"label": ["x"], "bytes": encoded[:1]}), 'prefix="predicted_"'),
        (pa.table({"picture": encoded[:1]}), "no column bytes or image or path"),
        (pa.table({"bytes": [1]}), "images are encoded bytes, or paths"),
    ):
        with pytest.raises(UsageError, match=message):
            classify(table)
    renamed = Classifier(testing_bundle.path, prefix="predicted_", keep_images=True)
    found = renamed(pa.table({"label": ["x"], "bytes": encoded[:1]}))
    assert found.column_names == [
        "label", "bytes", "predicted_label", "predicted_index", "predicted_score",
        "predicted_error",
    ]  # fmt: skip


def test_it_is_opened_again_in_another_process(classify: Classifier, encoded: list[bytes]) -> None:
    table = pa.table({"bytes": encoded})
    assert pickle.loads(pickle.dumps(classify))(table).equals(classify(table))


def test_an_image_that_killed_the_process_before_is_named(
    testing_bundle: Bundle, encoded: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The death is planted: Python's start in every child reads `sitecustomize`."""
    plant_death(tmp_path / "planted", monkeypatch)
    images = [*encoded, b"POISON", *encoded]
    table = pa.table({"path": [f"{i}.jpg" for i in range(7)], "bytes": images})
    classify = Classifier(testing_bundle.path, suspects=tmp_path / "suspects")
    assert classify._suspects is not None
    opener = classify._suspects._opener
    assert suspects.find_killer(opener, table.slice(0, 2), "bytes") is None
    note = tmp_path / "suspects" / f"{suspects._SUSPECT}{suspects._digest(images)}"
    note.parent.mkdir(exist_ok=True)
    note.write_text("4000000")  # of a process that is gone: there are no such numbers
    with pytest.raises(PredictionError, match=r"^3\.jpg: the process died of this image"):
        classify(table)
    assert list(note.parent.iterdir()) == []


def test_a_batch_in_work_elsewhere_is_not_suspected(
    testing_bundle: Bundle, encoded: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suspects, "find_killer", lambda *arguments: pytest.fail("it was examined"))
    table = pa.table({"bytes": encoded})
    classify = Classifier(testing_bundle.path, suspects=tmp_path)
    elsewhere = suspects.Suspects(tmp_path, lambda: classify)
    note = elsewhere.note(table, encoded, "bytes")
    assert [found.num_rows for found in classify.stream([table, table])] == [3, 3]
    assert list(tmp_path.iterdir()) == [note]
    elsewhere.remove(note)


@pytest.mark.parametrize("number", [1, os.getpid()], ids=["first", "own"])
def test_a_note_of_a_process_whose_number_is_another_s_now_is_examined(
    encoded: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """In a container every job is process 1, also the one after it."""
    monkeypatch.setattr(suspects, "find_killer", lambda *arguments: "3.jpg")
    (tmp_path / f"{suspects._SUSPECT}{suspects._digest(encoded)}").write_text(str(number))
    notes = suspects.Suspects(tmp_path, lambda: lambda table: table)
    with pytest.raises(PredictionError, match=r"^3\.jpg: the process died of this image"):
        notes.note(pa.table({"bytes": encoded}), encoded, "bytes")


def test_without_locks_a_note_of_another_is_examined_and_one_s_own_is_not(
    encoded: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suspects, "lock", lambda handle: False)
    examined: list[object] = []
    monkeypatch.setattr(suspects, "find_killer", lambda *arguments: examined.append(arguments))
    table = pa.table({"bytes": encoded})
    ours, theirs = (suspects.Suspects(tmp_path, lambda: lambda table: table) for _ in range(2))
    for _ in range(2):
        ours.note(table, encoded, "bytes")
    assert not examined
    theirs.note(table, encoded, "bytes")
    assert len(examined) == 1


def test_no_image_is_blamed_for_the_time_that_many_take(
    testing_bundle: Bundle, encoded: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suspects, "_TRIAL_TIMEOUT_S", 0.5)  # less than Python takes to start
    table = pa.table({"bytes": encoded * 4})
    assert suspects.find_killer(partial(Classifier, testing_bundle.path), table, "bytes") is None


@pytest.mark.parametrize("most", [3, 0], ids=["several", "one"])
def test_an_image_is_blamed_if_a_process_dies_of_it_alone(
    monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """Three rows are too much for the memory, say; or the fifth image is the one."""
    monkeypatch.setattr(
        suspects, "_dies", lambda _, rows: rows.num_rows > most and "5.jpg" in str(rows["path"])
    )
    table = pa.table({"path": [f"{i}.jpg" for i in range(7)]})
    expected = None if most else "5.jpg"
    assert suspects.find_killer(lambda: lambda table: table, table, "path") == expected


@pytest.mark.parametrize(("code", "dies"), [(1, True), (0, True), (os.EX_IOERR, False)])
def test_a_library_that_ends_the_process_is_a_death_and_a_full_disk_is_none(
    code: int, dies: bool
) -> None:
    """The child ends with EX_IOERR where its answer cannot be written."""
    assert suspects._dies(partial(os._exit, code), pa.table({"path": ["a.jpg"]})) == dies


def plant_death(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every process that starts from now on die of an image whose bytes are POISON."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import os\n"
        "def late():\n"
        "    import vit_edge.predictor as p\n"
        "    resized = p.resized_from_source\n"
        "    def dying(image, *rest):\n"
        f"        if image == b'POISON': os.kill(os.getpid(), {int(signal.SIGSEGV)})\n"
        "        return resized(image, *rest)\n"
        "    p.resized_from_source = dying\n"
        "import sys, importlib.abc, importlib.machinery\n"
        "class Finder(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name != 'vit_edge.scale.tables': return None\n"
        "        sys.meta_path.remove(self)\n"
        "        late()\n"
        "        return importlib.machinery.PathFinder.find_spec(name, path)\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    )
