"""vit-edge predict: images wherever they are, answers on the terminal or in a file."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vit_edge.bundle import Bundle
from vit_edge.predict.__main__ import main
from vit_edge.predictor import Predictor

requires = ("onnxruntime",)

ODD = ("new\nline.png", 'comma, "quote".png', "\udcff.png", "ümlaut.png", "-dash.png", "=1+1.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven images of odd names, one of them in a folder, and one that is none."""
    images = tmp_path / "images"
    (images / "deep").mkdir(parents=True)
    for number, name in enumerate((*ODD, "deep/in.png")):
        Image.new("RGB", (40, 40), (30 * number, 99, 200)).save(images / name)
    (images / "bad.jpg").write_text("<html>404</html>")
    (images / "notes.txt").write_text("no image")
    return images


@pytest.fixture
def ask(
    testing_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run the command; return its exit code, stdout and stderr."""

    def run(*words: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(testing_bundle.path), *map(str, words)])
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return code, printed.out, printed.err

    return run


Ask = Callable[..., tuple[int, str, str]]


def names(folder: Path) -> list[str]:
    """The images of the folder, in the order of the answers."""
    top = sorted([*ODD, "bad.jpg"])
    return [str(folder / name) for name in (*top, "deep/in.png")]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder_is_answered_in_order_and_one_bad_image_does_not_stop_it(
    ask: Ask, folder: Path
) -> None:
    code, out, err = ask(folder, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 3
    assert [row["image"] for row in rows] == names(folder)
    assert [row["image"] for row in rows if "error" in row] == [str(folder / "bad.jpg")]
    assert "8 images in " in err
    assert "1 of them could not be read" in err
    assert "images a second" in err
    assert ask(folder, "--json")[1] == out


@pytest.mark.parametrize("batch", ["1", "2", "4"])
def test_every_way_to_name_them_gives_the_same_answers(
    ask: Ask, folder: Path, batch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answers(*words: str | Path) -> list[str]:
        code, out, _ = ask(*words, "--json", "--batch", batch)
        assert code == 3
        return sorted(out.splitlines())

    of_folder = answers(folder)
    assert answers(f"{folder}/**") == of_folder
    assert answers(f"{folder}/*.*g", folder / "deep") == of_folder
    listed = b"".join(os.fsencode(name) + b"\0" for name in names(folder))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(listed)))
    assert answers("-", "--null") == of_folder


def test_json_lines_and_csv_hold_every_name_and_the_answers_of_the_predictor(
    ask: Ask, folder: Path, tmp_path: Path, testing_bundle: Bundle
) -> None:
    lines, table = tmp_path / "a.jsonl", tmp_path / "a.csv"
    code, out, err = ask(folder, "--out", lines, "--top-k", "2")
    assert (code, out) == (3, f"answers    {lines}\n")
    assert err.count("bad.jpg") == 1
    assert ask(folder, "-o", table, "--top-k", "2")[0] == 3
    rows = [json.loads(line) for line in lines.read_text("ascii").splitlines()]
    cells = rows_of(table)
    assert [row["image"] for row in rows] == names(folder)
    assert [row["image"] for row in cells] == names(folder)
    with Predictor(testing_bundle) as predictor:
        expected = predictor.predict_batch(names(folder), 2, on_error="record")
    for row, cell, answer in zip(rows, cells, expected, strict=True):
        assert row == {"image": row["image"], **answer.as_dict()}
        if "error" in row:
            assert cell["label"] == cell["score_2"] == ""
            assert cell["error"] == f"{row['error']}: {row['message']}"
            continue
        assert not cell["error"]
        first, second = row["top"]
        assert (cell["label"], cell["label_2"]) == (first["label"], second["label"])
        assert np.float32(cell["score"]) == np.float32(first["score"])
        assert np.float32(cell["score_2"]) == np.float32(second["score"])


def test_more_classes_than_there_are_is_all_of_them(ask: Ask, folder: Path, tmp_path: Path) -> None:
    assert ask(folder / "deep", "-o", tmp_path / "a.csv", "--top-k", "99")[0] == 0
    (row,) = rows_of(tmp_path / "a.csv")
    assert [name for name in row if name.startswith("label")][-1] == "label_10"
    assert all(row[name] for name in row if name != "error")


def features(bundle: Bundle, images: list[str]) -> Any:
    with Predictor(bundle) as predictor:
        return predictor.features(images, on_error="skip")


def test_features_are_those_of_the_predictor_in_every_format(
    ask: Ask, folder: Path, tmp_path: Path, testing_bundle: Bundle
) -> None:
    good = [name for name in names(folder) if not name.endswith("bad.jpg")]
    expected = features(testing_bundle, good)
    for suffix in ("npy", "npz", "jsonl", "csv"):
        assert ask(folder, "--embed", "--out", tmp_path / f"x.{suffix}")[0] == 3
    with np.load(tmp_path / "x.npz") as archive:
        assert archive["features"].dtype == np.float32
        np.testing.assert_array_equal(archive["features"], expected)
        assert archive["paths"].tolist() == good
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), expected)
    assert np.load(tmp_path / "x.paths.npy").tolist() == good
    rows = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    kept = [row["features"] for row in rows if "error" not in row]
    np.testing.assert_array_equal(np.array(kept, np.float32), expected)
    cells = [row for row in rows_of(tmp_path / "x.csv") if not row["error"]]
    values = [[row[f"f{n}"] for n in range(expected.shape[1])] for row in cells]
    np.testing.assert_array_equal(np.array(values, np.float32), expected)
    printed = [json.loads(line) for line in ask(folder, "--embed")[1].splitlines()]
    assert printed == [row for row in rows if "error" not in row]
    printed = [json.loads(line) for line in ask(folder, "--embed", "--json")[1].splitlines()]
    assert printed == rows


def test_no_image_that_can_be_read_makes_empty_arrays(
    ask: Ask, folder: Path, tmp_path: Path
) -> None:
    assert ask(folder / "bad.jpg", "--embed", "-o", tmp_path / "x.npz")[0] == 3
    with np.load(tmp_path / "x.npz") as archive:
        assert archive["features"].shape[0] == archive["paths"].shape[0] == 0
        assert archive["features"].ndim == 2


def test_a_bundle_without_them_says_how_to_get_them(
    ask: Ask, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vit_edge.predict.__main__.FEATURES", "tokens")  # which this one lacks
    code, _, err = ask(folder, "--embed", "--out", tmp_path / "x.npz")
    assert code == 2
    assert "has no tokens" in err
    assert "vit-edge export --outputs logits,features,tokens" in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--out", "a.parquet"], "to_parquet"),
        (["--out", "a.PARQUET"], "to_parquet"),
        (["--out", "a.json"], "write .jsonl"),
        (["--out", "a.xyz"], ".jsonl, .csv"),
        (["--out", "a"], ".jsonl, .csv"),
        (["--out", "a.npz"], "--embed"),
        (["--embed", "--top-k", "3"], "--top-k"),
        (["--top-k", "0"], "--top-k must be 1"),
        (["--batch", "0"], "--batch must lie in 1..4"),
        (["--batch", "5"], "--batch must lie in 1..4"),
        (["--null"], "--null"),
        (["https://a.b/c.jpg"], "https://a.b/c.jpg: URLs"),
        (["nothing/*.jpg"], "nothing/*.jpg: nothing is called so"),
    ],
)
def test_what_contradicts_itself_is_refused_before_any_work(
    ask: Ask, folder: Path, words: list[str], told: str
) -> None:
    code, out, err = ask(folder, *words)
    assert (code, out) == (2, "")
    assert told in err


def test_a_folder_that_is_missing_or_a_directory_is_no_place_to_write(
    ask: Ask, folder: Path, tmp_path: Path
) -> None:
    assert ask(folder, "--out", tmp_path / "no/where.csv")[0] == 3
    (tmp_path / "d.csv").mkdir()
    assert ask(folder, "--out", tmp_path / "d.csv")[0] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.csv", "images"]


def test_a_file_is_replaced_at_the_end_or_stays_as_it_was(
    ask: Ask, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.csv"
    out.write_text("old\n")
    linked = tmp_path / "link.csv"
    linked.symlink_to(out)

    def fail(self: Predictor, *_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "_run_pixels", fail)
        assert ask(folder, "--out", out)[0] == 130
    assert out.read_text() == "old\n"
    assert ask(folder, "--out", linked)[0] == 3
    assert linked.is_symlink()
    assert out.read_bytes().startswith(b"image,label,")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "link.csv", "out.csv"]


def test_a_full_disk_is_told_with_a_way_on(
    ask: Ask, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    code, _, err = ask(folder, "--out", tmp_path / "out.csv")
    assert code == 3
    assert "out.csv: cannot be written: No space left on device" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]


def test_what_was_done_is_json_where_that_is_asked_for(
    ask: Ask, folder: Path, tmp_path: Path
) -> None:
    _, out, _ = ask(folder, "--out", tmp_path / "x.jsonl", "--json")
    told = json.loads(out)
    assert (told["out"], told["images"], told["failed"]) == (str(tmp_path / "x.jsonl"), 8, 1)
    assert told["images_per_s"] > 0


def test_an_empty_list_is_an_error(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    code, _, err = ask("-", "--out", tmp_path / "x.csv")
    assert code == 2
    assert "the list on stdin names no image" in err
    assert not (tmp_path / "x.csv").exists()


def test_a_folder_that_cannot_be_read_is_no_success(
    ask: Ask, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = os.scandir

    def refusing(path: str) -> object:
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    (folder / "bad.jpg").unlink()
    monkeypatch.setattr(os, "scandir", refusing)
    code, out, err = ask(folder, "--json")
    assert code == 3
    assert len(out.splitlines()) == 6
    assert "deep: Permission denied" in err


def test_a_terminal_shows_a_bar_and_a_pipe_does_not(
    ask: Ask, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "[" not in ask(folder, "--out", tmp_path / "x.csv")[2]
    monkeypatch.setattr("vit_edge.cli.progress._TERMINAL_S", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    _, _, err = ask(folder, "--out", tmp_path / "x.csv")
    assert "predicting: [##" in err
    assert "8 of 8 images" in err
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert "[##" not in ask(folder)[2]  # labels are printed there


def test_python_m_predicts_as_ever(testing_bundle: Bundle, folder: Path) -> None:
    words = [str(testing_bundle.path), str(folder / "deep/in.png"), "--json"]
    done = [
        subprocess.run(
            [sys.executable, "-m", *module, *words], capture_output=True, text=True, check=True
        ).stdout
        for module in (["vit_edge"], ["vit_edge", "predict"])
    ]
    assert done[0] == done[1]
    assert json.loads(done[0])["image"] == words[1]


def test_memory_does_not_grow_with_the_number_of_images(
    ask: Ask, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The names alone of 1,200 more images take 1.2 MB."""
    read, rows = Predictor._pixels, list[Any]()

    def pixels(self: Predictor, image: str) -> object:
        if len(rows) == 60:  # what opening a bundle took is past
            tracemalloc.reset_peak()
        # read once: a file's buffer is larger than all that is looked for here
        rows.append(rows[0] if rows else read(self, str(folder / "deep/in.png")))
        return rows[-1]

    monkeypatch.setattr(Predictor, "_pixels", pixels)
    peaks = []
    for count in (100, 1_300):
        listed = io.BytesIO(f"{'long/' * 200}name.png\n".encode() * count)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(listed))
        rows.clear()
        tracemalloc.start()
        assert ask("-", "--embed", "--out", tmp_path / "x.npz")[0] == 0
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 500_000
