"""INT8 with ranges found at every run: fused, smoothed, and dependent on the batch as it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest

from tests.quantize.workbench import (
    answers,
    calibration,
    compared,
    no_progress,
    optimized,
    outside,
    quantized,
    task,
)
from vit_edge.bundle import Bundle
from vit_edge.errors import UsageError
from vit_edge.graphs.workspace import Workspace
from vit_edge.graphs.write import write_model
from vit_edge.quantize.linears import all_linears, block_linears, constant
from vit_edge.quantize.precisions import int8_dynamic
from vit_edge.quantize.rescale.folding import groups
from vit_edge.quantize.rounding.moments import collect_moments
from vit_edge.quantize.rounding.weights import output_error

requires = ("torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime")


def with_outliers(model: onnx_ir.Model) -> onnx_ir.Model:
    """The same answers, but two channels in front of every Linear are 30 times what they were."""
    rng = np.random.default_rng(0)
    for group in groups(model, block_linears(model)):
        channels = len(group.linears[0].matrix())
        scale = np.ones(channels)
        scale[rng.permutation(channels)[:2]] = 1 / 30
        group.fold(scale, np.zeros(channels))
    return model


def test_onnxruntime_makes_one_integer_product_of_every_linear(
    testing_bundle: Bundle, tmp_path: Path
) -> None:
    linears = len(block_linears(onnx_ir.load(testing_bundle.model_path)))
    model = quantized("int8-dynamic", testing_bundle, tmp_path, {}).model
    assert [linear.name for linear in all_linears(model)] == ["readout.head"]
    found = optimized(model, tmp_path / "o")
    assert found["DynamicQuantizeMatMul"] == linears
    assert found["DynamicQuantizeLinear"] == found["MatMulInteger"] == found["Cast"] == 0


def test_only_standard_operators_are_in_the_file(testing_bundle: Bundle, tmp_path: Path) -> None:
    model = quantized("int8-dynamic", testing_bundle, tmp_path, {}).model
    assert {node.domain for node in model.graph} == {""}
    write_model(model, tmp_path)
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)


def test_names_shapes_and_metadata_stay(testing_bundle: Bundle, tmp_path: Path) -> None:
    before = onnx_ir.load(testing_bundle.model_path)
    after = quantized("int8-dynamic", testing_bundle, tmp_path, {}).model
    assert outside(after) == outside(before)


def test_images_are_not_needed(testing_bundle: Bundle, tmp_path: Path) -> None:
    model = onnx_ir.load(testing_bundle.model_path)
    made = int8_dynamic.quantize(task(model, None, tmp_path), int8_dynamic.Settings())
    assert made.record["calibration"] is None
    assert {linear["alpha"] for linear in made.record["linears"]} == {None}
    images = calibration(16, 1, testing_bundle.manifest.preprocessing)
    expected = answers(onnx_ir.load(testing_bundle.model_path), images, tmp_path / "e")
    found = compared(answers(made.model, images, tmp_path / "f"), expected)
    assert found["sqnr_centred_db"] > 20  # found: 29


def test_images_are_what_outliers_need(testing_bundle: Bundle, tmp_path: Path) -> None:
    images = calibration(16, 1, testing_bundle.manifest.preprocessing)
    seen = calibration(32, 0, testing_bundle.manifest.preprocessing)
    expected = answers(
        with_outliers(onnx_ir.load(testing_bundle.model_path)), images, tmp_path / "e"
    )
    noise = {}
    for name, given in (("without", None), ("with", seen)):
        model = with_outliers(onnx_ir.load(testing_bundle.model_path))
        made = int8_dynamic.quantize(task(model, given, tmp_path / name), int8_dynamic.Settings())
        found = answers(made.model, images, tmp_path / name / "f")
        noise[name] = compared(found, expected)["sqnr_centred_db"]
    assert noise["with"] > noise["without"] + 15  # found: 28.0 and 5.7 dB


def test_an_answer_depends_on_the_batch_and_the_record_says_so(
    testing_bundle: Bundle, tmp_path: Path
) -> None:
    made = quantized("int8-dynamic", testing_bundle, tmp_path, {})
    images = calibration(16, 1, testing_bundle.manifest.preprocessing)
    together = answers(made.model, images, tmp_path / "t")
    alone = np.concatenate(
        [answers(made.model, images.first(n + 1), tmp_path / f"a{n}")[n:] for n in range(3)]
    )
    assert np.abs(together[:3] - alone).max() > 1e-5  # static INT8 gives 0
    assert "an image's answer depends on the others" in made.record["batch_dependence"]


def test_weights_are_symmetric_with_one_scale_for_each_output(
    testing_bundle: Bundle, tmp_path: Path
) -> None:
    shapes = {
        str(linear.weight.name): linear.matrix().shape
        for linear in block_linears(onnx_ir.load(testing_bundle.model_path))
    }
    model = quantized("int8-dynamic", testing_bundle, tmp_path, {"reduce_range": True}).model
    for name, (inputs, outputs) in shapes.items():
        weight = model.graph.initializers[f"{name}_quantized"]
        assert constant(weight).shape == (inputs, outputs)
        assert np.abs(constant(weight).astype(int)).max() == 63
        assert constant(model.graph.initializers[f"{name}_scale"]).shape == (outputs,)
        assert not constant(model.graph.initializers[f"{name}_zero_point"]).any()


def test_a_linear_can_be_kept_and_an_unknown_one_is_refused(
    testing_bundle: Bundle, tmp_path: Path
) -> None:
    keep = {"keep_float": ["blocks.0.mlp.fc2"], "smoothing": False}
    made = quantized("int8-dynamic", testing_bundle, tmp_path, keep)
    assert [linear.name for linear in all_linears(made.model)] == [
        "blocks.0.mlp.fc2",
        "readout.head",
    ]
    with pytest.raises(UsageError, match=r"keep_float names fc9, .*blocks\.0\.mlp\.fc1"):
        quantized("int8-dynamic", testing_bundle, tmp_path / "b", {"keep_float": ["fc9"]})


def test_tensorrt_is_no_target(decomposed_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="TensorRT reads neither"):
        quantized("int8-dynamic", decomposed_bundle, tmp_path, {}, target="gpu")


def test_weights_make_up_for_each_other(testing_bundle: Bundle, tmp_path: Path) -> None:
    model = onnx_ir.load(testing_bundle.model_path)
    linears = block_linears(model)
    images = calibration(32, 0, testing_bundle.manifest.preprocessing).varied()
    workspace = Workspace(tmp_path)
    moments = collect_moments(workspace, workspace.settle(model), linears, images, no_progress)
    exact = block_linears(onnx_ir.load(testing_bundle.model_path))
    errors: dict[str, list[float]] = {}
    for rounding in ("nearest", "gptq"):
        chosen = {"rounding": rounding, "smoothing": False}
        made = quantized("int8-dynamic", testing_bundle, tmp_path / rounding, chosen).model
        for linear in exact:
            stem, moment = str(linear.weight.name), moments[str(linear.input.name)]
            levels, scale = (
                constant(made.graph.initializers[f"{stem}{end}"])
                for end in ("_quantized", "_scale")
            )
            wrong = linear.matrix() - levels.astype(np.float32) * scale
            errors.setdefault(rounding, []).append(output_error(wrong, moment.covariance))
            if linear.bias is not None:  # the mean is kept, too
                bias = constant(made.graph.initializers[str(linear.bias.name)])
                lost = moment.mean @ wrong if rounding == "gptq" else 0.0
                np.testing.assert_allclose(bias, constant(linear.bias) + lost, atol=1e-4)
    assert (np.array(errors["gptq"]) < 0.9 * np.array(errors["nearest"])).all(), errors


def test_ranges_are_those_of_the_images_not_of_their_copies(
    testing_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Altered copies reach further than any batch: scales that serve them cost the others."""
    alphas = []
    for copies in (0, 32):
        monkeypatch.setattr("vit_edge.quantize.calibration.COPIES", copies)
        made = quantized("int8-dynamic", testing_bundle, tmp_path / str(copies), {}, images=8)
        weights = [v for v in made.model.graph.initializers.values() if "rescale.mul" in v.name]
        alphas.append([constant(value) for value in weights])
    assert alphas[0]
    for plain, beside in zip(*alphas, strict=True):
        np.testing.assert_array_equal(plain, beside)
