"""fp16 and bf16 as a whole: overflows are seen, and what they touch stays float32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.quantize import half_graphs
from tests.quantize.workbench import answers, calibration, compared, quantized, task
from vit_edge.bundle import Bundle
from vit_edge.errors import ModelError, UsageError
from vit_edge.quantize import Quantized
from vit_edge.quantize.formats.half import FLOAT16, convert
from vit_edge.quantize.linears import block_linears, constant, set_constant
from vit_edge.quantize.precisions import bf16, fp16
from vit_edge.quantize.search.simulate import simulate

requires = ("torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "tqdm")

IMAGES = 16
# SQNR of the logits in dB, of random weights: 11 and 8 bits, less what accumulates over two blocks
FP16_DB, BF16_DB = 50.0, 32.0


def reference(model: onnx_ir.Model, bundle: Bundle, scratch: Path) -> NDArray[np.float32]:
    return answers(model, images_of(bundle), scratch)


def images_of(bundle: Bundle) -> Any:
    return calibration(IMAGES, 1, bundle.manifest.preprocessing)


def scaled_residual(bundle: Bundle, factor: float) -> onnx_ir.Model:
    """The same function, with one channel of the residual stream `factor` further out.

    What every Linear writes to that channel stays as it is; the offset comes with the position.
    """
    model = onnx_ir.load(bundle.model_path)
    position = model.graph.initializers["embedding.position"]
    moved = constant(position).copy()
    moved[..., 7] += factor
    set_constant(position, moved)
    return model


def sqnr_db(result: Quantized, model: onnx_ir.Model, bundle: Bundle, scratch: Path) -> float:
    assert result.simulation is not None
    found = answers(result.simulation, images_of(bundle), scratch / "found")
    statistics = compared(found, reference(model, bundle, scratch / "expected"))
    db: float = statistics["sqnr_db"]
    return db


@pytest.mark.parametrize(("precision", "least_db"), [("fp16", FP16_DB), ("bf16", BF16_DB)])
def test_answers_stay_near_float32(
    precision: str, least_db: float, decomposed_bundle: Bundle, tmp_path: Path
) -> None:
    result = quantized(precision, decomposed_bundle, tmp_path, {}, target="gpu")
    model = onnx_ir.load(decomposed_bundle.model_path)
    assert sqnr_db(result, model, decomposed_bundle, tmp_path) > least_db


def test_float16_runs_on_onnxruntime_as_it_is(testing_bundle: Bundle, tmp_path: Path) -> None:
    result = quantized("fp16", testing_bundle, tmp_path, {})
    found = answers(result.model, images_of(testing_bundle), tmp_path / "found")
    expected = answers(
        onnx_ir.load(testing_bundle.model_path), images_of(testing_bundle), tmp_path / "expected"
    )
    assert compared(found, expected)["sqnr_db"] > FP16_DB


def test_the_record_is_json_and_holds_every_tensor(testing_bundle: Bundle, tmp_path: Path) -> None:
    result = quantized("fp16", testing_bundle, tmp_path, {})
    record = json.loads(json.dumps(result.record))
    scan = record["overflow_scan"]
    assert scan["limit"] == FLOAT16.largest / 4
    assert scan["kept_float32"] == []
    for name in ("blocks.0.mlp/Gelu:0", "blocks.0.attention/Attention/scores"):
        assert 0 < scan["largest"][name] < 100
    assert scan["sums"]["blocks.1.mlp.fc2/MatMul"] >= scan["largest"]["blocks.1.mlp.fc2/MatMul:0"]
    assert result.table[0] == ("tensor", "largest |x|", "of the limit", "computed in")
    assert len(result.table) > 1
    assert record["underflow"]["weights"] > 10_000


def test_the_scan_finds_the_largest_value_of_all_images(
    testing_bundle: Bundle, tmp_path: Path
) -> None:
    """Batches are of 8 images, so that 32 of them are four."""
    result = quantized("fp16", testing_bundle, tmp_path, {"centre": False})
    model = onnx_ir.load(testing_bundle.model_path)
    images = calibration(32, 0, testing_bundle.manifest.preprocessing)
    (norm,) = (node for node in model.graph if node.name == "blocks.1.norm2/LayerNormalization")
    model.graph.outputs.append(norm.outputs[0])
    seen = answers(model, images, tmp_path / "seen", output=str(norm.outputs[0].name))
    found = result.record["overflow_scan"]["largest"][str(norm.outputs[0].name)]
    assert found == pytest.approx(np.abs(seen).max(), rel=1e-3)


def test_what_would_overflow_stays_float32_and_says_so(
    decomposed_bundle: Bundle, tmp_path: Path
) -> None:
    def planted() -> onnx_ir.Model:
        model = onnx_ir.load(decomposed_bundle.model_path)
        (linear,) = (x for x in block_linears(model) if x.name == "blocks.0.mlp.fc2")
        linear.set_matrix(linear.matrix() * 1e5)
        return model

    unguarded = planted()
    convert(unguarded, FLOAT16)
    images = images_of(decomposed_bundle)
    assert not np.isfinite(answers(simulate(unguarded, FLOAT16), images, tmp_path / "bad")).all()

    job = task(planted(), images, tmp_path / "job", target="gpu")
    result = fp16.quantize(job, fp16.Settings())
    assert "blocks.0.mlp.fc2/MatMul" in result.record["overflow_scan"]["kept_float32"]
    assert any(row[0].endswith("fc2/MatMul:0") and row[3] == "float32" for row in result.table)
    assert sqnr_db(result, planted(), decomposed_bundle, tmp_path) > FP16_DB


def test_a_residual_stream_at_70000_is_fine_in_float32_and_kept_from_float16(
    decomposed_bundle: Bundle, tmp_path: Path
) -> None:
    images = images_of(decomposed_bundle)
    planted = scaled_residual(decomposed_bundle, 7e4)
    unguarded = scaled_residual(decomposed_bundle, 7e4)
    convert(unguarded, FLOAT16, parts=["gelu", "residual"])
    found = answers(simulate(unguarded, FLOAT16), images, tmp_path / "bad")
    assert not np.isfinite(found).all()

    half_residual = fp16.Settings(also_half=("gelu", "residual"))
    for index, chosen in enumerate([fp16.Settings(), half_residual]):
        job = task(scaled_residual(decomposed_bundle, 7e4), images, tmp_path / str(index))
        result = fp16.quantize(job, chosen)
        kept = result.record["overflow_scan"]["kept_float32"]
        assert ("blocks.0/Add" in kept) == (chosen is half_residual)
        # One channel that far out leaves float32 itself less to tell the others by.
        assert sqnr_db(result, planted, decomposed_bundle, tmp_path / f"{index}-run") > FP16_DB - 10


def test_a_larger_margin_keeps_more(decomposed_bundle: Bundle, tmp_path: Path) -> None:
    strict = quantized("fp16", decomposed_bundle, tmp_path, {"margin": 20_000.0}, target="gpu")
    kept = strict.record["overflow_scan"]["kept_float32"]
    assert kept
    assert len(kept) < strict.model.graph.num_nodes()


@settings(max_examples=8)
@given(
    channel=st.integers(0, 63),
    magnitude=st.floats(10, 3e4),
    block=st.integers(0, 1),
    norm=st.sampled_from(["norm1", "norm2"]),
)
def test_outliers_anywhere_do_no_harm(
    channel: int, magnitude: float, block: int, norm: str, decomposed_bundle: Bundle,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    """gamma times a factor, the Linear behind it divided by it: the same function."""
    model = onnx_ir.load(decomposed_bundle.model_path)
    expected = onnx_ir.load(decomposed_bundle.model_path)
    for suffix in ("weight", "bias"):
        value = model.graph.initializers[f"blocks.{block}.{norm}.{suffix}"]
        moved = constant(value).copy()
        moved[channel] *= magnitude
        set_constant(value, moved)
    readers = [
        use.node
        for node in model.graph
        if node.name == f"blocks.{block}.{norm}/LayerNormalization"
        for use in node.outputs[0].uses()
    ]
    for linear in block_linears(model):
        if linear.node in readers or any(
            linear.input.producer() is reader and reader.op_type == "Slice" for reader in readers
        ):
            matrix = linear.matrix().copy()
            matrix[channel] /= magnitude
            linear.set_matrix(matrix)
    for name, axis in (("key", 2), ("value", 1)):
        fused = model.graph.initializers.get(f"blocks.{block}.attention.{name}")
        if fused is not None and norm == "norm1":
            moved = constant(fused).copy()
            np.moveaxis(moved, axis, 0)[channel] /= magnitude
            set_constant(fused, moved)
    scratch = tmp_path_factory.mktemp("outliers")
    job = task(model, images_of(decomposed_bundle), scratch / "job")
    result = fp16.quantize(job, fp16.Settings())
    assert sqnr_db(result, expected, decomposed_bundle, scratch) > FP16_DB - 6


def test_centring_changes_nothing_in_float32_and_helps_bfloat16(
    decomposed_bundle: Bundle, tmp_path: Path
) -> None:
    def planted() -> onnx_ir.Model:
        """Offsets far beyond the spread behind one LayerNormalization."""
        model = onnx_ir.load(decomposed_bundle.model_path)
        value = model.graph.initializers["blocks.0.norm2.bias"]
        moved = constant(value).copy()
        moved[::9] += 200
        set_constant(value, moved)
        return model

    found = {}
    for centred in (True, False):
        job = task(planted(), images_of(decomposed_bundle), tmp_path / f"job-{centred}")
        result = bf16.quantize(job, bf16.Settings(centre=centred))
        assert bool(result.record["centred"]) is centred
        found[centred] = sqnr_db(result, planted(), decomposed_bundle, tmp_path / str(centred))
    assert found[True] > found[False] + 3
    keep_all = tuple(linear.name for linear in block_linears(planted()))
    job = task(planted(), images_of(decomposed_bundle), tmp_path / "exact")
    chosen = bf16.Settings(keep_float32=(*keep_all, "blocks.0.attention", "blocks.1.attention"))
    exact = bf16.quantize(job, chosen)
    assert sqnr_db(exact, planted(), decomposed_bundle, tmp_path / "exact-run") > 100


def test_bfloat16_needs_no_calibration_and_says_what_it_missed(
    testing_bundle: Bundle, tmp_path: Path
) -> None:
    model = onnx_ir.load(testing_bundle.model_path)
    result = bf16.quantize(task(model, None, tmp_path), bf16.Settings())
    assert result.record["centred"] == []
    assert result.simulation is not None
    assert result.simulated is not None
    assert "rounded to it" in result.simulated


def test_float16_without_images_is_refused(testing_bundle: Bundle, tmp_path: Path) -> None:
    model = onnx_ir.load(testing_bundle.model_path)
    with pytest.raises(UsageError, match="--calibration"):
        fp16.quantize(task(model, None, tmp_path), fp16.Settings())


def test_a_model_that_overflows_float32_is_refused(testing_bundle: Bundle, tmp_path: Path) -> None:
    model = onnx_ir.load(testing_bundle.model_path)
    (linear,) = (x for x in block_linears(model) if x.name == "blocks.0.mlp.fc1")
    linear.set_matrix(linear.matrix() * np.float32(1e38))
    job = task(model, images_of(testing_bundle), tmp_path)
    with pytest.raises(ModelError, match="NaN or infinite"):
        fp16.quantize(job, fp16.Settings())


def test_the_simulation_shows_the_overflow_of_a_decomposed_norm(tmp_path: Path) -> None:
    """(x - mean)^2 passes 65504 from 256 on; onnxruntime computes it in float32 and hides that."""
    graph = half_graphs.decomposed_norm("FLOAT16")
    x = np.linspace(-700, 700, 8, dtype=np.float32)[None]
    wide = half_graphs.run(half_graphs.decomposed_norm("FLOAT"), tmp_path / "float32", x)
    shown = half_graphs.run(simulate(graph, FLOAT16), tmp_path / "simulated", x)
    hidden = half_graphs.run(graph, tmp_path / "onnxruntime", x)
    np.testing.assert_allclose(hidden, wide, rtol=1e-3)
    assert np.abs(wide).min() > 0.2
    assert not np.abs(shown).max() > 0  # divided by infinity


def test_the_simulation_rounds_every_product(tmp_path: Path) -> None:
    """1 + 2^-12 is 1 in float16, and what comes out is a float16 number."""
    graph = half_graphs.decomposed_norm("FLOAT16")
    x = np.array([[1 + 2**-12, 0, 1, 0, 1, 0, 1, 0]], np.float32)
    shown = half_graphs.run(simulate(graph, FLOAT16), tmp_path / "simulated", x)
    assert shown[0, 0] == shown[0, 2]
    assert (shown == shown.astype(np.float16)).all()
