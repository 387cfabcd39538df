"""Images get the classes that their folders or a CSV file say, or an error says what does not."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from vit_edge.errors import InputError, UsageError
from vit_edge.images.classnames import classes_of_names
from vit_edge.images.folders import (
    FOLDERS,
    Unlabelled,
    as_counted,
    classes_from_folders,
    image_files,
    read_labelled,
)

LABELS = ("tench, Tinca tinca", "African grey", "crane", "crane", "9")


def placed(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path, "PNG")
    return folder


def labelled(folder: Path, source: str = FOLDERS) -> dict[str, int]:
    return {image.name: image.label for image in read_labelled(folder, source, LABELS)}


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("tench, Tinca tinca", 0),
        ("Tench", 0),
        ("tinca_TINCA", 0),
        ("african_grey", 1),
        ("2", 2),
        ("0004", 4),
        ("9", 4),  # a label, though also a number that no class has
    ],
)
def test_a_name_finds_its_class(name: str, index: int) -> None:
    assert classes_of_names([name], LABELS) == ({name: index}, [])


@pytest.mark.parametrize("name", ["5", "-1", "tenc", "", "1.0", "²", "n01440764"])
def test_a_name_of_no_class_is_a_problem(name: str) -> None:
    found, problems = classes_of_names([name], LABELS)
    assert found == {}
    assert repr(name) in problems[0]


def test_a_name_of_two_classes_is_a_problem_that_names_both() -> None:
    assert classes_of_names(["crane"], LABELS) == ({}, ["'crane' may be class 2 or 3"])


def test_as_many_synsets_as_classes_are_the_classes_in_sorted_order() -> None:
    names = ["n00000003", "n00000001", "n00000002"]
    found, problems = classes_of_names(names, ("a", "b", "c"))
    assert (found, problems) == ({"n00000001": 0, "n00000002": 1, "n00000003": 2}, [])


def test_fewer_synsets_than_classes_are_not_guessed() -> None:
    found, problems = classes_of_names(["n00000001", "n00000002"], ("a", "b", "c"))
    assert found == {}
    assert len(problems) == 2


def test_synsets_that_are_labels_count_as_labels() -> None:
    labels = ("n00000002", "n00000001")
    assert classes_of_names(labels, labels)[0] == {"n00000002": 0, "n00000001": 1}


def test_folders_give_their_images_classes(tmp_path: Path) -> None:
    placed(tmp_path, "tench/b.png", "tench/a.JPEG", "deep/African_grey/c.png", "2/d.png")
    (tmp_path / "tench" / "notes.txt").write_text("no image")
    assert labelled(tmp_path) == {
        "2/d.png": 2,
        "deep/African_grey/c.png": 1,
        "tench/a.JPEG": 0,
        "tench/b.png": 0,
    }


def test_every_folder_that_is_no_class_is_listed(tmp_path: Path) -> None:
    placed(tmp_path, "tench/a.png", "pike/a.png", "crane/a.png")
    with pytest.raises(InputError, match="2 of 3 folders") as error:
        labelled(tmp_path)
    assert "'pike'" in str(error.value)
    assert "class 2 or 3" in str(error.value)


def test_a_csv_file_gives_classes(tmp_path: Path) -> None:
    placed(tmp_path, "a.png", "b.png", "c.png")
    table = tmp_path / "labels.csv"
    table.write_text(
        'path,label\r\na.png,tench\r\n\r\nb.png, 1\r\nc.png,"tench, Tinca tinca"', "utf-8-sig"
    )
    assert labelled(tmp_path, str(table)) == {"a.png": 0, "b.png": 1, "c.png": 0}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "lists no image"),
        (b"path,label\n", "lists no image"),
        (b"a.png\n", ":1: expected path,label"),
        (b"a.png,tench\nb.png,tench,Tinca tinca\n", ":2: expected path,label"),
        (b"a.png,\n", ":1: expected path,label"),
        (b"a.png,pike\nb.png,trout\nc.png,tench\n", "2 of 3 labels"),
        (b"\xff\xfe\x00,1\n", "UTF-8"),
        (b'a.png,"tench\n', "CSV"),
    ],
)
def test_a_csv_file_that_is_none_is_a_typed_error(
    tmp_path: Path, content: bytes, words: str
) -> None:
    table = tmp_path / "labels.csv"
    table.write_bytes(content)
    with pytest.raises(InputError, match=words):
        labelled(tmp_path, str(table))


def test_a_missing_csv_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nonesuch"):
        labelled(tmp_path, "nonesuch")


@pytest.mark.parametrize("name", ["nonesuch", "empty"])
def test_a_folder_without_images_is_a_usage_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=name):
        labelled(tmp_path / name)


def test_a_model_without_classes_has_no_accuracy(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no classes"):
        read_labelled(tmp_path, FOLDERS, ())


@pytest.mark.parametrize("change", ["more", "fewer"])
def test_images_that_change_while_they_are_read_are_noticed(tmp_path: Path, change: str) -> None:
    images = Unlabelled(placed(tmp_path, "a.png", "b.png"))
    if change == "more":
        placed(tmp_path, "c.png")
    else:
        (tmp_path / "a.png").unlink()
    with pytest.raises(InputError, match="leave them alone"):
        list(as_counted(images))


def test_a_dangling_link_is_walked_but_is_no_file(tmp_path: Path) -> None:
    placed(tmp_path, "a.png")
    (tmp_path / "b.png").symlink_to("nowhere")
    assert len(Unlabelled(tmp_path)) == 2  # an evaluation reports it
    assert [file.name for file in image_files(tmp_path)] == ["a.png"]


def test_golden_images_get_classes_where_folders_are_whole_labels(tmp_path: Path) -> None:
    placed(tmp_path, "African grey/a.png", "2/b.png", "holiday/c.png")
    found = classes_from_folders(tmp_path, LABELS)
    assert found is not None
    assert found.tolist() == [-1, 1, -1]  # 2 and holiday are no labels; "2" sorts first


def test_golden_images_outside_class_folders_have_no_classes(tmp_path: Path) -> None:
    assert classes_from_folders(placed(tmp_path, "a.png"), LABELS) is None


def test_the_imagenet_photos_find_their_classes_through_a_csv_file(
    shared_data: Path, tmp_path: Path, repository: Path
) -> None:
    data = repository / "vit_edge" / "data" / "imagenet1k-labels.txt"
    labels = tuple(data.read_text(encoding="utf-8").splitlines())
    photos = sorted((shared_data / "images" / "imagenet").glob("n*.JPEG"))
    names = {photo.name: photo.stem.partition("_")[2] for photo in photos}
    found, problems = classes_of_names(set(names.values()), labels)
    table = tmp_path / "photos.csv"
    known = {photo: name for photo, name in names.items() if name in found}
    table.write_text("".join(f"{photo},{name}\n" for photo, name in known.items()), "utf-8")
    images = read_labelled(photos[0].parent, str(table), labels)
    assert len(photos) == 96
    assert len(images) >= 80
    for image in images:
        name = known[image.name].replace("_", " ").casefold()
        assert name in labels[image.label].casefold()
    assert all("may be class" in p or "is no label" in p for p in problems)
