"""URLs, and what a listing behind one is called."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pyarrow import fs

from vit_edge.scale import remote
from vit_edge.scale.store import Store

requires = ("pyarrow",)


@pytest.mark.parametrize(
    "url", ["onhost://me@photos.org:22", "onhost://photos.org/deep/", "onhost:///deep"]
)
def test_what_fsspec_lists_keeps_account_and_host(url: str) -> None:
    """As of sftp: neither is in the paths of a listing."""
    fsspec = pytest.importorskip("fsspec")

    class OnHost(fsspec.get_filesystem_class("memory")):  # type: ignore[misc]
        protocol = "onhost"
        store: ClassVar[dict[str, Any]] = {}
        pseudo_dirs: ClassVar[list[str]] = [""]

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return re.sub("^onhost://[^/]*", "", path).rstrip("/")

    fsspec.register_implementation("onhost", OnHost, clobber=True)
    remote._file_system.cache_clear()
    fsspec.filesystem("onhost").pipe("/deep/a b%20.jpg", b"content")
    (found,) = remote.walk_url(url)
    assert found.path == f"{url.rstrip('/').removesuffix('/deep')}/deep/a b%20.jpg"
    assert remote.opened(found.path).read() == b"content"


@pytest.mark.parametrize("query", ["", "?region=here"])
@pytest.mark.parametrize("folder", ["", "/", "/in", "/in/"])
def test_what_azure_lists_keeps_its_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, query: str
) -> None:
    """Arrow's paths begin with the container and lack the account; a folder stands for it."""
    (tmp_path / "photos" / "in").mkdir(parents=True)
    (tmp_path / "photos" / "in" / "a.jpg").write_bytes(b"content")
    files = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    monkeypatch.setattr(remote, "_file_system", lambda root, query: (files, "photos"))
    root = "abfs://photos@acct.dfs.core.windows.net"
    (found,) = remote.walk_url(f"{root}{folder}{query}")
    assert found.path == f"{root}/in/a.jpg{query}"
    assert remote.opened(found.path).read() == b"content"


def test_a_folder_that_lies_in_a_hidden_one_has_its_images(tmp_path: Path) -> None:
    """It was named; what a listing leaves out lies below it."""
    for name in ("a.jpg", ".thumbnails/a.jpg"):
        (tmp_path / ".cache" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / ".cache" / name).touch()
    found = [Path(path).name for path, _ in remote.walk_url((tmp_path / ".cache").as_uri())]
    assert found == ["a.jpg"]


@pytest.mark.parametrize(
    ("out", "expected"),
    [
        ("memory://bucket/what?/answers", "memory://bucket/what?/answers/p.parquet"),
        ("memory://bucket/a?b=c/", "memory://bucket/a?b=c/p.parquet"),
        ("memory://bucket/a/?b=c&d=http://e/", "memory://bucket/a/p.parquet?b=c&d=http://e/"),
        ("memory://bucket", "memory://bucket/p.parquet"),
        ("file:///data/what?b=c", "file:///data/what?b=c/p.parquet"),
        ("/data/what?b=c", "/data/what?b=c/p.parquet"),
    ],
)
def test_a_question_mark_in_a_folder_s_name_is_one(out: str, expected: str) -> None:
    if out.startswith("memory:"):
        pytest.importorskip("fsspec")
    assert Store(out).path("p.parquet") == expected


def test_two_writers_have_two_places_for_one_shard(tmp_path: Path) -> None:
    """Also in two containers, where both are process 1: a lost actor may still write."""
    assert Store(tmp_path).aside("part-0.parquet") != Store(tmp_path).aside("part-0.parquet")
