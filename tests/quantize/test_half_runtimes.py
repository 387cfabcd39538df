"""The half-precision files in the runtimes they are for, as far as a CPU can tell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir
import pytest

from tests.quantize.openvino_bfloat16 import bfloat16_answers
from tests.quantize.test_half import with_int8_linears
from tests.quantize.workbench import answers, calibration, compared, quantized
from tests.support import tensorrt_rtx_build
from vit_edge.bundle import Bundle
from vit_edge.errors import BackendError
from vit_edge.graphs.write import write_model
from vit_edge.quantize.formats.half import FLOAT16, convert

requires = (
    "torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "tqdm", "transformers",
    "tensorrt_rtx", "openvino",
)  # fmt: skip


def written(model: onnx_ir.Model, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    write_model(model, folder)
    return folder / "model.onnx"


@pytest.mark.parametrize(("precision", "trt_name"), [("fp16", "HALF"), ("bf16", "BF16")])
def test_tensorrt_builds_the_file_in_the_types_it_says(
    precision: str, trt_name: str, decomposed_bundle: Bundle, tmp_path: Path
) -> None:
    result = quantized(precision, decomposed_bundle, tmp_path, {}, target="gpu")
    path = written(result.model, tmp_path / "model")
    for build in tensorrt_rtx_build.builds(path):
        assert build.errors == ()
        assert build.plan_bytes > 0
        assert build.layers[f"MATRIX_MULTIPLY {trt_name}"] > 8
        assert build.layers["MATRIX_MULTIPLY FLOAT"] == 1  # the head
        assert build.layers["NORMALIZATION FLOAT"] == 5
        assert build.layers["SOFTMAX FLOAT"] == 2


def test_tensorrt_builds_int8_linears_with_float16_around(
    decomposed_bundle: Bundle, tmp_path: Path
) -> None:
    model = with_int8_linears(decomposed_bundle, rounded=True)
    convert(model, FLOAT16)
    for build in tensorrt_rtx_build.builds(written(model, tmp_path / "model"), ["SM86"]):
        assert build.errors == ()
        assert build.layers["DEQUANTIZE HALF"] == 2 * 8


def test_tensorrt_says_why_it_refuses_a_file(tmp_path: Path) -> None:
    broken = tmp_path / "model.onnx"
    broken.write_bytes(b"no model")
    (build,) = tensorrt_rtx_build.builds(broken, ["SM86"])
    assert "Failed to parse" in build.errors[0]
    assert build.plan_bytes == 0


@pytest.mark.parametrize("form", ["testing_bundle", "decomposed_bundle"])
def test_openvino_agrees_with_the_simulation_of_bfloat16(
    form: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    bundle: Bundle = request.getfixturevalue(form)
    images = calibration(16, 1, bundle.manifest.preprocessing)
    result = quantized("bf16", bundle, tmp_path, {})
    path = written(result.model, tmp_path / "model")
    try:
        found = np.concatenate(list(bfloat16_answers(path, images.batches(4), "logits")))
    except BackendError as error:
        pytest.skip(str(error))
    assert result.simulation is not None
    exact = answers(onnx_ir.load(bundle.model_path), images, tmp_path / "exact")
    shown = answers(result.simulation, images, tmp_path / "simulated")
    # measured on the trained checkpoints: within 3 dB of each other
    measured, simulated = (compared(x, exact)["sqnr_db"] for x in (found, shown))
    assert measured > simulated - 6


def test_openvino_does_not_pass_float32_off_as_bfloat16(
    testing_bundle: Bundle, tmp_path: Path
) -> None:
    images = calibration(1, 1, testing_bundle.manifest.preprocessing)
    path = written(onnx_ir.load(testing_bundle.model_path), tmp_path / "model")
    with pytest.raises(BackendError, match="not bf16"):
        next(bfloat16_answers(path, images.batches(1), "logits"))
