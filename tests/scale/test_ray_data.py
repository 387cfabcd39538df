"""A bundle in Ray Data: rows, actors that die, and what the cluster has CPUs for."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.scale.test_batch import labels
from tests.scale.test_hostile import started, until
from tests.scale.test_tables import BAD, plant_death
from tests.support.documents import blocks
from vit_edge import Bundle, Failure, PredictionError, Predictor, UsageError
from vit_edge.scale.batch import batch
from vit_edge.scale.ray_data import classify, plan_actors

requires = ("onnxruntime", "pyarrow")


@pytest.mark.parametrize(
    ("cpus", "actors", "threads", "expected"),
    [
        (2, None, 1, (2, 0.5)),  # one CPU stays for tasks that read
        (2, 1, 1, (1, 1.0)),
        (8, None, 2, (4, 1.0)),
        (8, 3, 2, (3, 2.0)),
        (1, None, 1, (1, 0.5)),
        (64, None, 1, (64, 63 / 64)),
    ],
)
def test_actors_leave_a_cpu_for_reading(
    cpus: float, actors: int | None, threads: int, expected: tuple[int, float]
) -> None:
    count, share = plan_actors(cpus, actors, threads)
    assert (count, share) == expected
    assert count * share < cpus


@pytest.mark.parametrize(("actors", "threads"), [(3, 1), (2, 2), (0, 1), (1, 0)])
def test_more_than_the_cluster_has_is_refused(actors: int, threads: int) -> None:
    with pytest.raises(UsageError, match=f"actors={actors}"):
        plan_actors(2, actors, threads)


@pytest.fixture(scope="module")
def folder(photos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty photos, and two files that are none."""
    folder = tmp_path_factory.mktemp("photos")
    for index in range(42):
        encoded = BAD if index in (7, 30) else photos[index % len(photos)].read_bytes()
        (folder / f"{index:03}.jpg").write_bytes(encoded)
    return folder


@pytest.fixture(scope="module")
def ray(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Ray on two CPUs, whose processes die of an image that is POISON."""
    pytest.importorskip("ray.data")
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{repository}")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        plant_death(tmp_path_factory.mktemp("planted") / "planted", patch)
        ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
        yield ray
        ray.shutdown()


@pytest.fixture(scope="module")
def expected(folder: Path, embedded_bundle: Bundle) -> dict[str, str | None]:
    """Path and label, as a stream gives them."""
    paths = sorted(folder.iterdir())
    with Predictor(embedded_bundle, "ort") as predictor:
        answers = predictor.stream(paths, on_error="record")
        return {
            str(path): None if isinstance(answer, Failure) else answer.label
            for path, answer in zip(paths, answers, strict=True)
        }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_rows_equal_those_of_a_stream(ray: Any, folder: Path, embedded_bundle: Bundle) -> None:
    ds = ray.data.read_binary_files(str(folder), include_paths=True)
    with pytest.raises(UsageError, match="actors=3"):
        classify(ds, embedded_bundle.path, actors=3)
    answered = classify(ds, embedded_bundle.path, columns=("label", "features"), batch_size=16)
    rows = {Path(row["path"]).name: row for row in answered.take_all()}
    assert len(rows) == 42
    with Predictor(embedded_bundle, "ort", threads=1) as predictor:
        paths = sorted(folder.iterdir())
        for path, answer in zip(
            paths, predictor.run(paths, ("top", "features"), on_error="record"), strict=True
        ):
            row = rows[path.name]
            expected = getattr(getattr(answer, "prediction", None), "label", None)
            assert row["label"] == expected
            assert (row["error"] is None) == (expected is not None)
            if expected:
                features = answer.outputs["features"]  # type: ignore[union-attr]
                assert abs(row["features"] - features).max() < 1e-4
    assert {name for name, row in rows.items() if row["error"]} == {"007.jpg", "030.jpg"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_lines_of_the_document_answer_paths(
    ray: Any, repository: Path, embedded_bundle: Bundle, expected: dict[str, str | None],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    page = (repository / "docs" / "large-jobs.md").read_text("utf-8")
    (code,) = (code for code in blocks(page, "python") if "ray.data.read_parquet" in code)
    monkeypatch.chdir(tmp_path)
    Path("bundles").mkdir()
    Path("bundles", "cifar10").symlink_to(embedded_bundle.path)
    pq.write_table(pa.table({"path": [*expected]}), "paths.parquet")
    exec(code.replace("/shared/", f"{tmp_path}/"), {})
    table = pq.read_table("answers")
    assert dict(zip(table["path"].to_pylist(), table["label"].to_pylist(), strict=True)) == expected
    assert table.num_rows == len(expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_an_image_that_kills_actors_ends_the_job_with_its_name(
    ray: Any, folder: Path, embedded_bundle: Bundle, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    for path in sorted(folder.iterdir())[:1]:
        (tmp_path / "photos" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "photos" / "poison.jpg").write_bytes(b"POISON")
    ds = ray.data.read_binary_files(str(tmp_path / "photos"), include_paths=True)
    with pytest.raises(Exception, match=r"poison\.jpg: the process died of this image"):
        classify(ds, embedded_bundle.path, actors=1, batch_size=8).take_all()
    table = pa.table({"path": ["killer.jpg"], "bytes": [b"POISON"]})
    pq.write_table(table, tmp_path / "in.parquet")
    with pytest.raises(PredictionError, match=r"^killer\.jpg: the process died of this image"):
        batch(embedded_bundle, str(tmp_path / "in.parquet"), out=tmp_path / "out", engine="ray")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_job_whose_actors_are_killed_loses_no_row(
    ray: Any, folder: Path, embedded_bundle: Bundle, expected: dict[str, str | None],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Paths are relative, and the actors have another working directory."""
    monkeypatch.chdir(folder)
    read, write = os.pipe()
    names = [Path(path).name for path in expected]
    out = tmp_path / "out"
    killed: list[int] = []

    def feed() -> None:
        with os.fdopen(write, "w") as lists:
            for name in names:
                lists.write(f"{name}\n")
                lists.flush()
                if name == names[24]:
                    until(lambda: len(list(out.glob("part-*"))) > 3)
                    killed.extend(actors())
                    for pid in killed:
                        os.kill(pid, signal.SIGKILL)

    feeder = threading.Thread(target=feed)
    feeder.start()
    result = batch(embedded_bundle, f"/dev/fd/{read}", out=out, shard_rows=2, engine="ray")
    feeder.join()
    os.close(read)
    assert len(killed) == 2
    assert labels(out) == [(Path(path).name, label) for path, label in expected.items()]
    assert (result.rows, result.failed) == (42, 2)
    with pytest.raises(UsageError, match="actors=9"):
        batch(embedded_bundle, names, out=tmp_path / "b", engine="ray", workers=9)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_job_whose_driver_is_killed_goes_on(
    ray: Any, embedded_bundle: Bundle, expected: dict[str, str | None], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    address = ray.get_runtime_context().gcs_address
    with started(
        str(embedded_bundle.path), "-", "-o", str(out), "--shard-rows", "2", "--engine", "ray",
        "--ray-address", address, stdin=subprocess.PIPE,
    ) as driver:  # fmt: skip
        assert driver.stdin is not None
        driver.stdin.write("\n".join([*expected][:20]) + "\n")
        driver.stdin.flush()
        until(lambda: len(list(out.glob("part-*"))) > 3)
        driver.kill()
        driver.communicate()
    (tmp_path / "list.txt").write_text("\n".join(expected))
    result = batch(
        embedded_bundle, str(tmp_path / "list.txt"), out=out, shard_rows=2, engine="ray",
        resume=True,
    )  # fmt: skip
    assert labels(out) == [*expected.items()]
    assert sum(shard.resumed for shard in result.shards) > 3


def actors() -> list[int]:
    """The processes of this one's cluster that answer segments."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.read_bytes().startswith(b"ray::_RayWriter"):
                raylet = parent_of(path.parent)
                if parent_of(Path("/proc", str(raylet))) == os.getpid():
                    found.append(int(path.parent.name))
    return found


def parent_of(process: Path) -> int:
    return int((process / "stat").read_text().rpartition(")")[2].split()[1])
