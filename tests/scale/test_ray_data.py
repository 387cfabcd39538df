"""A bundle in Ray Data: rows, actors that die, and what the cluster has CPUs for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.scale.test_tables import BAD, plant_death
from vit_edge import Bundle, Predictor, UsageError
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


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch, repository: Path) -> Iterator[Any]:
    """Ray on two CPUs, started in the environment of the test, without what it reports."""
    pytest.importorskip("ray.data")
    import ray

    monkeypatch.setenv("PYTHONPATH", f"{repository}")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    yield ray
    ray.shutdown()


def start(ray: Any) -> None:
    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_rows_equal_those_of_a_stream(ray: Any, folder: Path, embedded_bundle: Bundle) -> None:
    start(ray)
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
def test_an_image_that_kills_actors_ends_the_job_with_its_name(
    ray: Any, folder: Path, embedded_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_death(tmp_path / "planted", monkeypatch)
    start(ray)
    (tmp_path / "photos").mkdir()
    for path in sorted(folder.iterdir())[:6]:
        (tmp_path / "photos" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "photos" / "poison.jpg").write_bytes(b"POISON")
    ds = ray.data.read_binary_files(str(tmp_path / "photos"), include_paths=True)
    with pytest.raises(Exception, match=r"poison\.jpg: the process died of this image"):
        classify(ds, embedded_bundle.path, actors=1, batch_size=8).take_all()
