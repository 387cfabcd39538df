"""The lines of docs/large-jobs.md for other engines, each run in its engine."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.scale.test_tables import BAD
from tests.support.documents import blocks
from vit_edge import Bundle, Predictor
from vit_edge.scale.batch import batch
from vit_edge.scale.tables import Classifier

requires = ("onnxruntime", "pyarrow")

pytestmark = pytest.mark.filterwarnings("ignore")  # of the engines'


@pytest.fixture(scope="module")
def encoded(photos: list[Path]) -> list[bytes]:
    return [photos[0].read_bytes(), BAD, photos[1].read_bytes(), photos[2].read_bytes()]


@pytest.fixture(scope="module")
def expected(testing_bundle: Bundle, encoded: list[bytes]) -> list[str | None]:
    with Predictor(testing_bundle, "ort") as predictor:
        good = iter(predictor.stream([data for data in encoded if data != BAD]))
        return [None if data == BAD else next(good).label for data in encoded]


@pytest.fixture
def bundle_link(testing_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The documents' `bundles/cifar10`, below the working directory."""
    (tmp_path / "bundles").mkdir()
    (tmp_path / "bundles" / "cifar10").symlink_to(testing_bundle.path)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "bundles" / "cifar10"


@pytest.fixture
def page(repository: Path) -> list[str]:
    """The blocks of Python in the document."""
    return blocks((repository / "docs" / "large-jobs.md").read_text("utf-8"), "python")


def test_datasets_maps_the_lines_of_the_document(
    page: list[str], bundle_link: Path, encoded: list[bytes], expected: list[str | None]
) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    names = {"dataset": datasets.Dataset.from_dict({"bytes": encoded, "id": [4, 3, 2, 1]})}
    (code,) = (code for code in page if "dataset.with_format" in code)
    exec(code, names)
    answered = names["answered"]
    assert answered["label"] == expected
    assert list(answered["id"]) == [4, 3, 2, 1]
    assert [error is None for error in answered["error"]] == [
        label is not None for label in expected
    ]


def test_what_datasets_wrote_is_taken_and_what_we_write_is_read_by_it(
    testing_bundle: Bundle, encoded: list[bytes], expected: list[str | None], tmp_path: Path
) -> None:
    """A dataset's features stand in the file's metadata; they are not those of the answers."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    features = datasets.Features(
        {"image": datasets.Image(decode=False), "truth": datasets.Value("int64")}
    )
    rows = {"image": [{"bytes": data, "path": None} for data in encoded], "truth": [1, 2, 3, 4]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "in.parquet"))
    assert b"huggingface" in pq.read_schema(tmp_path / "in.parquet").metadata
    batch(testing_bundle, str(tmp_path / "in.parquet"), out=tmp_path / "out")
    shards = str(tmp_path / "out" / "*.parquet")
    read = datasets.load_dataset(
        "parquet", data_files=shards, split="train", cache_dir=str(tmp_path / "cache")
    )
    assert read.column_names == ["truth", "label", "index", "score", "error"]
    assert list(read["label"]) == expected


@pytest.mark.slow
def test_spark_maps_the_lines_of_the_document(
    page: list[str], repository: Path, bundle_link: Path, encoded: list[bytes],
    expected: list[str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    sql = pytest.importorskip("pyspark.sql")
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    monkeypatch.setenv("PYTHONPATH", str(repository))
    (tmp_path / "photos").mkdir()
    for index, data in enumerate([*encoded, b""]):
        (tmp_path / "photos" / f"{index}.jpg").write_bytes(data)
    try:
        spark = sql.SparkSession.builder.master("local[1]").getOrCreate()
    except Exception as error:
        pytest.skip(f"Spark does not start: {str(error).splitlines()[0]}")
    try:
        names: dict[str, Any] = {"spark": spark}
        (code,) = (code for code in page if "mapInArrow" in code)
        exec(code, names)
        found = sorted((row.path[-5:], row.label) for row in names["answered"].collect())
    finally:
        spark.stop()
    # The file without a byte has no row: Spark leaves it out, and says nothing.
    assert found == [(f"{index}.jpg", label) for index, label in enumerate(expected)]


def test_a_classifier_takes_record_batches(
    testing_bundle: Bundle, encoded: list[bytes], expected: list[str | None]
) -> None:
    """Daft, Dask and Spark hand over batches, too."""
    batches = pa.table({"bytes": encoded}).to_batches(max_chunksize=3)

    def answers() -> Iterator[pa.Table]:
        classify = Classifier(testing_bundle.path)
        yield from classify.stream(batches)
        classify.close()

    tables = list(answers())
    assert [label for table in tables for label in table["label"].to_pylist()] == expected
    assert os.path.isabs(Classifier(testing_bundle.path)._arguments["bundle"])  # noqa: PTH117
