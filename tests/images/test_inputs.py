"""Files, folders, patterns and lists: which images they name, in which order."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from vit_edge.errors import ImageDecodeError, InputError, UsageError
from vit_edge.images.files import DEFAULT_LIMITS, read_source
from vit_edge.images.inputs import check_inputs, images_of, listed_images, read_list
from vit_edge.images.walk import Skipped

ODD = ("with space.jpg", "new\nline.jpg", "tab\t.jpg", "quote\".jpg", "ümlaut.JPG", "\udcff.jpg",
       "[1].jpg", "-dash.jpg")  # fmt: skip


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """photos/ with images in folders, what systems leave there, links in circles, and others."""
    for name in (
        "photos/b.jpg", "photos/a.JPG", "photos/notes.txt", "photos/.hidden.jpg",
        "photos/deep/er/c.png", "photos/deep/d.jpg", "photos/@eaDir/thumb.jpg", "one.jpg",
        "photos/.cache/e.jpg", "photos/Thumbs.db", "empty/readme.md",
    ):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "photos/deep/loop").symlink_to(tmp_path / "photos")
    (tmp_path / "photos/deep/er/up").symlink_to("..")
    (tmp_path / "linked").symlink_to("photos")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def named(word: str) -> list[str]:
    return list(images_of(word, Skipped()))


@pytest.mark.parametrize(
    ("word", "images"),
    [
        ("one.jpg", ["one.jpg"]),
        ("photos/notes.txt", ["photos/notes.txt"]),  # by its name: reported when it is read
        ("photos", ["a.JPG", "b.jpg", "deep/d.jpg", "deep/er/c.png"]),
        ("photos/", ["a.JPG", "b.jpg", "deep/d.jpg", "deep/er/c.png"]),
        ("photos/*.jpg", ["b.jpg"]),
        ("photos/*.[jJ][pP][gG]", ["a.JPG", "b.jpg"]),
        ("photos/?.jpg", ["b.jpg"]),
        ("photos/*", ["a.JPG", "b.jpg", "deep/d.jpg", "deep/er/c.png"]),
        ("photos/**", ["a.JPG", "b.jpg", "deep/d.jpg", "deep/er/c.png"]),
        ("photos/**/*", ["a.JPG", "b.jpg", "deep/d.jpg", "deep/er/c.png"]),
        ("photos/**/*.png", ["deep/er/c.png"]),
        ("photos/**/er/*.png", ["deep/er/c.png"]),
        ("photos/**/**/c.png", ["deep/er/c.png"]),
        ("photos/**/deep/**/c.png", ["deep/er/c.png"]),
        ("photos/d*", ["deep/d.jpg", "deep/er/c.png"]),
        ("photos/*.txt", ["notes.txt"]),
        ("photos/.*.jpg", [".hidden.jpg"]),
        ("./photos//*.jpg", ["b.jpg"]),
        ("photos/*.gif", []),
        ("empty", []),
        ("empty/*", []),
    ],
)
def test_an_input_names_its_images_in_order(tree: Path, word: str, images: list[str]) -> None:
    expected = [image if "/" in word and image == word else f"photos/{image}" for image in images]
    if word in ("one.jpg", "photos/notes.txt"):
        expected = [word]
    assert named(word) == expected
    assert named(word) == named(word)
    relative = Path(word).parts[0]
    if images and relative == "photos":
        inside = [str(tree / image) for image in expected]
        assert named(f"{tree}/{word.removeprefix('./')}") == inside


def test_a_folder_behind_a_link_is_looked_into_and_circles_are_not_followed(tree: Path) -> None:
    assert named("linked") == [
        "linked/a.JPG", "linked/b.jpg", "linked/deep/d.jpg", "linked/deep/er/c.png",
    ]  # fmt: skip
    assert named("**/*.png") == ["photos/deep/er/c.png"]


def test_home_is_found_where_the_shell_left_it(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tree))
    assert named("~/photos/*.jpg") == [f"{tree}/photos/b.jpg"]
    assert named("~/photos/deep") == [f"{tree}/photos/deep/d.jpg", f"{tree}/photos/deep/er/c.png"]
    Path("~").mkdir()
    assert named("~") == []


def test_what_is_there_comes_before_a_pattern(tree: Path) -> None:
    for name in ("[1].jpg", "1.jpg", "what?.jpg"):
        Path(name).touch()
    assert named("[1].jpg") == ["[1].jpg"]
    assert named("what?.jpg") == ["what?.jpg"]
    assert named("[0-9].jpg") == ["1.jpg"]


def test_names_of_any_kind_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ODD:
        Path(name).touch()
    assert named(".") == sorted(ODD)
    assert sorted(named("*.[jJ]*")) == sorted(ODD)
    for null, end in ((True, b"\0"), (False, b"\n")):
        names = [name for name in ODD if null or "\n" not in name]
        data = b"".join(os.fsencode(name) + end for name in names)
        assert list(listed_images(io.BytesIO(data), null=null)) == names


def test_inputs_are_counted_and_all_that_name_nothing_are_told(tree: Path) -> None:
    assert check_inputs(["photos", "one.jpg", "one.jpg", "nowhere.jpg"]) == 7
    assert check_inputs(["photos", "-"]) is None
    words = ["photos/*.gif", "empty", "https://a.b/c.jpg", "S3://bucket/key", "-", "-",
             "file:///x.jpg", "data:image/png;base64,AAAA"]  # fmt: skip
    with pytest.raises(UsageError) as refused:
        check_inputs(words)
    text = str(refused.value)
    for part in (
        "photos/*.gif: nothing is called so", "empty: no images in it", "https://a.b/c.jpg: URLs",
        "S3://bucket/key: URLs", "- is given twice", "file:///x.jpg: URLs are not read",
        "data:image/png;base64,AAAA: URLs", ".webp",
    ):  # fmt: skip
        assert part in text


def test_a_url_in_a_list_is_one_bad_image() -> None:
    with pytest.raises(ImageDecodeError, match=r"https://a.b/c.jpg: URLs are not fetched"):
        read_source("https://a.b/c.jpg", "https://a.b/c.jpg", DEFAULT_LIMITS)


def test_what_is_left_out_is_said_once(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "vit_edge"):
        check_inputs(["photos", "photos/**"])
    assert caplog.text.count(".txt 1") == 2
    assert "@eaDir" in caplog.text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_read_is_told(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    Path("photos/deep").chmod(0)
    try:
        for word in ("photos", "photos/**"):
            skipped = Skipped()
            assert list(images_of(word, skipped)) == ["photos/a.JPG", "photos/b.jpg"]
            assert skipped.refused == {"photos/deep: Permission denied": 1}
    finally:
        Path("photos/deep").chmod(0o755)


def test_a_folder_that_cannot_be_read_is_counted(
    tree: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scan = os.scandir

    def refusing(path: str) -> object:
        if str(path).endswith("er"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    skipped = Skipped()
    assert len(list(images_of("photos", skipped))) == 3
    assert skipped.refused == {"photos/deep/er: Permission denied": 1}
    with caplog.at_level("INFO", "vit_edge"):
        skipped.say(Path("photos"))
    assert "1 folders cannot be read: photos/deep/er: Permission denied" in caplog.text


@pytest.mark.parametrize(
    ("data", "end", "paths"),
    [
        (b"a\nb\n", b"\n", ["a", "b"]),
        (b"a\r\nb", b"\n", ["a", "b"]),
        (b"\n\na b\n", b"\n", ["a b"]),
        (b"a\nb\0c\r\0", b"\0", ["a\nb", "c\r"]),
        (b"\xff\n", b"\n", ["\udcff"]),
        (b"", b"\n", []),
    ],
)
def test_a_list_is_read_whatever_it_holds(data: bytes, end: bytes, paths: list[str]) -> None:
    class Drop(io.BytesIO):
        def read1(self, size: int | None = -1) -> bytes:
            return self.read(1)

    assert list(read_list(io.BytesIO(data), end)) == paths
    assert list(read_list(Drop(data), end)) == paths


def test_a_list_without_ends_is_refused_and_fills_no_memory() -> None:
    class Endless(io.BytesIO):
        def read1(self, size: int | None = -1) -> bytes:
            return b"x" * 65536

    with pytest.raises(InputError, match="more than a megabyte"):
        list(read_list(Endless(), b"\n"))


def test_a_folder_in_a_list_stands_for_its_images(tree: Path) -> None:
    listed = list(listed_images(io.BytesIO(b"photos/deep\nempty\none.jpg\n"), null=False))
    assert listed == ["photos/deep/d.jpg", "photos/deep/er/c.png", "empty", "one.jpg"]
