"""Folders and tables as systems leave them: what counts is counted, what is skipped is said."""

from __future__ import annotations

import logging
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from vit_edge.errors import InputError, UsageError
from vit_edge.images.classnames import classes_of_folders
from vit_edge.images.folders import (
    FOLDERS,
    Unlabelled,
    classes_from_folders,
    image_files,
    read_labelled,
)

LABELS = ("cat", "dog", "ship", "caf\u00e9")
APPLE_DOUBLE = bytes.fromhex("0005160700020000") + b"Mac OS X        " + bytes(100)


def placed(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path, "PNG")
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return placed(tmp_path / "data", "cat/a.jpg", "dog/b.jpg", "ship/c.jpg")


def labelled(folder: Path, source: str = FOLDERS) -> dict[str, str]:
    images = list(read_labelled(folder, source, LABELS))
    assert all(image.path.is_file() for image in images)
    return {image.name: LABELS[image.label] for image in images}


CLEAN = {"cat/a.jpg": "cat", "dog/b.jpg": "dog", "ship/c.jpg": "ship"}


@pytest.mark.parametrize(
    ("litter", "said"),
    [
        ("cat/.ipynb_checkpoints/a-checkpoint.jpg", ".ipynb_checkpoints 1"),
        (".ipynb_checkpoints/a.jpg", ".ipynb_checkpoints 1"),
        ("__MACOSX/cat/._a.jpg", "__MACOSX 1"),
        ("cat/@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", "@eaDir 1"),
        ("cat/@eaDir/SYNOFILE_THUMB_M.jpg", "@eaDir 1"),
        (".Trash-1000/files/a.jpg", ".Trash-1000 1"),
        (".Trashes/501/a.jpg", ".Trashes 1"),
        ("cat/.AppleDouble/a.jpg", ".AppleDouble 1"),
        ("._AppleDouble/a.jpg", "._AppleDouble 1"),
        ("$RECYCLE.BIN/S-1-5/a.jpg", "$RECYCLE.BIN 1"),
        ("System Volume Information/a.jpg", "System Volume Information 1"),
        ("lost+found/a.jpg", "lost+found 1"),
        ("#recycle/a.jpg", "#recycle 1"),
        ("cat/.thumbnails/a.png", ".thumbnails 1"),
        ("cat/._a.jpg", "._* 1"),
        ("cat/.trashed-1700000000-a.jpg", ".trashed-1700000000-a.jpg 1"),
        ("Thumbs.db", "Thumbs.db 1"),
        ("cat/thumbs.DB", "thumbs.DB 1"),
        ("cat/desktop.ini", "desktop.ini 1"),
        (".DS_Store", ".DS_Store 1"),
        ("cat/Icon\r", "1 files of the system"),
        ("cat/a.heic", ".heic 1"),
        ("cat/README", "without a suffix 1"),
        ("cat/a.xmp", ".xmp 1"),
    ],
)
def test_what_a_system_leaves_is_skipped_and_said_once(
    data: Path, caplog: pytest.LogCaptureFixture, litter: str, said: str
) -> None:
    path = data / litter
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(APPLE_DOUBLE)
    caplog.set_level(logging.INFO, "vit_edge")
    assert labelled(data) == CLEAN
    assert said in caplog.text
    assert caplog.text.count("skipped") == 1
    assert [f.relative_to(data).as_posix() for f in image_files(data)] == sorted(CLEAN)
    assert len(Unlabelled(data)) == 3


def test_nothing_is_said_where_nothing_is_skipped(
    data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "vit_edge")
    labelled(data)
    assert caplog.text == ""


def test_a_data_folder_of_its_own_may_begin_with_a_dot(tmp_path: Path) -> None:
    assert labelled(placed(tmp_path / ".data", "cat/a.jpg")) == {"cat/a.jpg": "cat"}


@pytest.mark.parametrize(
    "name", ["a.jfif", "a.JPG", "a.Jpeg", "a.JPE", "a.PNG", "a.TIFF", "a.webp", "a.avif", "a.pgm"]
)
def test_images_are_known_by_every_usual_suffix_in_any_case(tmp_path: Path, name: str) -> None:
    placed(tmp_path, "cat/b.png")
    (tmp_path / "cat/b.png").rename(tmp_path / "cat" / name)
    assert labelled(tmp_path) == {f"cat/{name}": "cat"}


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_accents_are_the_same_in_both_forms(tmp_path: Path, form: str) -> None:
    name = unicodedata.normalize(form, "caf\u00e9")  # type: ignore[arg-type]
    assert set(labelled(placed(tmp_path, f"{name}/a.png")).values()) == {"caf\u00e9"}


@pytest.mark.parametrize("below", ["001", "2024-05-01", "dog", "1/2", "ship/0"])
def test_the_top_folder_names_the_class_as_in_torchvision(tmp_path: Path, below: str) -> None:
    folder = placed(tmp_path, f"cat/{below}/a.png", f"dog/{below}/b.png")
    assert labelled(folder) == {f"cat/{below}/a.png": "cat", f"dog/{below}/b.png": "dog"}
    golden = classes_from_folders(folder, LABELS)
    assert golden is not None
    assert golden.tolist() == [0, 1]


def test_a_folder_between_counts_where_the_top_names_no_class(tmp_path: Path) -> None:
    folder = placed(tmp_path, "train/cat/1/a.png", "val/dog/b.png")
    assert labelled(folder) == {"train/cat/1/a.png": "cat", "val/dog/b.png": "dog"}


@pytest.mark.parametrize("name", ["cats/001/a.png", "photos/1/a.png", "cats/x/2/a.png"])
def test_a_numbered_session_is_no_class_of_a_folder_without_one(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="name no class"):
        labelled(placed(tmp_path, name, "dog/b.png"))


def test_synsets_count_by_their_top_folders_alone() -> None:
    found, problems = classes_of_folders(
        [("n00000002", "s1"), ("n00000001", "s1"), ("n00000001", "s2")], ("a", "b")
    )
    assert problems == {}
    assert found == {
        ("n00000002", "s1"): 1, ("n00000001", "s1"): 0, ("n00000001", "s2"): 0,
    }  # fmt: skip


# tables ---------------------------------------------------------------------------------------

PLAIN = "cat/a.jpg,cat\ndog/b.jpg,dog\nship/c.jpg,ship\n"


def table(data: Path, content: str | bytes) -> str:
    path = data.parent / "table.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def rewritten(pattern: str, heading: str = "") -> str:
    rows = [row.split(",") for row in PLAIN.split()]
    body = [pattern.format(i=i, path=path, label=label) for i, (path, label) in enumerate(rows)]
    return "\n".join([*([heading] if heading else []), *body]) + "\n"


HEADINGS = [
    "path,label", "Path,Label", "filename,label", "file_name,label", "File Name,Class",
    "image,class", "image_path,class_name", "img,category", "filepath,target", "ImageID,species",
    "file,y", "image_id,breed", "photo,truth",
]  # fmt: skip


@pytest.mark.parametrize("heading", HEADINGS)
def test_a_heading_may_have_any_usual_name(data: Path, heading: str) -> None:
    assert labelled(data, table(data, rewritten("{path},{label}", heading))) == CLEAN


@pytest.mark.parametrize(
    ("pattern", "heading"),
    [
        ("{path};{label}", ""),
        ("{path}\t{label}", ""),
        ("{path}|{label}", ""),
        ("{path};{label}", "filename;label"),
        ("{path}\t{label}", "image\tclass"),
        ("{path};{label}", "sep=;"),
        ("{path},{label},train", ""),
        ("{i},{path},{label}", ""),
        ("{i},{path},{label}", ",path,label"),
        ("{i},{path},{label}", "Unnamed: 0,filename,class"),
        ("{path},640,480,{label},12", ""),
        ("{path},640,480,{label}", "filename,width,height,class"),
        ("{label},{path}", ""),
        ("{label},{path}", "label,path"),
        ("train,{label},{i},{path}", "split,label,index,path"),
        ("{path},{label},", ""),
        ("{path},{label}", "# written by hand"),
        ('"{path}","{label}"', '"path","label"'),
        ('"{path}";"{label}"', ""),
        ("  {path} , {label}  ", ""),
        ("{path},{label}\n,", ""),
        ("./{path},{label}", ""),
    ],
)
def test_columns_and_separators_are_found(data: Path, pattern: str, heading: str) -> None:
    found = labelled(data, table(data, rewritten(pattern, heading)))
    assert {name.removeprefix("./"): label for name, label in found.items()} == CLEAN


@pytest.mark.parametrize("ending", ["\r\n", "\r", "\n", "\n\n"])
def test_lines_end_as_on_any_system(data: Path, ending: str) -> None:
    assert labelled(data, table(data, PLAIN.replace("\n", ending))) == CLEAN


@pytest.mark.parametrize(
    ("encoding", "mark", "said"),
    [
        ("utf-8", b"", ""),
        ("utf-8-sig", b"", ""),
        ("utf-16", b"", "utf-16"),
        ("utf-16-le", b"\xff\xfe", "utf-16"),
        ("utf-16-be", b"\xfe\xff", "utf-16"),
        ("utf-16-le", b"", "utf-16-le"),
        ("utf-16-be", b"", "utf-16-be"),
        ("utf-32", b"", "utf-32"),
        ("latin-1", b"", "cp1252"),
        ("cp1252", b"", "cp1252"),
    ],
)
def test_other_encodings_are_read_and_said(
    data: Path, caplog: pytest.LogCaptureFixture, encoding: str, mark: bytes, said: str
) -> None:
    caplog.set_level(logging.INFO, "vit_edge")
    placed(data, "caf\u00e9/\u00fc.jpg")
    content = (PLAIN + "caf\u00e9/\u00fc.jpg,caf\u00e9\n").encode(encoding)
    found = labelled(data, table(data, mark + content))
    assert found == CLEAN | {"caf\u00e9/\u00fc.jpg": "caf\u00e9"}
    assert said in caplog.text
    assert ("read as" in caplog.text) == bool(said)


@pytest.mark.parametrize(
    "prefix", ["C:\\Users\\me\\data\\", "D:/data/", "/content/drive/data/", "\\\\nas\\photos\\"]
)
def test_paths_of_another_machine_are_found_below_the_data_and_it_is_said(
    data: Path, caplog: pytest.LogCaptureFixture, prefix: str
) -> None:
    caplog.set_level(logging.INFO, "vit_edge")
    rows = [row.split(",") for row in PLAIN.split()]
    slash = "\\" if "\\" in prefix else "/"
    content = "".join(f"{prefix}{path.replace('/', slash)},{label}\n" for path, label in rows)
    assert sorted(labelled(data, table(data, content)).values()) == ["cat", "dog", "ship"]
    assert caplog.text.count("is taken for") == 1


def test_relative_windows_paths_and_decomposed_names_are_found(data: Path) -> None:
    placed(data, "cat/" + unicodedata.normalize("NFD", "\u00fc.jpg"))
    found = labelled(data, table(data, "cat\\a.jpg,cat\ncat\\\u00fc.jpg,cat\n"))
    assert set(found.values()) == {"cat"}
    assert len(found) == 2


def test_a_path_from_a_third_place_stays_missing(data: Path) -> None:
    content = "/there/cat/a.jpg,cat\n/elsewhere/dog/b.jpg,dog\n"
    first, second = read_labelled(data, table(data, content), LABELS)
    assert first.path == data / "cat/a.jpg"
    assert not second.path.exists()


@pytest.mark.parametrize("text", ["1.0", "1.", "1", "01"])
def test_a_number_may_be_written_as_a_spreadsheet_does(data: Path, text: str) -> None:
    assert labelled(data, table(data, f"dog/b.jpg,{text}\n")) == {"dog/b.jpg": "dog"}


@pytest.mark.parametrize("text", ["1.5", "4.0", "-1.0", "1e0", "nan"])
def test_other_numbers_are_no_class(data: Path, text: str) -> None:
    with pytest.raises(InputError, match="no class"):
        labelled(data, table(data, f"dog/b.jpg,{text}\n"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a.jpg,1,2\nb.jpg,0,1\n", "columns 2, 3 may all be meant"),
        ("a.jpg,b.jpg,cat\nc.jpg,d.jpg,dog\n", "columns 1, 2 may all be meant"),
        ("path,width,height\na.jpg,1,2\n", "is called label"),
        ("a.jpg,cat\nb.jpg,cat,dog\n", ":2: expected path,label"),
        ("path,label\na.jpg,cat\nb.jpg\n", ":3: expected path,label"),
        ("path,label\na.jpg,cat,dog\n", ":2: expected path,label"),
    ],
)
def test_what_several_readings_fit_is_refused(data: Path, content: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        labelled(placed(data, "a.jpg", "b.jpg", "c.jpg", "d.jpg"), table(data, content))


def test_a_table_is_no_folder_and_must_exist(data: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        labelled(data, "nowhere.csv")
    with pytest.raises(InputError):
        labelled(data, str(data))
