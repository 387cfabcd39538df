"""A recorded golden file serves every precision of the model, and only a sound one is written."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from vit_edge.bundle import Bundle
from vit_edge.bundle.golden import Golden, write_golden
from vit_edge.errors import BundleError, PredictionError
from vit_edge.images.folders import Unlabelled
from vit_edge.parity import record
from vit_edge.parity.__main__ import main as compare

requires = ("torch", "onnxruntime")

IMAGES = 11


@pytest.fixture(scope="module")
def photos_of_noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random images, and two that cannot be read."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for index in range(IMAGES):
        path = folder / str(index % 3) / f"{index:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (70, 80, 3), np.uint8)).save(path)
    (folder / "0" / "empty.png").write_bytes(b"")
    (folder / "1" / "page.jpg").write_text("<html>")
    return folder


def recorded(bundle: Bundle, images: Path, out: Path, *options: str) -> Path:
    arguments = [str(bundle.path), "--images", str(images), "--out", str(out), *options]
    assert record.main(arguments) == 0
    return out


@pytest.mark.parametrize("backend", ["eager", "ort"])
def test_a_recorded_file_is_accepted_and_says_who_answered(
    testing_bundle: Bundle, photos_of_noise: Path, tmp_path: Path, backend: str
) -> None:
    out = recorded(testing_bundle, photos_of_noise, tmp_path / "g.npz", "--backend", backend)
    with Golden(out) as golden:
        assert len(golden) == IMAGES
        assert golden.reference_dtype.startswith("float64" if backend == "eager" else "fp32 on")
        assert len(golden.probes()) > 5
        assert golden.labels([0]) is None
    assert compare([str(testing_bundle.path), "--golden", str(out)]) == 0


def test_the_same_images_give_the_same_bytes(
    testing_bundle: Bundle, photos_of_noise: Path, tmp_path: Path
) -> None:
    first = recorded(testing_bundle, photos_of_noise, tmp_path / "a.npz")
    assert recorded(testing_bundle, photos_of_noise, tmp_path / "b.npz").read_bytes() == (
        first.read_bytes()
    )


def test_a_file_recorded_with_another_model_fails_parity(
    testing_bundle: Bundle, photos_of_noise: Path, tmp_path: Path
) -> None:
    out = recorded(testing_bundle, photos_of_noise, tmp_path / "g.npz")
    with Golden(out) as golden:
        everything = range(len(golden))
        answers = golden.answers(everything)
        answers["logits"] = answers["logits"] + np.float32(0.01)
        write_golden(
            tmp_path / "drifted.npz",
            probes=golden.probes(),
            names=golden.names,
            images=golden.images(everything),
            answers=answers,
            reference_dtype="float64",
        )
    assert compare([str(testing_bundle.path), "--golden", str(tmp_path / "drifted.npz")]) == 4


def test_what_cannot_be_read_is_counted_and_named(
    testing_bundle: Bundle,
    photos_of_noise: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recorded(testing_bundle, photos_of_noise, tmp_path / "g.npz", "--json")
    written = json.loads(capsys.readouterr().out)
    assert (written["images"], written["unreadable"]["count"]) == (IMAGES, 2)
    assert "empty.png" in written["unreadable"]["first"][0]


def test_a_limit_spreads_over_the_folder_and_classes_come_along(
    testing_bundle: Bundle, photos_of_noise: Path, tmp_path: Path
) -> None:
    options = ("--limit", "5", "--labels-from", "folders")
    with Golden(recorded(testing_bundle, photos_of_noise, tmp_path / "g.npz", *options)) as golden:
        labels = golden.labels(range(len(golden)))
        assert labels is not None
        assert [int(name[0]) for name in golden.names] == labels.tolist()
        assert set(labels.tolist()) == {0, 1, 2}
        assert len(golden) <= 5


def test_an_int8_bundle_is_no_reference(testing_bundle: Bundle, tmp_path: Path) -> None:
    manifest = dataclasses.replace(testing_bundle.manifest, precision="int8")
    quantized = dataclasses.replace(testing_bundle, manifest=manifest)
    with pytest.raises(BundleError, match="must be fp32, this is int8; record with the fp32"):
        record.record(quantized, Unlabelled(tmp_path / ".."), tmp_path / "g.npz")
    assert not (tmp_path / "g.npz").exists()


def test_an_existing_file_is_replaced_only_by_force(
    testing_bundle: Bundle, photos_of_noise: Path, tmp_path: Path
) -> None:
    out = tmp_path / "g.npz"
    out.write_text("precious")
    arguments = [str(testing_bundle.path), "--images", str(photos_of_noise), "--out", str(out)]
    assert record.main(arguments) == 2
    assert out.read_text() == "precious"
    assert record.main([*arguments, "--force"]) == 0


@pytest.mark.parametrize(
    ("options", "code"),
    [(["--limit", "0"], 2), (["--backend", "nonesuch"], 2), (["--labels-from", "nonesuch"], 2)],
)
def test_a_wrong_option_is_a_usage_error(
    testing_bundle: Bundle, photos_of_noise: Path, tmp_path: Path, options: list[str], code: int
) -> None:
    arguments = [str(testing_bundle.path), "--images", str(photos_of_noise)]
    assert record.main([*arguments, "--out", str(tmp_path / "g.npz"), *options]) == code
    assert list(tmp_path.iterdir()) == []


def test_only_unreadable_images_write_nothing(testing_bundle: Bundle, tmp_path: Path) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    out.mkdir()
    images.mkdir()
    (images / "a.png").write_bytes(b"")
    arguments = [str(testing_bundle.path), "--images", str(images), "--out", str(out / "g.npz")]
    assert record.main(arguments) == 3
    assert list(out.iterdir()) == []


def test_another_preprocessing_than_the_bundles_is_not_recorded(
    bundle: Bundle, photos_of_noise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "check_probes", lambda probes, spec: ["probe x: 9 levels"])
    out = tmp_path / "g.npz"
    arguments = [str(bundle.path), "--images", str(photos_of_noise), "--out", str(out)]
    assert record.main(arguments) == 4
    assert not out.exists()


def test_a_reference_that_answers_nan_is_refused(
    testing_bundle: Bundle, photos_of_noise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        facts: Mapping[str, str] = {"backend": "ort", "runtime": "broken"}

        def run(self, pixels: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
            return {"logits": np.full((len(pixels), 10), np.nan, np.float32)}

        def close(self) -> None: ...

    monkeypatch.setattr(record, "_load", lambda name, bundle: Broken())
    with pytest.raises(PredictionError, match="logits hold NaN"):
        record.record(testing_bundle, Unlabelled(photos_of_noise), tmp_path / "g.npz")
    assert list(tmp_path.iterdir()) == []


def test_the_verb_is_reached_through_parity(
    testing_bundle: Bundle, photos_of_noise: Path, tmp_path: Path
) -> None:
    shutil.copytree(photos_of_noise / "2", tmp_path / "images")
    out = tmp_path / "g.npz"
    arguments = [str(testing_bundle.path), "--images", str(tmp_path / "images")]
    assert compare(["record", *arguments, "--out", str(out)]) == 0
    assert out.exists()
