"""`vit-edge probes`: everything that a test in another language needs, without NumPy's formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vit_edge import BundleError, IntegrityError, ParityError, Predictor, UsageError, cli, probes
from vit_edge.bundle import Bundle
from vit_edge.bundle.golden import Golden
from vit_edge.images.load import load_image

requires = ("onnxruntime",)


@pytest.fixture(scope="module")
def folder(embedded_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return probes(embedded_bundle, tmp_path_factory.mktemp("probes") / "plain").folder


@pytest.fixture(scope="module")
def index(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "probes.json").read_text("utf-8"))
    return found


def test_pictures_and_bytes_say_the_same(folder: Path, index: dict[str, Any]) -> None:
    names = [entry["name"] for entry in index["preprocessing"]]
    assert {"exif-rotated.jpg", "rgba.png", "cmyk.jpg", "pattern-large.png"} <= set(names)
    for entry in index["preprocessing"]:
        rgb = np.frombuffer((folder / entry["rgb"]).read_bytes(), np.uint8)
        rgb = rgb.reshape(entry["height"], entry["width"], 3)
        np.testing.assert_array_equal(np.asarray(Image.open(folder / entry["png"])), rgb)
        np.testing.assert_array_equal(np.asarray(load_image(folder / entry["file"])), rgb)


def test_pixels_are_what_predictor_makes_of_the_files(
    embedded_bundle: Bundle, folder: Path, index: dict[str, Any]
) -> None:
    from vit_edge.images.preprocess import preprocess

    for entry in index["preprocessing"]:
        pixels = np.fromfile(folder / entry["pixels"], "<f4").reshape(index["input"]["shape"])
        expected = preprocess(folder / entry["file"], embedded_bundle.manifest.preprocessing)
        np.testing.assert_array_equal(pixels[0], expected)
        assert 0 < entry["tolerance"] < 0.001  # of a level, 0.008
        extra = 2 if entry["name"].endswith("jpg") else 0
        assert entry["file_tolerance"] == pytest.approx(entry["tolerance"] + extra / 127.5)


def test_answers_are_the_references(
    embedded_bundle: Bundle, folder: Path, index: dict[str, Any]
) -> None:
    (logits,) = (output for output in index["outputs"] if output["name"] == "logits")
    assert logits["least_sqnr_centred_db"] == 70
    with Golden(embedded_bundle.golden_path) as golden, Predictor(embedded_bundle) as predictor:
        assert len(index["answers"]) == len(golden)
        for position, entry in enumerate(index["answers"]):
            stored = np.fromfile(folder / entry["outputs"]["logits"], "<f4")
            np.testing.assert_array_equal(stored, golden.answers([position])["logits"][0])
            assert entry["top1"] == stored.argmax()
            best = predictor.predict(folder / entry["png"]).label
            assert best == embedded_bundle.labels[entry["top1"]]


def test_a_filter_that_leaves_pixels_out_is_seen_on_a_pattern(
    embedded_bundle: Bundle, folder: Path, index: dict[str, Any]
) -> None:
    entry = next(e for e in index["preprocessing"] if e["name"] == "pattern-large.png")
    height, width = embedded_bundle.manifest.preprocessing.resize_hw
    assert entry["height"] > 2 * height
    assert entry["width"] > 3 * width
    pixels = np.fromfile(folder / entry["pixels"], "<f4").reshape(3, height, width)
    reduced = Image.open(folder / entry["png"]).resize((width, height), Image.Resampling.NEAREST)
    aliased = np.asarray(reduced).transpose(2, 0, 1) / 127.5 - 1
    assert np.abs(aliased - pixels).mean() > 0.1


def test_a_folder_is_replaced_if_asked_for_and_if_it_holds_probes(
    embedded_bundle: Bundle, tmp_path: Path
) -> None:
    out = tmp_path / "plain"
    probes(embedded_bundle, out)
    with pytest.raises(UsageError, match="force"):
        probes(embedded_bundle, out)
    assert probes(embedded_bundle, out, force=True).folder == out
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(UsageError, match="holds no probes"):
        probes(embedded_bundle, tmp_path / "mine", force=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"


def test_nothing_appears_where_this_machine_makes_other_pixels(
    embedded_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vit_edge.probes.check_probes", lambda *_: ["probe plain.png: 9 levels"])
    with pytest.raises(ParityError, match="9 levels"):
        probes(embedded_bundle, tmp_path / "plain")
    assert not list(tmp_path.iterdir())


def test_a_changed_bundle_gives_no_probes(bundle: Bundle, tmp_path: Path) -> None:
    golden = bundle.golden_path.read_bytes()
    bundle.golden_path.write_bytes(golden[:-1] + bytes([golden[-1] ^ 1]))
    with pytest.raises(IntegrityError, match=r"golden\.npz"):
        probes(bundle.path, tmp_path / "plain")
    with pytest.raises(BundleError):
        probes(tmp_path / "nowhere", tmp_path / "plain")


def test_the_command_says_what_it_wrote(
    embedded_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "plain"
    assert cli.main(["probes", str(embedded_bundle.path), "--out", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    files = [file for file in out.rglob("*") if file.is_file()]
    assert (said["files"], said["bytes"]) == (len(files), sum(f.stat().st_size for f in files))
    assert cli.main(["probes", str(embedded_bundle.path), "--out", str(out)]) == 2
