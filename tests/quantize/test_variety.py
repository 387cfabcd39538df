"""Calibration on images that are all alike: frames of one camera, crops of one picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir
import pytest
from PIL import Image

from tests.quantize.workbench import PHOTOS, answers, calibration, compared, no_progress, task
from vit_edge import quantize
from vit_edge.bundle import Bundle
from vit_edge.bundle.manifest import Preprocessing
from vit_edge.graphs.workspace import Workspace
from vit_edge.quantize.calibration import (
    RANDOM,
    Calibration,
    CalibrationRequest,
    calibration_files,
    load_calibration,
)
from vit_edge.quantize.linears import block_linears
from vit_edge.quantize.rounding.samples import collect_samples
from vit_edge.quantize.variety import COPIES, altered

requires = ("torch", "onnx", "onnxscript", "onnxruntime")


def of_one_picture(count: int, spec: Preprocessing, scratch: Path) -> Calibration:
    """Crops that are shifted by a few pixels each."""
    folder = scratch / "crops"
    folder.mkdir()
    with Image.open(next(path for path in PHOTOS if path.name.startswith("cat"))) as opened:
        photo = opened.convert("RGB")
    side = min(photo.size) - 16
    for index in range(count):
        left, top = index % 16, index // 16
        photo.crop((left, top, left + side, top + side)).save(folder / f"{index}.png")
    return load_calibration(calibration_files(CalibrationRequest(str(folder))), spec, scratch)


def test_copies_are_other_images_and_the_same_each_time() -> None:
    images = np.random.default_rng(0).integers(60, 190, (5, 8, 8, 3)).astype(np.uint8)
    copies = altered(images)
    assert copies.shape == (COPIES, 8, 8, 3)
    assert copies.dtype == np.uint8
    assert len(np.unique(copies.reshape(COPIES, -1), axis=0)) == COPIES
    np.testing.assert_array_equal(copies, altered(images))
    means = copies.mean(axis=(1, 2, 3))
    assert means.min() < 0.6 * images.mean()
    assert means.max() > 1.4 * images.mean()


def test_one_image_gives_as_many_copies_as_many_do() -> None:
    assert altered(np.full((1, 4, 4, 3), 100, np.uint8)).shape[0] == COPIES
    assert altered(np.full((300, 4, 4, 3), 100, np.uint8)).shape[0] == COPIES


def test_copies_widen_what_is_measured_not_what_is_judged(
    embedded_bundle: Bundle, tmp_path: Path
) -> None:
    images = calibration(6, 0, embedded_bundle.manifest.preprocessing)
    wider = images.varied()
    assert (len(images), len(wider)) == (6, 6 + COPIES)
    assert images.as_dict()["altered_copies"] == COPIES
    assert {image.tobytes() for image in images.resized} < {i.tobytes() for i in wider.resized}
    noise = load_calibration(
        calibration_files(CalibrationRequest(RANDOM, 3)), images.preprocessing, tmp_path
    )
    assert noise.varied() is noise
    assert noise.as_dict()["altered_copies"] == 0


def test_ranges_of_one_picture_reach_nearly_as_far_as_others_do(
    embedded_bundle: Bundle, tmp_path: Path
) -> None:
    """Without copies, a fifth of all values of other photos lie outside their channel's range."""
    spec = embedded_bundle.manifest.preprocessing
    workspace = Workspace(tmp_path / "run")
    model = workspace.settle(onnx_ir.load(embedded_bundle.model_path))
    read = block_linears(model)[:8]
    alike = of_one_picture(16, spec, tmp_path)
    samples = collect_samples(workspace, model, read, alike.varied(), no_progress)
    others = calibration(32, 5, spec)
    outside = 0.0
    for observed in workspace.observe(model, [r.input for r in read], [others.pixels(0, 32)]):
        for linear in read:
            x, sample = observed[str(linear.input.name)], samples[linear.input]
            outside += float(((x < sample.low) | (x > sample.high)).mean()) / len(read)
    assert outside < 0.02


@pytest.mark.slow
def test_int8_survives_calibration_on_one_picture(embedded_bundle: Bundle, tmp_path: Path) -> None:
    """Scales that were fitted to crops of one picture alone kept 4 to 8 dB."""
    spec = embedded_bundle.manifest.preprocessing
    alike = of_one_picture(15, spec, tmp_path)
    work = task(onnx_ir.load(embedded_bundle.model_path), alike, tmp_path)
    settings = quantize.settings_from_table(
        "int8", {"sensitivity_images": 1, "float_budget": 0}, "test"
    )
    made = quantize.module("int8").quantize(work, settings)
    judged = calibration(128, 7, spec)
    expected = answers(onnx_ir.load(embedded_bundle.model_path), judged, tmp_path / "float")
    summary = compared(answers(made.model, judged, tmp_path / "low"), expected)
    assert summary["sqnr_centred_db"] > 24
    assert summary["top1_agreement"] > 0.95
