"""FP8: exact E4M3, what TensorRT's FP8 kernels ask of a graph, and the offsets that must go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.quantize.workbench import (
    answers,
    calibration,
    compared,
    no_progress,
    outside,
    quantized,
    task,
)
from vit_edge.bundle import Bundle
from vit_edge.bundle.manifest import Preprocessing
from vit_edge.errors import ModelError, UsageError
from vit_edge.graphs.workspace import Workspace
from vit_edge.quantize.formats.e4m3 import (
    ACTIVATION_SHARES,
    LARGEST,
    SOFTMAX_SCALE,
    WholeE4M3,
    activation_scale,
    covering_scale,
    fake,
    quantized_weight,
    weight_scale,
)
from vit_edge.quantize.linears import block_linears, constant, set_constant
from vit_edge.quantize.precisions import fp8
from vit_edge.quantize.rescale.attention import attention_products, centre_keys
from vit_edge.quantize.rounding.gptq import gptq

requires = ("torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "ml_dtypes")

E4M3 = ml_dtypes.float8_e4m3fn
FP32 = {"around": "fp32", "sensitivity_images": 2}
ALL = {**FP32, "float_budget": 0}


def edge_cases() -> NDArray[np.float32]:
    """Every E4M3 number, every tie between two of them and its neighbours, and what saturates."""
    numbers = np.arange(256, dtype=np.uint8).view(E4M3).astype(np.float32)
    numbers = np.sort(numbers[np.isfinite(numbers)])
    ties = (numbers[:-1] + numbers[1:]) / 2
    beyond = np.array([464, 465, 480, 1e6, 2**-10, 2**-11, 2**-126], np.float32)
    near = [np.nextafter(ties, np.float32(end)) for end in (-1e9, 1e9)]
    return np.concatenate([numbers, ties, *near, beyond, -beyond])


def on_onnxruntime(x: NDArray[np.float32], scale: np.float32) -> NDArray[np.float32]:
    """QuantizeLinear and DequantizeLinear of the CPU provider."""
    helper, types = onnx.helper, onnx.TensorProto
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    constants = [
        helper.make_tensor("scale", types.FLOAT, [], [float(scale)]),
        helper.make_tensor("zero", types.FLOAT8E4M3FN, [], [0.0]),
    ]
    ends = [helper.make_tensor_value_info(name, types.FLOAT, ["n"]) for name in "xy"]
    graph = helper.make_graph(nodes, "pair", ends[:1], ends[1:], constants)
    opset = [helper.make_opsetid("", 20)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=9)
    options = onnxruntime.SessionOptions()
    for key, value in fp8.SIMULATION.items():
        options.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    (y,) = session.run(None, {"x": x})
    return np.asarray(y, np.float32)


def quantizers_of(model: onnx_ir.Model) -> list[onnx_ir.Node]:
    kinds = ("QuantizeLinear", "DequantizeLinear")
    return [node for node in model.graph if node.op_type in kinds]


@pytest.mark.parametrize("scale", [1.0, 0.0123, 3.7])
def test_rounding_is_onnxruntimes_for_every_number_tie_and_saturation(scale: float) -> None:
    x = edge_cases() * np.float32(scale)
    found = fake(x, np.float32(scale))
    np.testing.assert_array_equal(found, on_onnxruntime(x, np.float32(scale)))


def test_rounding_is_that_of_ml_dtypes() -> None:
    x = edge_cases()
    expected = np.clip(x, -LARGEST, LARGEST).astype(E4M3).astype(np.float32)
    np.testing.assert_array_equal(fake(x, np.float32(1)), expected)
    np.testing.assert_array_equal(
        quantized_weight(x[:, None], np.ones(1, np.float32)).dequantize()[:, 0], expected
    )


@given(
    st.floats(1e-6, 1e6),
    st.integers(0, 2**32 - 1),
)
def test_an_error_is_a_sixteenth_of_the_number_at_most(largest: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.uniform(-1, 1, 500) * largest).astype(np.float32)
    scale = covering_scale(largest)
    smallest_step = 2.0**-9 * scale
    allowed = np.maximum(np.abs(x) / 16, smallest_step / 2) * (1 + 1e-5)
    assert (np.abs(fake(x, scale) - x) <= allowed).all()


def test_weights_that_make_up_for_each_other_lose_less_on_the_same_levels() -> None:
    """Of correlated inputs, as channels of a ViT are; each level is a number of E4M3."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(512, 8)) @ rng.normal(size=(8, 64))).astype(np.float32)
    x += 0.1 * rng.normal(size=x.shape).astype(np.float32)
    weight = rng.normal(size=(64, 24)).astype(np.float32)
    scale = weight_scale(weight, None)
    kind = WholeE4M3(8, True, len(weight), LARGEST)
    made = gptq(weight, x.T @ x / len(x), kind.grid(scale), kind)
    nearest = quantized_weight(weight, scale)
    assert made.levels.dtype == nearest.values.dtype == E4M3
    bent, plain = (
        float(np.square(x @ (weight - left)).sum())
        for left in (made.levels.astype(np.float32) * scale, nearest.dequantize())
    )
    assert bent < 0.5 * plain
    alone = gptq(weight, np.eye(64, dtype=np.float32), kind.grid(scale), kind)
    assert np.array_equal(alone.levels.astype(np.float32), nearest.values.astype(np.float32))


def test_the_recipes_rounding_reaches_the_graph(decomposed_bundle: Bundle, tmp_path: Path) -> None:
    def levels(rounding: str) -> dict[str, NDArray[np.float32]]:
        chosen = {**ALL, "rounding": rounding}
        model = quantized("fp8", decomposed_bundle, tmp_path / rounding, chosen, target="gpu").model
        stored = model.graph.initializers.items()
        return {n: constant(v).astype(np.float32) for n, v in stored if constant(v).dtype == E4M3}

    bent, plain = levels("gptq"), levels("nearest")
    assert bent.keys() == plain.keys()
    weights = [name for name in bent if bent[name].ndim == 2]
    assert weights
    assert all(0 < (bent[name] != plain[name]).mean() < 0.5 for name in weights)


def test_a_searched_scale_is_no_worse_than_any_it_tried() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((64, 32), np.float32)
    weight = rng.standard_normal((32, 8), np.float32)
    largest = float(np.abs(rows).max())

    def error(scale: np.float32) -> float:
        return float(np.square((fake(rows, scale) - rows) @ weight, dtype=np.float64).sum())

    found = error(activation_scale(rows, largest, weight))
    tried = [error(np.float32(covering_scale(largest) * share)) for share in ACTIVATION_SHARES]
    assert found == min(tried) < max(tried)
    importance = np.square(rows, dtype=np.float64).mean(axis=0)
    lost = [
        importance @ np.square(weight - fake(weight, weight_scale(weight, choice)))
        for choice in (importance, None)
    ]
    assert (lost[0] <= lost[1]).all()
    assert lost[0].sum() < lost[1].sum()


def test_linears_and_products_are_quantized_and_nothing_else(
    decomposed_bundle: Bundle, tmp_path: Path
) -> None:
    before = onnx_ir.load(decomposed_bundle.model_path)
    linears, products = len(block_linears(before)), len(attention_products(before))
    assert (linears, products) == (8, 1)  # the last block attends for one token: no products
    after = quantized("fp8", decomposed_bundle, tmp_path, ALL, target="gpu").model
    found = Counter(node.op_type for node in after.graph)
    assert found["QuantizeLinear"] == linears + 4 * products
    assert found["DequantizeLinear"] == 2 * linears + 4 * products
    for node in after.graph:
        if node.op_type == "MatMul" and str(node.name).startswith("blocks.0."):
            makers = [value.producer() for value in node.inputs if value is not None]
            assert [maker.op_type for maker in makers if maker] == ["DequantizeLinear"] * 2


def test_every_scale_and_zero_point_is_what_tensorrt_takes(
    decomposed_bundle: Bundle, tmp_path: Path
) -> None:
    model = quantized("fp8", decomposed_bundle, tmp_path, ALL, target="gpu").model
    assert model.opset_imports[""] == 20
    assert model.ir_version == 9
    for node in quantizers_of(model):
        _, scale, zero = node.inputs
        assert scale is not None
        assert zero is not None
        assert zero.dtype == onnx_ir.DataType.FLOAT8E4M3FN
        assert not constant(zero).astype(np.float32).any()
        is_weight = node.inputs[0] is not None and node.inputs[0].is_initializer()
        assert constant(scale).ndim == (1 if is_weight else 0)
        assert (constant(scale) > 0).all()


def test_the_softmax_scale_does_not_depend_on_images(
    decomposed_bundle: Bundle, tmp_path: Path
) -> None:
    record = quantized("fp8", decomposed_bundle, tmp_path, ALL, target="gpu").record
    scales = {part["name"]: part["input_scales"] for part in record["parts"]}
    found = scales["blocks.0.attention.products"]["blocks.0.attention.p"]
    assert found == pytest.approx(float(SOFTMAX_SCALE), rel=2**-10)  # as FP16 can hold it
    assert found >= SOFTMAX_SCALE  # so that 1 does not saturate


def test_names_shapes_and_metadata_stay(decomposed_bundle: Bundle, tmp_path: Path) -> None:
    before = onnx_ir.load(decomposed_bundle.model_path)
    for around in ("fp16", "fp32"):
        settings = {**ALL, "around": around}
        after = quantized("fp8", decomposed_bundle, tmp_path / around, settings, target="gpu").model
        assert outside(after) == outside(before)


def test_shifting_keys_changes_no_answer(decomposed_bundle: Bundle, tmp_path: Path) -> None:
    images = calibration(8, 0, decomposed_bundle.manifest.preprocessing)
    expected = answers(onnx_ir.load(decomposed_bundle.model_path), images, tmp_path / "e")
    workspace = Workspace(tmp_path / "w")
    model = workspace.settle(with_offsets(onnx_ir.load(decomposed_bundle.model_path)))
    assert centre_keys(model, workspace, images, no_progress) == ["blocks.0.attention.k"]
    found = answers(model, images, tmp_path / "f")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    (qkv,) = (one for one in block_linears(model) if one.name == "blocks.0.attention.qkv")
    assert qkv.bias is not None
    width = qkv.matrix().shape[0]
    assert np.abs(constant(qkv.bias)[width : 2 * width]).max() < 5  # 20 were planted


def with_offsets(model: onnx_ir.Model) -> onnx_ir.Model:
    """The same answers, but all keys of a head have 20 in common."""
    for linear in block_linears(model):
        width, outputs = linear.matrix().shape
        if outputs == 3 * width and linear.bias is not None:
            bias = constant(linear.bias).copy()
            bias[width : 2 * width] += 20
            set_constant(linear.bias, bias)
    return model


def test_offsets_cost_nothing_because_they_are_taken_out(
    decomposed_bundle: Bundle, tmp_path: Path
) -> None:
    images = calibration(16, 1, decomposed_bundle.manifest.preprocessing)
    seen = calibration(32, 0, decomposed_bundle.manifest.preprocessing)
    expected = answers(onnx_ir.load(decomposed_bundle.model_path), images, tmp_path / "e")
    noise = {}
    for centre in (True, False):
        model = with_offsets(onnx_ir.load(decomposed_bundle.model_path))
        settings = fp8.Settings(centre=centre, float_budget=0, sensitivity_images=1, around="fp32")
        made = fp8.quantize(task(model, seen, tmp_path / str(centre), target="gpu"), settings)
        found = answers(made.model, images, tmp_path / f"f{centre}", fp8.SIMULATION)
        noise[centre] = compared(found, expected)["sqnr_centred_db"]
    assert noise[True] > noise[False] + 4  # found: 14.9 and 8.0 dB, as the keys' offset is 20


def test_the_worst_part_can_be_kept_in_float(decomposed_bundle: Bundle, tmp_path: Path) -> None:
    keep = ["blocks.0.attention.products", "blocks.1.mlp.fc2"]
    result = quantized(
        "fp8", decomposed_bundle, tmp_path, {**ALL, "keep_float": keep}, target="gpu"
    )
    parts = {str(node.name).rpartition("/")[0] for node in quantizers_of(result.model)}
    assert "blocks.1.mlp.fc1" in parts
    assert not parts & {"blocks.0.attention.q", "blocks.0.attention.p", "blocks.1.mlp.fc2"}
    assert [part["name"] for part in result.record["parts"] if not part["quantized"]] == [
        "blocks.1.mlp.fc2",
        "blocks.0.attention.products",
    ]
    with pytest.raises(UsageError, match=r"keep_float names fc9, .*blocks\.0\.attention\.products"):
        settings = {**ALL, "keep_float": ["fc9"]}
        quantized("fp8", decomposed_bundle, tmp_path / "b", settings, target="gpu")


def test_the_simulation_computes_what_the_float16_file_means(
    decomposed_bundle: Bundle, tmp_path: Path
) -> None:
    images = calibration(16, 1, decomposed_bundle.manifest.preprocessing)
    made = {
        around: quantized(
            "fp8", decomposed_bundle, tmp_path / around, {**ALL, "around": around}, target="gpu"
        )
        for around in ("fp16", "fp32")
    }
    assert made["fp32"].simulation is None
    assert made["fp16"].simulation is not None
    assert made["fp16"].simulated is not None
    assert "fp16" in made["fp16"].simulated
    exact = answers(made["fp32"].model, images, tmp_path / "x", fp8.SIMULATION)
    half = answers(made["fp16"].simulation, images, tmp_path / "h", fp8.SIMULATION)
    assert compared(half, exact)["sqnr_centred_db"] > 20  # E4M3 itself leaves about 19


def test_another_exporters_graph_can_be_quantized(
    foreign_file: Callable[[str], Path], tmp_path: Path
) -> None:
    path = foreign_file("timm-dynamo-20")
    before = onnx_ir.load(path)
    output, size = str(before.graph.outputs[0].name), 32
    half = (0.5, 0.5, 0.5)
    spec = Preprocessing("squash", (size, size), (size, size), "bilinear", half, half)
    images = calibration(16, 1, spec)
    exact = answers(before, images, tmp_path / "e", output=output)
    given = task(onnx_ir.load(path), calibration(64, 0, spec), tmp_path / "q", target="gpu")
    made = fp8.quantize(given, fp8.Settings(sensitivity_images=1, float_budget=0))
    assert sum(part["name"].endswith(".products") for part in made.record["parts"]) == 2
    assert made.simulation is not None
    found = answers(made.simulation, images, tmp_path / "f", fp8.SIMULATION, output)
    assert compared(found, exact)["sqnr_centred_db"] > 15  # found: 19 to 29


def test_what_fp8_cannot_do_is_refused_with_the_way_out(
    testing_bundle: Bundle, decomposed_bundle: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="no CPU multiplies E4M3"):
        quantized("fp8", decomposed_bundle, tmp_path, ALL)
    with pytest.raises(ModelError, match=r"blocks\.0\.attention/Attention: .*decomposed"):
        quantized("fp8", testing_bundle, tmp_path / "f", ALL, target="gpu")
    old = onnx_ir.load(decomposed_bundle.model_path)
    old.opset_imports[""] = 18
    images = calibration(2, 0, decomposed_bundle.manifest.preprocessing)
    with pytest.raises(ModelError, match="needs opset 19 or newer, not 18"):
        fp8.quantize(task(old, images, tmp_path / "o", target="gpu"), fp8.Settings())
    with pytest.raises(UsageError, match="--calibration DIR"):
        model = onnx_ir.load(decomposed_bundle.model_path)
        fp8.quantize(task(model, None, tmp_path / "n", target="gpu"), fp8.Settings())


def test_settings_out_of_range_are_all_listed() -> None:
    settings = fp8.Settings(float_budget=-1, float_share=0, sensitivity_images=0)
    assert len(settings.problems()) == 3
    assert fp8.Settings().problems() == []
