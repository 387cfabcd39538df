"""Evaluating a bundle: the known accuracy, interrupted or not, whatever lies among the images."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vit_edge.bundle import Bundle
from vit_edge.evaluate.__main__ import main
from vit_edge.predictor import Predictor

requires = ("onnxruntime",)

IMAGES = 24


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, testing_bundle: Bundle) -> Path:
    """Random images in folders named by the numbers of classes."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for index in range(IMAGES):
        path = folder / str(index % len(testing_bundle.labels)) / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(path)
    return folder


def evaluated(
    capsys: pytest.CaptureFixture[str], bundle: Bundle, data: Path, *options: str
) -> dict[str, Any]:
    code = main([str(bundle.path), "--data", str(data), "--json", *options])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    found: dict[str, Any] = json.loads(printed.out)
    del found["created"]
    return found


def refused(capsys: pytest.CaptureFixture[str], code: int, *arguments: str) -> str:
    assert main(list(arguments)) == code
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return printed.err


def test_accuracy_is_what_the_predictor_says_image_by_image(
    capsys: pytest.CaptureFixture[str], testing_bundle: Bundle, data: Path
) -> None:
    found = evaluated(capsys, testing_bundle, data)
    right = in_top = 0
    with Predictor(testing_bundle) as predictor:
        for file in data.rglob("*.png"):
            top = [ranked.index for ranked in predictor.predict(file).top]
            right += top[0] == int(file.parent.name)
            in_top += int(file.parent.name) in top
    assert found["images"] == IMAGES
    assert (found["top1"]["count"], found["top5"]["count"]) == (right, in_top)


def answers_in(journal: Path) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(journal)) as database:
        return database.execute("SELECT * FROM answers ORDER BY role, image").fetchall()


def test_a_run_cut_short_anywhere_ends_with_the_same_result(
    capsys: pytest.CaptureFixture[str], testing_bundle: Bundle, data: Path, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    options = ("--resume", str(journal), "--against", str(testing_bundle.path))
    expected = evaluated(capsys, testing_bundle, data, *options)
    whole = answers_in(journal)
    assert len(whole) == 2 * IMAGES
    for kept in np.random.default_rng(1).integers(0, len(whole), 4).tolist():
        with contextlib.closing(sqlite3.connect(journal)) as database, database:
            gone = whole[kept:]
            database.executemany(
                "DELETE FROM answers WHERE role = ? AND image = ?", [row[:2] for row in gone]
            )
        assert answers_in(journal) == whole[:kept]
        assert evaluated(capsys, testing_bundle, data, *options) == expected
        assert answers_in(journal) == whole


def test_a_run_killed_at_any_moment_goes_on(
    capsys: pytest.CaptureFixture[str], testing_bundle: Bundle, data: Path, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    options = ("--data", str(data), "--resume", str(journal), "--batch", "1", "--json")
    command = [sys.executable, "-m", "vit_edge.evaluate", str(testing_bundle.path), *options]
    before: set[tuple[Any, ...]] = set()
    for wait_s in (0.0, 0.002, 0.02):
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as child:
            while child.poll() is None and not (tmp_path / "journal-wal").exists():
                time.sleep(0.001)
            time.sleep(wait_s)
            child.kill()
        with contextlib.suppress(sqlite3.OperationalError):  # killed before there were tables
            after = set(answers_in(journal))
            assert before <= after
            before = after
    plain = evaluated(capsys, testing_bundle, data, "--batch", "1")
    resumed = evaluated(capsys, testing_bundle, data, "--batch", "1", "--resume", str(journal))
    assert resumed == plain
    assert len(answers_in(journal)) == IMAGES


def test_what_the_journal_holds_is_not_asked_again(
    capsys: pytest.CaptureFixture[str],
    testing_bundle: Bundle,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    options = ("--resume", str(tmp_path / "journal"))
    evaluated(capsys, testing_bundle, copy, *options)
    changed = next(copy.rglob("*.png"))
    changed.write_bytes(changed.read_bytes() + b"\0")
    asked = []
    stream = Predictor.stream

    def watched(self: Predictor, images: Any, *args: Any, **kwargs: Any) -> Any:
        def noted() -> Any:
            for image in images:
                asked.append(image)
                yield image

        return stream(self, noted(), *args, **kwargs)

    monkeypatch.setattr(Predictor, "stream", watched)
    evaluated(capsys, testing_bundle, copy, *options)
    assert asked == [changed]


def test_the_journal_of_another_batch_size_is_refused(
    capsys: pytest.CaptureFixture[str], testing_bundle: Bundle, data: Path, tmp_path: Path
) -> None:
    arguments = [str(testing_bundle.path), "--data", str(data), "--resume", str(tmp_path / "j")]
    assert main(arguments) == 0
    assert "batch_size: None there, 2 now" in refused(capsys, 3, *arguments, "--batch", "2")


def test_a_bundle_against_itself_agrees_everywhere(
    capsys: pytest.CaptureFixture[str], testing_bundle: Bundle, data: Path
) -> None:
    found = evaluated(capsys, testing_bundle, data, "--against", str(testing_bundle.path))
    against = found["against"]
    assert against["agreement"]["rate"] == 1.0
    assert (against["top1_drop"], against["mcnemar_p_value"]) == (0.0, 1.0)
    assert against["top1"] == found["top1"]


@pytest.mark.parametrize(("strict", "code"), [([], 0), (["--strict"], 4)])
def test_unreadable_images_are_counted_and_named_and_fatal_only_if_strict(
    capsys: pytest.CaptureFixture[str],
    testing_bundle: Bundle,
    data: Path,
    tmp_path: Path,
    strict: list[str],
    code: int,
) -> None:
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    (copy / "3" / "page.jpg").write_text("<html>")
    (copy / "3" / "gone.png").symlink_to("nowhere")
    assert main([str(testing_bundle.path), "--data", str(copy), *strict]) == code
    printed = capsys.readouterr().out
    assert f"images     {IMAGES}" in printed
    assert "NOT READ   2 images" in printed
    assert "page.jpg" in printed
    assert "gone.png" in printed


def test_only_unreadable_images_are_an_error(
    capsys: pytest.CaptureFixture[str], testing_bundle: Bundle, tmp_path: Path
) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "a.png").write_bytes(b"")
    message = refused(capsys, 3, str(testing_bundle.path), "--data", str(tmp_path))
    assert "none of its images could be read" in message
    assert "a.png" in message


def test_a_csv_file_overrules_the_folders(
    capsys: pytest.CaptureFixture[str], testing_bundle: Bundle, data: Path, tmp_path: Path
) -> None:
    table = tmp_path / "labels.csv"
    with Predictor(testing_bundle) as predictor:
        first = next(data.rglob("*.png"))
        table.write_text(f"{first.relative_to(data)},{predictor.predict(first).index}\n")
    found = evaluated(capsys, testing_bundle, data, "--labels-from", str(table))
    assert (found["images"], found["top1"]["rate"]) == (1, 1.0)


def test_folders_of_no_class_are_refused(
    capsys: pytest.CaptureFixture[str], testing_bundle: Bundle, data: Path, tmp_path: Path
) -> None:
    shutil.copytree(data / "1", tmp_path / "unicorn")
    message = refused(capsys, 3, str(testing_bundle.path), "--data", str(tmp_path))
    assert "'unicorn' is no label" in message
    assert "--labels-from" in message


def test_bundles_of_different_labels_cannot_be_compared(
    capsys: pytest.CaptureFixture[str], testing_bundle: Bundle, bundle: Bundle, data: Path
) -> None:
    labels = (bundle.path / "labels.txt").read_text("utf-8")
    (bundle.path / "labels.txt").write_text("?" + labels[1:], "utf-8")
    arguments = [str(testing_bundle.path), "--data", str(data)]
    message = refused(capsys, 2, *arguments, "--against", str(bundle.path))
    assert "different labels" in message


@pytest.mark.slow
def test_vit_cifar10_has_its_known_accuracy(
    capsys: pytest.CaptureFixture[str], embedded_bundle: Bundle, shared_data: Path
) -> None:
    folder = shared_data / "images" / "cifar10" / "eval"
    found = evaluated(capsys, embedded_bundle, folder)
    assert found["images"] == 2000
    assert found["top1"]["count"] == 1323  # 66.15 %, as measured with PyTorch
    low, high = found["top1"]["interval"]
    assert 0.64 < low < 0.6615 < high < 0.69
    assert found["top5"]["rate"] > 0.9
    assert found["worst_classes"][0]["recall"]["images"] == 200
