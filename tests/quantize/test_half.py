"""Half precision: which nodes it takes, what the graph looks like, and what it refuses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.quantize import half_graphs
from tests.quantize.workbench import answers, calibration, compared
from tests.support.foreign import FOREIGN
from vit_edge.bundle import Bundle
from vit_edge.errors import ModelError, UsageError
from vit_edge.quantize.formats.half import BFLOAT16, FLOAT16, Half, convert, rounded_scale
from vit_edge.quantize.formats.integers import (
    INT8_SYMMETRIC,
    QuantizedWeight,
    quantize_linears,
    quantized_weight,
)
from vit_edge.quantize.linears import block_linears
from vit_edge.quantize.precisions import fp16
from vit_edge.quantize.search.simulate import simulate

requires = ("torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "tqdm", "transformers")

HALVES = (FLOAT16, BFLOAT16)
# of the largest logit; a unit in the last place is 2^-11 or 2^-8, and a handful of them add up
TOLERANCE = {"fp16": 5e-3, "bf16": 4e-2}


@pytest.fixture(params=["fused", "decomposed"])
def form(request: pytest.FixtureRequest) -> Bundle:
    """The testing variant in one of the exporter's two forms."""
    name = "testing_bundle" if request.param == "fused" else "decomposed_bundle"
    bundle: Bundle = request.getfixturevalue(name)
    return bundle


def load(bundle: Bundle) -> onnx_ir.Model:
    return onnx_ir.load(bundle.model_path)


def computed_in(model: onnx_ir.Model, dtype: onnx_ir.DataType) -> Counter[str]:
    return Counter(node.op_type for node in model.graph if node.outputs[0].dtype == dtype)


@pytest.mark.parametrize("half", HALVES, ids=lambda half: half.name)
def test_gemms_are_half_and_the_rest_is_float32(form: Bundle, half: Half) -> None:
    model = load(form)
    convert(model, half)
    onnx.checker.check_model(onnx_ir.to_proto(model), full_check=True)
    float32 = computed_in(model, onnx_ir.DataType.FLOAT)
    assert float32["MatMul"] == 1  # the head
    assert float32["Gelu"] == 0
    assert computed_in(model, half.dtype)["LayerNormalization"] == 0
    assert computed_in(model, half.dtype)["Softmax"] == 0
    assert float32["Add"] == 1 + 2 * 2 + 2 * 2 + 1  # position, residuals, their biases, head


def test_the_fused_attention_computes_its_softmax_in_float32(testing_bundle: Bundle) -> None:
    model = load(testing_bundle)
    convert(model, FLOAT16)
    attentions = [node for node in model.graph if node.op_type == "Attention"]
    assert attentions
    for node in attentions:
        assert node.outputs[0].dtype == onnx_ir.DataType.FLOAT16
        assert node.attributes["softmax_precision"].value == onnx_ir.DataType.FLOAT


@pytest.mark.parametrize("half", HALVES, ids=lambda half: half.name)
def test_interface_and_metadata_stay_as_they_were(form: Bundle, half: Half) -> None:
    before, after = load(form), load(form)
    convert(after, half)
    for side in ("inputs", "outputs"):
        pairs = zip(getattr(before.graph, side), getattr(after.graph, side), strict=True)
        for old, new in pairs:
            assert (old.name, old.dtype, old.shape) == (new.name, new.dtype, new.shape)
    assert after.metadata_props == before.metadata_props
    assert after.opset_imports == before.opset_imports


def test_the_weights_of_the_linears_take_half_the_bytes(form: Bundle) -> None:
    model = load(form)
    before = {linear.weight.name: linear.weight.const_value for linear in block_linears(model)}
    convert(model, FLOAT16)
    for name, old in before.items():
        new = model.graph.initializers[str(name)].const_value
        assert old is not None
        assert new is not None
        assert new.nbytes * 2 == old.nbytes


def test_no_value_is_cast_twice_and_none_back_and_forth(form: Bundle) -> None:
    model = load(form)
    convert(model, FLOAT16)
    casts = [node for node in model.graph if node.op_type == "Cast"]
    sources = [node.inputs[0] for node in casts]
    assert len(set(sources)) == len(sources) > 0
    assert not [source for source in sources if source and source.producer() in casts]


@pytest.mark.parametrize("half", HALVES, ids=lambda half: half.name)
@pytest.mark.parametrize("kind", FOREIGN)
def test_graphs_of_other_exporters_convert(
    kind: str, half: Half, foreign_file: Callable[[str], Path], tmp_path: Path
) -> None:
    model = onnx_ir.load(foreign_file(kind))
    before = half_graphs.run(model, tmp_path / "before")
    convert(model, half)
    onnx.checker.check_model(onnx_ir.to_proto(model), full_check=True)
    after = half_graphs.run(simulate(model, half), tmp_path / "after")
    assert np.abs(after - before).max() <= TOLERANCE[half.name] * np.abs(before).max()
    gemms = ("MatMul", "Gemm")
    assert sum(computed_in(model, onnx_ir.DataType.FLOAT)[name] for name in gemms) == 1


def test_the_batch_stays_dynamic(form: Bundle, tmp_path: Path) -> None:
    model = load(form)
    convert(model, FLOAT16)
    images = calibration(3, 0, form.manifest.preprocessing)
    together = answers(model, images, tmp_path / "three")
    for index in range(3):
        alone = answers(model, images.first(index + 1), tmp_path / str(index))[index]
        # sums in another order, rounded: units in the last place of float16
        np.testing.assert_allclose(alone, together[index], atol=4e-3 * np.abs(together).max())


@pytest.mark.parametrize("name", ["blocks.1.mlp.fc2", "blocks.1.mlp.fc2/MatMul"])
def test_a_linear_can_be_kept_in_float32(decomposed_bundle: Bundle, name: str) -> None:
    model = load(decomposed_bundle)
    convert(model, FLOAT16, keep_float32=[name])
    (node,) = (node for node in model.graph if node.name == "blocks.1.mlp.fc2/MatMul")
    assert node.outputs[0].dtype == onnx_ir.DataType.FLOAT
    assert model.graph.initializers["blocks.1.mlp.fc2.weight"].dtype == onnx_ir.DataType.FLOAT
    assert computed_in(model, onnx_ir.DataType.FLOAT)["MatMul"] == 2


@pytest.mark.parametrize(
    ("part", "op_type"), [("softmax", "Softmax"), ("patch", "Conv"), ("gelu", "Gelu")]
)
def test_what_else_is_half_can_be_chosen(
    decomposed_bundle: Bundle, part: str, op_type: str
) -> None:
    with_it, without = load(decomposed_bundle), load(decomposed_bundle)
    convert(with_it, FLOAT16, parts=[part])
    convert(without, FLOAT16, parts=[])
    assert computed_in(with_it, FLOAT16.dtype)[op_type] > 0
    assert computed_in(without, FLOAT16.dtype)[op_type] == 0
    # the stream behind a half patch embedding stays wide
    assert computed_in(with_it, FLOAT16.dtype)["Pad"] == 0


def test_a_half_residual_stream_is_half_from_block_to_block(decomposed_bundle: Bundle) -> None:
    model = load(decomposed_bundle)
    convert(model, FLOAT16, parts=["gelu", "residual"])
    adds = {node.name: node.outputs[0].dtype for node in model.graph if node.op_type == "Add"}
    assert adds["blocks.0/Add"] == adds["blocks.0/Add_1"] == FLOAT16.dtype
    assert computed_in(model, FLOAT16.dtype)["LayerNormalization"] == 0


def test_a_name_to_keep_that_no_node_has_is_refused(form: Bundle) -> None:
    with pytest.raises(UsageError, match=r"blocks\.9\.mlp\.fc2.*blocks\.1\.mlp\.fc2"):
        convert(load(form), FLOAT16, keep_float32=["blocks.9.mlp.fc2"])


def test_a_decomposed_layer_normalization_is_refused() -> None:
    with pytest.raises(ModelError, match="decomposed"):
        convert(half_graphs.decomposed_norm("FLOAT"), FLOAT16)


def test_a_graph_that_is_half_already_is_refused(form: Bundle) -> None:
    model = load(form)
    convert(model, FLOAT16)
    with pytest.raises(ModelError, match="FLOAT16 already"):
        convert(model, BFLOAT16)


def test_an_operator_of_a_runtime_is_refused_by_its_nodes_name(form: Bundle) -> None:
    model = load(form)
    (node,) = (node for node in model.graph if node.name == "blocks.0.mlp/Gelu")
    node.domain = "com.microsoft"
    with pytest.raises(ModelError, match="blocks.0.mlp/Gelu: com.microsoft.Gelu"):
        convert(model, FLOAT16)


def test_a_weight_beyond_float16_is_refused_and_can_be_kept(form: Bundle) -> None:
    def planted() -> onnx_ir.Model:
        model = load(form)
        (linear,) = (x for x in block_linears(model) if x.name == "blocks.0.mlp.fc1")
        linear.set_matrix(np.where(linear.matrix() == linear.matrix().max(), 7e4, linear.matrix()))
        return model

    with pytest.raises(ModelError, match=r"blocks\.0\.mlp\.fc1.*keep_float32"):
        convert(planted(), FLOAT16)
    convert(planted(), FLOAT16, keep_float32=["blocks.0.mlp.fc1"])
    convert(planted(), BFLOAT16)


@given(st.floats(2.0**-24, 6e4, width=32), st.sampled_from(HALVES))
def test_a_rounded_scale_is_the_next_number_up(scale: float, half: Half) -> None:
    dtype = half.dtype.numpy()
    up = rounded_scale(np.float32(scale), half)
    assert up == up.astype(dtype).astype(np.float32)
    assert up >= scale
    below = np.array(up, dtype).view(np.uint16) - np.uint16(1)
    assert below.astype(np.uint16).view(dtype).astype(np.float32) < scale


@given(st.floats(65505.0, 2.0**126, width=32))
def test_a_scale_beyond_float16_is_refused(scale: float) -> None:
    with pytest.raises(ModelError, match="does not fit fp16"):
        rounded_scale(np.float32(scale))


def with_int8_linears(bundle: Bundle, *, rounded: bool) -> onnx_ir.Model:
    """A graph with symmetric Q/DQ around its Linears, scales for |x| <= 6."""
    model = load(bundle)
    linears = block_linears(model)
    weights = {}
    for linear in linears:
        scale = quantized_weight(linear.matrix(), 127).scale
        scale = rounded_scale(scale) if rounded else scale
        values = np.clip(np.rint(linear.matrix() / scale), -127, 127).astype(np.int8)
        weights[linear.name] = QuantizedWeight(values, scale)
    step = np.float32(6 / 127)
    step = np.float32(rounded_scale(step)) if rounded else step
    activations = {linear.name: (step, 0) for linear in linears}
    quantize_linears(model, linears, weights, activations, INT8_SYMMETRIC)
    return model


def test_int8_linears_dequantize_to_half(decomposed_bundle: Bundle, tmp_path: Path) -> None:
    model = with_int8_linears(decomposed_bundle, rounded=True)
    images = calibration(16, 0, decomposed_bundle.manifest.preprocessing)
    before = answers(model, images, tmp_path / "before")
    convert(model, FLOAT16)
    onnx.checker.check_model(onnx_ir.to_proto(model), full_check=True)
    assert computed_in(model, FLOAT16.dtype)["DequantizeLinear"] == 2 * 8
    assert computed_in(model, onnx_ir.DataType.FLOAT)["DequantizeLinear"] == 0
    after = answers(simulate(model, FLOAT16), images, tmp_path / "after")
    # A float16 rounding moves values to the next integer: 31.7 dB. fc1 scales off by 5 % leave 27.
    assert compared(after, before)["sqnr_db"] > 29.5


def test_scales_that_float16_would_change_are_refused(decomposed_bundle: Bundle) -> None:
    with pytest.raises(ModelError, match="rounded_scale"):
        convert(with_int8_linears(decomposed_bundle, rounded=False), FLOAT16)


def test_half_scales_need_opset_19(decomposed_bundle: Bundle) -> None:
    model = with_int8_linears(decomposed_bundle, rounded=True)
    model.opset_imports[""] = 18
    with pytest.raises(ModelError, match="16-bit scales need opset 19 or newer, not 18"):
        convert(model, FLOAT16)


def test_settings_name_every_problem() -> None:
    problems = fp16.Settings(also_half=("gelu", "norm"), margin=0.5).problems()
    assert len(problems) == 2
    assert "'norm' is not one of gelu, softmax, residual, patch" in problems[0]
    assert problems[1].startswith("margin:")
    assert fp16.Settings().problems() == []
