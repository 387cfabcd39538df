"""A float32 bundle is lowered without its checkpoint: as an export from the checkpoint would be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vit_edge
from tests.support.bundles import TESTING, Exporter
from vit_edge import Bundle, InputError, IntegrityError, Predictor, UsageError, cli
from vit_edge.backends import ort
from vit_edge.quantize.calibration import CalibrationRequest

requires = ("torch", "onnx", "onnxruntime")

NOISE = CalibrationRequest("random", 8)
QUICK = {
    "rounding": "nearest", "float_budget": 0, "insert_scales": False, "bias_correction": False,
}  # fmt: skip


def quick(precision: str = "int8", target: str = "cpu") -> Any:
    """The recipe of a precision, without what takes longest."""
    from vit_edge.export.recipe import find_recipe

    recipe = find_recipe(f"{target}-{precision}", precision)
    assignments = [f"{name}={str(value).lower()}" for name, value in QUICK.items()]
    return recipe.changed(quantization=assignments, parity_target="sqnr_centred_db=1")


def test_it_is_what_an_export_from_the_checkpoint_makes(
    testing_bundle: Bundle, export_once: Exporter, tmp_path: Path
) -> None:
    made = vit_edge.quantize(testing_bundle, "bf16", out=tmp_path / "out")
    exported = export_once(*TESTING, "--precision", "bf16")
    assert made.model_path.read_bytes() == exported.model_path.read_bytes()
    assert made.manifest.quantization == exported.manifest.quantization
    assert made.manifest.max_batch == exported.manifest.max_batch == 4
    assert made.manifest.checkpoint == testing_bundle.manifest.checkpoint
    assert made.manifest.producer["float32_model"] == testing_bundle.model_sha256
    assert made.parity()["passed"] is True


def test_int8_is_calibrated_proven_and_predicts(testing_bundle: Bundle, tmp_path: Path) -> None:
    made = vit_edge.quantize(
        testing_bundle.path, calibration=NOISE, recipe=quick(), out=tmp_path / "int8"
    )
    assert made.manifest.precision == "int8"
    assert made.parity()["passed"] is True
    with Predictor(made) as predictor:
        assert predictor.predict(np.zeros((40, 40, 3), np.uint8)).label in made.labels


def test_a_reference_that_answers_nan_is_no_reference(
    testing_bundle: Bundle, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of one's own are answered by the float32 graph, which may overflow on them."""
    closed = []

    class Overflowing(ort.OrtBackend):
        def run(self, pixels: Any) -> dict[str, Any]:
            return {name: values * np.inf for name, values in super().run(pixels).items()}

        def close(self) -> None:
            closed.append(self)
            super().close()

    monkeypatch.setattr(ort, "OrtBackend", Overflowing)
    with pytest.raises(InputError, match=r"seeded:0: its \w+ hold NaN or Inf for an image"):
        vit_edge.quantize(
            testing_bundle, "bf16", golden_images=photos[0].parent, out=tmp_path / "out"
        )
    assert len(closed) == 1


def test_images_of_ones_own_are_answered_by_the_float32_graph(
    testing_bundle: Bundle, tmp_path: Path
) -> None:
    folder = tmp_path / "golden"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(5):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(folder / f"{index}.png")
    made = vit_edge.quantize(
        testing_bundle, "bf16", golden_images=folder, out=tmp_path / "out", max_batch=2
    )
    assert made.manifest.max_batch == 2
    assert made.manifest.reference_dtype == "float32"
    assert "onnxruntime" in made.manifest.producer["reference"]
    assert {row["images"] for row in made.parity()["comparisons"]} <= {2, 3, 4, 5}


def test_the_command_does_the_same(
    testing_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = [str(testing_bundle.path), "--precision", "bf16", "-o", str(out), "--json"]
    assert cli.main(["quantize", *arguments]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["bundle"] == str(out)
    assert printed["precision"] == "bf16"
    assert cli.main(["quantize", *arguments]) == 2
    assert "exists; --force replaces it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "fp32"}, "precision: the bundle is fp32 already"),
        ({"precision": "int9"}, "no precision 'int9'"),
        ({"precision": "int8"}, "int8 needs to see what the model sees"),
        ({"precision": "fp16", "recipe": "gpu-fp16"}, r'of opset 20.*recipe="gpu-fp32"'),
        ({"precision": "bf16", "max_batch": 0}, None),
    ],
)
def test_what_cannot_be_made_is_refused(
    testing_bundle: Bundle, tmp_path: Path, arguments: dict[str, Any], message: str | None
) -> None:
    if message is None:
        made = vit_edge.quantize(testing_bundle, **arguments, out=tmp_path / "out")
        assert made.manifest.max_batch == testing_bundle.manifest.max_batch
        return
    with pytest.raises(UsageError, match=message):
        vit_edge.quantize(testing_bundle, **arguments, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_was_lowered_is_not_lowered_again(export_once: Exporter, tmp_path: Path) -> None:
    lowered = export_once(*TESTING, "--precision", "bf16")
    with pytest.raises(UsageError, match="its precision is bf16"):
        vit_edge.quantize(lowered, "int4", out=tmp_path / "out")


def test_a_graph_that_takes_uint8_is_not_lowered(export_once: Exporter, tmp_path: Path) -> None:
    given = export_once(*TESTING, "--input", "uint8")
    with pytest.raises(UsageError, match="its input is uint8.*--input float32"):
        vit_edge.quantize(given, "int4", out=tmp_path / "out")


def test_a_golden_image_is_not_calibrated_on(
    testing_bundle: Bundle, photos: list[Path], tmp_path: Path
) -> None:
    folder = tmp_path / "seen"
    folder.mkdir()
    for photo in photos[:3]:
        shutil.copy(photo, folder)
    with pytest.raises(UsageError, match=r"\.jpg is a golden image of the bundle"):
        vit_edge.quantize(testing_bundle, calibration=folder, recipe=quick(), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    rng = np.random.default_rng(0)
    for photo in photos[:3]:  # the names alone
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(folder / photo.name)
    made = vit_edge.quantize(
        testing_bundle, calibration=folder, recipe=quick(), out=tmp_path / "out"
    )
    assert made.manifest.precision == "int8"


@pytest.mark.slow
def test_labels_are_for_the_gate_and_not_for_the_search(
    labelled_noise: Path, photos: list[Path], export_once: Exporter, tmp_path: Path
) -> None:
    made = vit_edge.quantize(
        export_once("--checkpoint", "embedded"),
        calibration=photos[0].parent,
        golden_images=labelled_noise,
        recipe=quick().changed(parity_target="accuracy_drop=0.9"),
        out=tmp_path / "out",
    )
    assert made.parity()["target"] == {"accuracy_drop": 0.9}
    assert made.parity()["comparisons"][0]["labelled"] == 4


def test_of_several_golden_images_of_one_name_none_is_calibrated_on(
    labelled_noise: Path, photos: list[Path], export_once: Exporter, tmp_path: Path
) -> None:
    folder = tmp_path / "calibration"
    shutil.copytree(labelled_noise / "dog", folder)  # cat/ has files of the same names
    draft: Any = export_once("--checkpoint", "embedded", "--images", str(labelled_noise))
    with pytest.raises(UsageError, match=r"\.png is a golden image of the bundle"):
        vit_edge.quantize(draft, calibration=folder, recipe=quick(), out=tmp_path / "out")


def test_a_bundle_that_was_tampered_with_is_not_read(bundle: Bundle, tmp_path: Path) -> None:
    content = bytearray(bundle.model_path.read_bytes())
    content[len(content) // 2] ^= 1
    bundle.model_path.write_bytes(content)
    with pytest.raises(IntegrityError):
        vit_edge.quantize(bundle, "bf16", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
