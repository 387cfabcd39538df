"""INT8 as ONNX Runtime, OpenVINO and TensorRT want it, and as the images need it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import onnxruntime
import pytest

from tests.quantize.workbench import (
    answers,
    calibration,
    compared,
    operators,
    optimized,
    outside,
    quantized,
)
from vit_edge.bundle import Bundle
from vit_edge.errors import ParityError, RecipeError, UsageError
from vit_edge.graphs.write import write_model
from vit_edge.quantize import settings_from_table, settings_from_text
from vit_edge.quantize.linears import all_linears, block_linears

requires = ("torch", "onnx", "onnxscript", "onnxruntime")

FEW = {"sensitivity_images": 4}
ALL = {**FEW, "float_budget": 0}  # no Linear stays in float, however much it hurts


def test_every_block_linear_gets_one_quantizer_and_nothing_else_does(
    testing_bundle: Bundle, tmp_path: Path
) -> None:
    before = onnx_ir.load(testing_bundle.model_path)
    linears = len(block_linears(before))
    after = quantized("int8", testing_bundle, tmp_path, ALL).model
    added = operators(after) - operators(before)
    scaled, fc2 = added.pop("Mul", 0), linears // 4  # a scale in front, where it is worth it
    rows = {name: added.pop(name, 0) for name in ("ReduceMax", "Max", "Div")}
    assert len(set(rows.values())) == 1
    lowered, signed = added.pop("Add", 0), added.pop("Abs", 0)  # what GELU leaves has its Add
    assert rows["Div"] == lowered + signed <= linears
    assert lowered <= scaled - rows["Div"] <= fc2  # rows have a second Mul, behind
    assert added == {"QuantizeLinear": linears, "DequantizeLinear": 2 * linears}
    assert [linear.name for linear in all_linears(after)] == ["readout.head"]


def test_onnxruntime_leaves_no_dequantize_and_one_quantize_per_linear(
    testing_bundle: Bundle, tmp_path: Path
) -> None:
    linears = len(block_linears(onnx_ir.load(testing_bundle.model_path)))
    found = optimized(quantized("int8", testing_bundle, tmp_path, ALL).model, tmp_path / "o")
    assert found["DequantizeLinear"] == 0
    assert found["QuantizeLinear"] == linears
    assert found["MatMulIntegerToFloat"] == linears


@pytest.mark.parametrize("activations", ["uint8", "int8"])
def test_names_shapes_batch_and_metadata_stay(
    testing_bundle: Bundle, tmp_path: Path, activations: str
) -> None:
    before = onnx_ir.load(testing_bundle.model_path)
    after = quantized("int8", testing_bundle, tmp_path, {**ALL, "activations": activations}).model
    assert outside(after) == outside(before)


def test_an_image_is_answered_alike_in_any_batch(testing_bundle: Bundle, tmp_path: Path) -> None:
    after = quantized("int8", testing_bundle, tmp_path, FEW)
    write_model(after.model, tmp_path)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    pixels = calibration(4, 7, testing_bundle.manifest.preprocessing).pixels(0, 4)
    whole = session.run(["logits"], {"pixel_values": pixels})[0]
    for index in range(4):
        alone = session.run(["logits"], {"pixel_values": pixels[index : index + 1]})[0]
        np.testing.assert_allclose(alone[0], whole[index], rtol=0, atol=1e-5 * np.abs(whole).max())


def test_the_gpu_flavour_is_symmetric_with_zero_points_of_zero(
    decomposed_bundle: Bundle, tmp_path: Path
) -> None:
    settings = {**ALL, "around": "fp32"}
    after = quantized("int8", decomposed_bundle, tmp_path, settings, target="gpu").model
    zero_points = {
        node.inputs[2].name: node.inputs[2].const_value.numpy()  # type: ignore[union-attr]
        for node in after.graph
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
    }
    assert len(zero_points) == 2 * len(block_linears(onnx_ir.load(decomposed_bundle.model_path)))
    assert all(values.dtype == np.int8 and not values.any() for values in zero_points.values())


def test_reduced_weights_fit_seven_bits(testing_bundle: Bundle, tmp_path: Path) -> None:
    after = quantized("int8", testing_bundle, tmp_path, {**ALL, "reduce_range": True}).model
    largest = [
        np.abs(value.const_value.numpy().astype(int)).max()  # type: ignore[union-attr]
        for name, value in after.graph.initializers.items()
        if name.endswith("_quantized")
    ]
    assert set(largest) == {63}


def test_what_is_asked_to_stay_float_stays_float(testing_bundle: Bundle, tmp_path: Path) -> None:
    kept = ["blocks.0.mlp.fc2", "blocks.1.mlp.fc1"]
    found = quantized("int8", testing_bundle, tmp_path, {**ALL, "keep_float": kept})
    assert {linear.name for linear in all_linears(found.model)} == {*kept, "readout.head"}
    said = {row["name"] for row in found.record["linears"] if not row["quantized"]}
    assert said == set(kept)


def test_a_linear_to_keep_that_is_not_there_is_named(
    testing_bundle: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"blocks\.99\.mlp"):
        quantized("int8", testing_bundle, tmp_path, {**FEW, "keep_float": ["blocks.99.mlp"]})


def test_a_target_out_of_reach_is_refused(testing_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ParityError, match="float_budget"):
        quantized(
            "int8", testing_bundle, tmp_path, {**FEW, "float_budget": 1}, goal="sqnr_centred_db=120"
        )


def test_the_same_images_give_the_same_graph(testing_bundle: Bundle, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        made = quantized("int8", testing_bundle, tmp_path / name, FEW).model
        write_model(made, tmp_path / name)
    one, two = ((tmp_path / name / "model.onnx").read_bytes() for name in ("one", "two"))
    assert one == two


@pytest.mark.slow
@pytest.mark.parametrize("ranges", ["minmax", "percentile", "entropy", "mse", "output"])
def test_every_range_method_keeps_the_answers(
    ranges: str, embedded_bundle: Bundle, tmp_path: Path
) -> None:
    found = quantized("int8", embedded_bundle, tmp_path, {**FEW, "ranges": ranges})
    summary = judged(embedded_bundle, found.model, tmp_path)
    assert summary["sqnr_centred_db"] > 28
    assert summary["top1_agreement"] > 0.95


def judged(bundle: Bundle, model: onnx_ir.Model, scratch: Path) -> dict[str, Any]:
    """Statistics on 128 crops that were not calibrated on."""
    images = calibration(128, 1, bundle.manifest.preprocessing)
    expected = answers(onnx_ir.load(bundle.model_path), images, scratch / "float")
    return compared(answers(model, images, scratch / "low"), expected)


def plant_outliers(model: onnx_ir.Model, seed: int) -> None:
    """What large ViTs have: a few channels behind every LayerNormalization far above the others.

    Random channels, random magnitudes of 10 to 80, a number of its own for every norm; the next
    Linear is divided by the same, so the float answers stay.
    """
    from vit_edge.quantize.rescale.folding import groups

    rng = np.random.default_rng(seed)
    for group in groups(model, block_linears(model)):
        if "norm" not in group.name:
            continue
        channels = group.linears[0].matrix().shape[0]
        scale = np.ones(channels)
        picked = rng.choice(channels, rng.integers(1, 6), replace=False)
        scale[picked] = 1 / np.exp(rng.uniform(np.log(10), np.log(80), len(picked)))
        group.fold(scale, np.zeros(channels))


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "target"), [(0, "cpu"), (1, "gpu")])
def test_planted_outliers_are_survived_where_a_careless_recipe_is_not(
    seed: int, target: str, embedded_bundle: Bundle, tmp_path: Path
) -> None:
    bundle = embedded_bundle
    planted = onnx_ir.load(bundle.model_path)
    plant_outliers(planted, seed)
    write_model(planted, tmp_path)
    moved = Bundle(tmp_path, bundle.manifest, bundle.labels)
    images = calibration(128, 1, bundle.manifest.preprocessing)
    expected = answers(onnx_ir.load(bundle.model_path), images, tmp_path / "float")
    same = answers(planted, images, tmp_path / "planted")
    assert np.abs(same - expected).max() < 1e-4 * np.abs(expected).max()
    settings: dict[str, Any] = {**FEW, "around": "fp32"}
    careful = quantized("int8", moved, tmp_path, settings, target=target)
    settings |= {"smoothing": False, "ranges": "minmax", "bias_correction": False}
    careless = quantized("int8", moved, tmp_path, settings | {"float_budget": 0}, target=target)
    good = compared(answers(careful.model, images, tmp_path / "good"), expected)
    bad = compared(answers(careless.model, images, tmp_path / "bad"), expected)
    assert good["sqnr_centred_db"] > 28
    assert good["sqnr_centred_db"] > bad["sqnr_centred_db"] + 10
    assert good["top1_agreement"] > 0.96


def test_settings_are_read_strictly() -> None:
    with pytest.raises(RecipeError, match=r"(?s)2 problem.*alpha: int8 has no.*shift: expected"):
        settings_from_table("int8", {"alpha": 0.5, "shift": "yes"}, "file.toml")
    with pytest.raises(RecipeError, match="float_share"):
        settings_from_table("int8", {"float_share": 0.0}, "file.toml")
    assert settings_from_table("int8", {"float_share": 1}, "file.toml").float_share == 1.0


def test_settings_are_read_from_the_command_line() -> None:
    texts = ["shift=false", "float_budget=2", "keep_float=a,b", "ranges=mse", "float_share=0.5"]
    table = settings_from_text("int8", texts)
    assert table == {
        "shift": False,
        "float_budget": 2,
        "keep_float": ["a", "b"],
        "ranges": "mse",
        "float_share": 0.5,
    }
    for text in ("shift", "shift=maybe", "nothing=1", "float_budget=many"):
        with pytest.raises(RecipeError, match=text):
            settings_from_text("int8", [text])
