"""Images in an object store, s3:// through pyarrow: a local server stands for it."""

from __future__ import annotations

import io
import logging
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.scale.test_batch import labels, rows
from tests.scale.test_tables import BAD
from vit_edge import Bundle, InputError, Predictor, UsageError
from vit_edge.errors import ResourceError
from vit_edge.scale import remote
from vit_edge.scale.batch import batch

requires = ("onnxruntime", "pyarrow", "moto", "boto3")

pytestmark = pytest.mark.filterwarnings("ignore")  # of the server's

NAMES = ("a.jpg", "b c%20.jpg", "x#?.jpg", "Büro.jpg")  # keys are taken as they are

Put = Callable[[str, bytes], None]


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield server.get_host_and_port()[1]
    server.stop()


@pytest.fixture
def put(port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Put]:
    """Store an object in a bucket that the environment leads to."""
    import boto3

    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    remote._file_system.cache_clear()
    client = boto3.client("s3")
    client.create_bucket(Bucket="photos")
    yield lambda key, data: client.put_object(Bucket="photos", Key=key, Body=data)
    for listed in client.list_objects_v2(Bucket="photos").get("Contents", []):
        client.delete_object(Bucket="photos", Key=listed["Key"])


@pytest.fixture(scope="module")
def encoded(photos: list[Path]) -> list[bytes]:
    return [path.read_bytes() for path in photos[:4]]


@pytest.fixture(scope="module")
def expected(testing_bundle: Bundle, encoded: list[bytes]) -> list[str]:
    with Predictor(testing_bundle, "ort") as predictor:
        return [answer.label for answer in predictor.stream(encoded)]


@pytest.fixture
def stored(put: Put, encoded: list[bytes], expected: list[str]) -> dict[str, str | None]:
    """Four photos and a file that is none, by URL; what a system leaves lies beside them."""
    for name, data in zip(NAMES, encoded, strict=True):
        put(f"in/{name}", data)
    put("in/bad.jpg", BAD)
    put("in/._a.jpg", BAD)
    put("in/.thumbnails/a.jpg", BAD)
    put("in/a.json", b"{}")
    found: dict[str, str | None] = {
        f"s3://photos/in/{name}": label for name, label in zip(NAMES, expected, strict=True)
    }
    return found | {"s3://photos/in/bad.jpg": None}


@pytest.mark.parametrize("folder", ["s3://photos/in", "s3://photos/in/", "s3://photos"])
def test_what_lies_below_a_url_is_answered(
    testing_bundle: Bundle, stored: dict[str, str | None], tmp_path: Path, folder: str
) -> None:
    batch(testing_bundle, folder, out=tmp_path)
    assert dict(labels(tmp_path)) == stored
    assert [path for path, _ in labels(tmp_path)] == sorted(stored)


def test_settings_of_a_url_hold_for_what_lies_below_it(
    testing_bundle: Bundle, stored: dict[str, str | None], port: int, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    remote._file_system.cache_clear()
    query = f"?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
    batch(testing_bundle, f"s3://photos/in/{query}", out=tmp_path)
    assert {path.removesuffix(query): label for path, label in labels(tmp_path)} == stored


def test_lists_tables_and_archives_are_read_from_there(
    testing_bundle: Bundle, stored: dict[str, str | None], put: Put, encoded: list[bytes],
    expected: list[str], tmp_path: Path,
) -> None:  # fmt: skip
    urls = [*stored, "s3://photos/absent.jpg", "s3://nobody/a.jpg"]
    put("list.txt", ("\r\n".join(urls) + "\n").encode())
    file = io.BytesIO()
    pq.write_table(pa.table({"path": urls}), file)
    put("paths.parquet", file.getvalue())
    for name in ("list.txt", "paths.parquet"):
        batch(testing_bundle, f"s3://photos/{name}", out=tmp_path / name)
        assert labels(tmp_path / name) == [*stored.items(), (urls[-2], None), (urls[-1], None)]
        assert "cannot be opened" in rows(tmp_path / name)[-1]["error"]
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for index, data in enumerate(encoded):
            info = tarfile.TarInfo(f"{index}.jpg")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    put("a.tar.gz", file.getvalue())
    batch(testing_bundle, "s3://photos/a.tar.gz", out=tmp_path / "tar")
    assert [label for _, label in labels(tmp_path / "tar")] == expected
    put("a.tar.gz", file.getvalue()[:-3000])
    with pytest.raises(InputError, match=r"a\.tar\.gz: cannot be read as a tar file"):
        batch(testing_bundle, "s3://photos/a.tar.gz", out=tmp_path / "cut")


def test_what_was_written_anew_is_answered_anew(
    testing_bundle: Bundle, stored: dict[str, str | None], put: Put, encoded: list[bytes],
    expected: list[str], tmp_path: Path,
) -> None:  # fmt: skip
    batch(testing_bundle, "s3://photos/in", out=tmp_path, shard_rows=2)
    put("in/bad.jpg", encoded[0])
    result = batch(testing_bundle, "s3://photos/in", out=tmp_path, shard_rows=2, resume=True)
    assert dict(labels(tmp_path)) == {**stored, "s3://photos/in/bad.jpg": expected[0]}
    assert sum(shard.resumed for shard in result.shards) == 2


def test_what_is_not_there_is_said(testing_bundle: Bundle, put: Put, tmp_path: Path) -> None:
    for given, message in (
        ("s3://photos/none/", "none"),
        ("s3://nobody/in/", "cannot be listed: .*NO_SUCH_BUCKET"),
        ("s3://photos/none.parquet", "no such file"),
        ("s3://photos/none.tar", "no such file"),
        ("s3://key:secret@photos/in/", "a URL with a password would be written into every row"),
    ):
        with pytest.raises(UsageError, match=message) as found:
            batch(testing_bundle, given, out=tmp_path / "out")
        assert "secret@" not in str(found.value)


def kept(port: int) -> dict[str, bytes]:
    """What lies in the bucket below answers/."""
    import boto3

    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}")
    listed = client.list_objects_v2(Bucket="photos", Prefix="answers/").get("Contents", [])
    return {
        item["Key"]: client.get_object(Bucket="photos", Key=item["Key"])["Body"].read()
        for item in listed
        if not item["Key"].endswith("/")
    }


def answers(port: int) -> list[tuple[str, str | None]]:
    found: list[tuple[str, str | None]] = []
    for key, data in sorted(kept(port).items()):
        if key.startswith("answers/part-"):
            table = pq.read_table(io.BytesIO(data))
            found += zip(table["path"].to_pylist(), table["label"].to_pylist(), strict=True)
    return found


@pytest.mark.parametrize("given", ["s3://photos/answers", "s3://photos/answers/", "query"])
def test_answers_go_to_a_store_and_a_run_goes_on_there(
    testing_bundle: Bundle, stored: dict[str, str | None], put: Put, encoded: list[bytes],
    expected: list[str], port: int, given: str,
) -> None:  # fmt: skip
    out = given
    if given == "query":
        out = f"s3://photos/answers?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
    inputs = "s3://photos/in/"
    result = batch(testing_bundle, inputs, out=out, shard_rows=2)
    assert (result.rows, result.failed, len(result.shards)) == (5, 1, 3)
    assert answers(port) == sorted(stored.items())
    first = kept(port)
    with pytest.raises(UsageError, match="holds a run"):
        batch(testing_bundle, inputs, out=out, shard_rows=2)
    with pytest.raises(UsageError, match="other settings: shard_rows"):
        batch(testing_bundle, inputs, out=out, shard_rows=3, resume=True)
    put("in/bad.jpg", encoded[0])
    again = batch(testing_bundle, inputs, out=out, shard_rows=2, resume=True)
    assert sum(shard.resumed for shard in again.shards) == 2
    assert dict(answers(port)) == {**stored, "s3://photos/in/bad.jpg": expected[0]}
    assert len(answers(port)) == 5
    gone = [key for key in kept(port) if "/.superseded/" in key]
    assert len(gone) == 1
    assert kept(port)[gone[0]] == first[gone[0].replace("/.superseded", "")]


def test_a_damaged_object_is_written_anew(
    testing_bundle: Bundle, stored: dict[str, str | None], put: Put, port: int
) -> None:
    out = "s3://photos/answers"
    batch(testing_bundle, "s3://photos/in", out=out, workers=2, shard_rows=2)
    assert answers(port) == sorted(stored.items())
    put(sorted(kept(port))[0], b"half")
    batch(testing_bundle, "s3://photos/in", out=out, resume=True, shard_rows=2)
    assert answers(port) == sorted(stored.items())


def test_a_bucket_that_is_not_there_or_holds_something_else_is_refused(
    testing_bundle: Bundle, stored: dict[str, str | None]
) -> None:
    with pytest.raises(UsageError, match="what is in it is no run of ours"):
        batch(testing_bundle, "s3://photos/in", out="s3://photos/in")
    with pytest.raises(ResourceError, match="s3://nobody/answers: cannot be written"):
        batch(testing_bundle, "s3://photos/in", out="s3://nobody/answers")
    with pytest.raises(UsageError, match="password"):
        batch(testing_bundle, "s3://photos/in", out="s3://key:secret@photos/answers")
