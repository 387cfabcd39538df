"""Large jobs: shards that are there whole or not at all, and runs that go on."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.scale.test_tables import BAD, plant_death
from vit_edge import Bundle, Failure, InputError, Predictor, UsageError
from vit_edge.scale import __main__ as command
from vit_edge.scale.batch import batch
from vit_edge.scale.segments import Segment, segments

requires = ("onnxruntime", "pyarrow")


@pytest.fixture(scope="module")
def folder(photos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty photos in two folders, of which two are none."""
    folder = tmp_path_factory.mktemp("photos")
    for index in range(20):
        path = folder / ("ab"[index % 2]) / f"{index:03}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(BAD if index in (3, 12) else photos[index % len(photos)].read_bytes())
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path, testing_bundle: Bundle) -> list[tuple[str, str | None]]:
    """Path and label, as a stream gives them."""
    paths = sorted(folder.rglob("*.jpg"))
    with Predictor(testing_bundle, "ort") as predictor:
        answers = predictor.stream(paths, on_error="record")
        return [
            (str(path), None if isinstance(answer, Failure) else answer.label)
            for path, answer in zip(paths, answers, strict=True)
        ]


def rows(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for path in sorted(out.glob("part-*.parquet")):
        found += pq.read_table(path).to_pylist()
    return found


def labels(out: Path) -> list[tuple[str, str | None]]:
    return [(row["path"], row["label"]) for row in rows(out)]


def test_rows_equal_those_of_a_stream(
    folder: Path, testing_bundle: Bundle, expected: list[tuple[str, str | None]], tmp_path: Path
) -> None:
    result = batch(
        testing_bundle, str(folder), out=tmp_path, columns=("label", "features"), shard_rows=8
    )
    assert (result.rows, result.failed, len(result.shards)) == (20, 2, 3)
    assert labels(tmp_path) == expected
    files = sorted(tmp_path.glob("part-*.parquet"))
    assert {pq.read_schema(path).remove_metadata() for path in files[1:]} == {
        pq.read_schema(files[0]).remove_metadata()
    }
    about = pq.read_schema(files[0]).metadata[b"vit_edge"]
    assert testing_bundle.model_sha256.encode() in about
    assert sorted(path.name[:5] for path in tmp_path.iterdir()) == ["part-"] * 3 + ["run.j"]


def test_two_workers_give_the_same(
    folder: Path, testing_bundle: Bundle, expected: list[tuple[str, str | None]], tmp_path: Path
) -> None:
    result = batch(testing_bundle, str(folder), out=tmp_path, shard_rows=5, workers=2)
    assert labels(tmp_path) == expected
    assert result.failed == 2


def test_a_killed_run_goes_on_without_a_row_lost_or_twice(
    folder: Path, testing_bundle: Bundle, expected: list[tuple[str, str | None]], tmp_path: Path
) -> None:
    arguments = [
        "batch", str(testing_bundle.path), str(folder), "--out", str(tmp_path), "--shard-rows", "3",
    ]  # fmt: skip
    start = "import sys; from vit_edge.cli import main; sys.exit(main(sys.argv[1:]))"
    with subprocess.Popen([sys.executable, "-c", start, *arguments]) as running:
        until = time.monotonic() + 60
        while len(list(tmp_path.glob("part-*.parquet"))) < 2 and time.monotonic() < until:
            time.sleep(0.002)
        running.send_signal(signal.SIGKILL)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("part-*.parquet")}
    assert kept
    (tmp_path / ".part-000009-0.parquet.1.tmp").write_bytes(b"half")
    with pytest.raises(UsageError, match="--resume"):
        batch(testing_bundle, str(folder), out=tmp_path, shard_rows=3)
    with pytest.raises(UsageError, match=r"columns: \['label', 'index', 'score'\]"):
        batch(
            testing_bundle, str(folder), out=tmp_path, shard_rows=3, resume=True, columns=["label"],
            prefix="", top_k=5, backend="auto",
        )  # fmt: skip
    assert command.main([*arguments[1:], "--resume", "--json"]) == 0
    assert labels(tmp_path) == expected
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert not list(tmp_path.glob(".*"))


def test_an_image_that_kills_the_process_is_named_by_the_next_run(
    photos: list[Path], testing_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_death(tmp_path / "planted", monkeypatch)
    table = pa.table({
        "path": [f"{i}.jpg" for i in range(6)],
        "bytes": [*(path.read_bytes() for path in photos[:5]), b"POISON"],
    })  # fmt: skip
    pq.write_table(table, tmp_path / "in.parquet")
    start = "import sys; from vit_edge.cli import main; sys.exit(main(sys.argv[1:]))"
    ends = []
    for more in ([], ["--resume"]):
        ends.append(
            subprocess.run(
                [
                    sys.executable, "-c", start, "batch", str(testing_bundle.path),
                    str(tmp_path / "in.parquet"), "--out", str(tmp_path / "out"), *more,
                ],
                capture_output=True, text=True, check=False,
            )
        )  # fmt: skip
    assert ends[0].returncode == -signal.SIGSEGV
    assert ends[1].returncode == 3
    assert "5.jpg: the process died of this image" in ends[1].stderr


def test_parquet_of_paths_or_bytes_keeps_its_other_columns(
    folder: Path, testing_bundle: Bundle, expected: list[tuple[str, str | None]], tmp_path: Path
) -> None:
    paths = [path for path, _ in expected]
    table = pa.table({"path": paths, "truth": range(20)})
    pq.write_table(table, tmp_path / "paths.parquet", row_group_size=6)
    encoded = [Path(path).read_bytes() for path in paths]
    pq.write_table(table.append_column("bytes", [encoded]), tmp_path / "bytes.parquet")
    for name, shards in (("paths", 2), ("bytes", 1)):
        result = batch(
            testing_bundle, str(tmp_path / f"{name}.parquet"), out=tmp_path / name, shard_rows=12
        )
        assert labels(tmp_path / name) == expected
        assert [row["truth"] for row in rows(tmp_path / name)] == list(range(20))
        assert len(result.shards) == shards
        assert "bytes" not in rows(tmp_path / name)[0]


def test_tar_files_and_lists_are_read(
    folder: Path, testing_bundle: Bundle, expected: list[tuple[str, str | None]], tmp_path: Path
) -> None:
    tar = tmp_path / "a.tar"
    with tarfile.open(tar, "w") as archive:
        for path, _ in expected:
            archive.add(path, f"images/{Path(path).name}")
            note = tarfile.TarInfo(f"images/{Path(path).stem}.json")
            note.size = 2
            archive.addfile(note, io.BytesIO(b"{}"))
    batch(testing_bundle, str(tar), out=tmp_path / "tar")
    assert labels(tmp_path / "tar") == [
        (f"{tar}/images/{Path(path).name}", label) for path, label in expected
    ]
    (tmp_path / "list.txt").write_text("\n".join(path for path, _ in expected) + "\n\n")
    batch(testing_bundle, str(tmp_path / "list.txt"), out=tmp_path / "list")
    assert labels(tmp_path / "list") == expected
    tar.write_bytes(tar.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"a\.tar: cannot be read as a tar file"):
        batch(testing_bundle, str(tar), out=tmp_path / "broken")


def test_images_behind_urls_are_read(
    folder: Path, testing_bundle: Bundle, expected: list[tuple[str, str | None]], tmp_path: Path
) -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    for path, _ in expected:
        memory.pipe(f"/bucket/{Path(path).name}", Path(path).read_bytes())
    for number, url in enumerate((folder.as_uri(), "memory://bucket")):
        batch(testing_bundle, url, out=tmp_path / str(number))
        found = {Path(path).name: label for path, label in labels(tmp_path / str(number))}
        assert found == {Path(path).name: label for path, label in expected}
    with pytest.raises(UsageError, match="nothing://x"):
        batch(testing_bundle, "nothing://x", out=tmp_path / "3")


def test_what_is_wrong_is_said_before_any_work(
    folder: Path, testing_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    for inputs, out, message in (
        (str(tmp_path / "absent"), "a", "no such file"),
        (str(tmp_path / "empty"), "b", "no images"),
        (str(folder), "full", "no run of ours"),
        (str(tmp_path / "absent.parquet"), "c", "absent.parquet"),
    ):
        assert command.main([str(testing_bundle.path), inputs, "-o", str(tmp_path / out)]) in (2, 3)
        assert message in capsys.readouterr().err
    with pytest.raises(UsageError, match="has no 'tokens'"):
        batch(testing_bundle, str(folder), out=tmp_path / "d", columns=["tokens"])
    with pytest.raises(UsageError, match="no file system for it"):
        batch(testing_bundle, str(folder), out="nothing://bucket/answers")


def test_strict_tells_of_rows_that_failed(
    folder: Path, testing_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(testing_bundle.path), str(folder), "--out"]
    assert command.main([*arguments, str(tmp_path / "a"), "--strict"]) == 3
    assert "20 images, 2 failed" in capsys.readouterr().out


def test_segments_know_what_changed(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"path": ["a", "b"]}), file)
    (before,) = segments([str(file)])
    os.utime(file, (1, 1))
    (after,) = segments([str(file)])
    assert before.digest != after.digest
    assert Segment(("a", "b")).digest != Segment(("a b",)).digest != Segment(("b", "a")).digest
