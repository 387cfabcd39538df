"""What GELU leaves is scaled by a node of its own: exactly, and only where it pays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir
import pytest

from tests.quantize.workbench import (
    answers,
    calibration,
    compared,
    optimized,
    quantized,
    task,
)
from vit_edge.bundle import Bundle
from vit_edge.graphs.workspace import Workspace
from vit_edge.graphs.write import write_model
from vit_edge.quantize.formats.integers import INT8_SYMMETRIC, LARGEST, UINT8, Format
from vit_edge.quantize.linears import Linear, all_linears, block_linears, constant, set_constant
from vit_edge.quantize.rescale import inserting
from vit_edge.quantize.rescale.inserting import Inserted, divide_rows, smooth_every
from vit_edge.quantize.rescale.smoothing import rounding_error
from vit_edge.quantize.rounding.samples import collect_samples

requires = ("torch", "onnx", "onnxscript", "onnxruntime")

LOUD = 12.0  # trained ViTs have channels behind GELU up to thirty times the median


def plant(model: onnx_ir.Model, kind: str = "fc2") -> list[str]:
    """Make a few channels behind GELU loud, and their weights weak; the names of the Linears."""
    named = {linear.name: linear for linear in block_linears(model)}
    planted = []
    for name, fc2 in named.items():
        if not name.endswith(kind):
            continue
        fc1 = named[name.replace("fc2", "fc1")]
        assert fc1.bias is not None
        matrix, bias, back = fc1.matrix().copy(), constant(fc1.bias).copy(), fc2.matrix().copy()
        matrix[:, :3] *= LOUD
        bias[:] = 2  # one-sided, as trained GELU leaves it: a shift is worth something
        bias[:3] = 2 * LOUD
        back[:3] /= LOUD
        fc1.set_matrix(matrix)
        set_constant(fc1.bias, bias)
        fc2.set_matrix(back)
        planted.append(name)
    return planted


def rescaled(
    bundle: Bundle, model: onnx_ir.Model, scratch: Path, kind: Format, inserted: Inserted
) -> onnx_ir.Model:
    workspace = Workspace(scratch / "smooth")
    work = task(model, calibration(16, 0, bundle.manifest.preprocessing), scratch)
    settled = workspace.settle(model)
    images = work.images
    samples = collect_samples(workspace, settled, block_linears(settled), images, work.progress)
    error = rounding_error(kind, LARGEST)
    smooth_every(workspace, settled, samples, work, error, shift=True, inserted=inserted)
    assert set(samples) == {linear.input for linear in block_linears(settled)}
    for linear in block_linears(settled):  # the samples follow what really enters
        seen = observed(workspace, settled, linear, images.pixels(0, 16))
        if samples[linear.input].sizes is not None:
            # only GELU's Linears have an Add that takes their lower ends
            two_sided = not linear.name.endswith("fc2")
            assert np.abs(seen).max(axis=1) == pytest.approx(1)
            assert seen.min() >= (-1 if two_sided else -1e-5)
            continue
        np.testing.assert_allclose(samples[linear.input].high, seen.max(0), rtol=1e-3, atol=1e-4)
    return settled


def observed(
    workspace: Workspace, model: onnx_ir.Model, linear: Linear, pixels: np.ndarray
) -> np.ndarray:
    (values,) = workspace.observe(model, [linear.input], [pixels])
    array = values[str(linear.input.name)]
    return array.reshape(-1, array.shape[-1])


def inserted_nodes(model: onnx_ir.Model, operator: str) -> list[str]:
    return [
        str(node.name) for node in model.graph if str(node.name).endswith(f".rescale/{operator}")
    ]


@pytest.mark.parametrize("inserted", ["scale", "scale and shift", "rows"])
def test_the_answers_stay_and_what_is_loud_is_scaled(
    inserted: Inserted, testing_bundle: Bundle, tmp_path: Path
) -> None:
    model = onnx_ir.load(testing_bundle.model_path)
    names = plant(model)
    write_model(model, tmp_path)
    kind = INT8_SYMMETRIC if inserted == "scale and shift" else UINT8
    after = rescaled(testing_bundle, model, tmp_path, kind, inserted)
    assert inserted_nodes(after, "Mul") == [f"{name}.rescale/Mul" for name in names]
    assert bool(inserted_nodes(after, "Add")) == (inserted != "scale")
    assert bool(inserted_nodes(after, "Div")) == (inserted == "rows")
    images = calibration(8, 3, testing_bundle.manifest.preprocessing)
    expected = answers(onnx_ir.load(tmp_path / "model.onnx"), images, tmp_path / "float")
    found = answers(after, images, tmp_path / "scaled")
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize("opset", [17, 20])
def test_a_row_of_nothing_is_divided_by_something(
    opset: int, two_sided: bool, tmp_path: Path
) -> None:
    """Where a row is constant at its lower end, its maximum is 0."""
    ones = ", ".join(str(int(row == column)) for row in range(4) for column in range(4))
    text = f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g (float[N, 3, 4] x) => (float[N, 3, 4] logits)
        <float[4, 4] w = {{{ones}}}, float[4] b = {{0, 1, 2, 3}}>
        {{ [fc2] made = MatMul (x, w) logits = Add (made, b) }}"""
    model = onnx_ir.from_proto(onnx.parser.parse_model(text))
    x = model.graph.inputs[0]
    (linear,) = all_linears(model)
    entering = divide_rows(model, x, [linear], two_sided=two_sided)
    (divided,) = all_linears(model)  # it still has its bias, and knows what it read
    assert (divided.input, divided.undivided) == (entering, x)
    assert (divided.bias, divided.add) == (linear.bias, linear.add)
    array = np.zeros((1, 3, 4), np.float32)
    array[0, 1] = [0, 2, 1, -4 * two_sided]
    session = Workspace(tmp_path).session(model)
    (found,) = session.run(None, {"x": array})
    np.testing.assert_allclose(found, array + np.arange(4), rtol=1e-6)


def test_a_linear_that_stays_in_float_divides_no_rows(
    testing_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inserting, "WORTH_NARROW_ROWS", 100.0)
    every = [linear.name for linear in block_linears(onnx_ir.load(testing_bundle.model_path))]
    stays = every[2]
    settings = {"float_budget": 0, "sensitivity_images": 2, "keep_float": (stays,)}
    made = quantized("int8", testing_bundle, tmp_path / "low", settings, images=8).model
    divided = {name.split(".rescale")[0] for name in inserted_nodes(made, "Div")}
    assert divided
    assert stays not in divided
    kept = next(linear for linear in block_linears(made) if linear.name == stays)
    assert kept.undivided is kept.input
    assert kept.add is not None
    assert f"{stays}.rows/Mul" not in {node.name for node in made.graph}
    unread = [
        n.name for n in made.graph if not any(o.uses() or o.is_graph_output() for o in n.outputs)
    ]
    assert unread == []


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_rows_are_for_cpus(
    target: str, testing_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT fuses Q/DQ products with a bias, not with what depends on the row."""
    monkeypatch.setattr(inserting, "WORTH_ROWS", 100.0)
    model = onnx_ir.load(testing_bundle.model_path)
    names = plant(model)
    write_model(model, tmp_path)
    loud = Bundle(tmp_path, testing_bundle.manifest, testing_bundle.labels)
    settings = {"float_budget": 0, "sensitivity_images": 2}
    if target == "gpu":
        settings |= {"around": "fp32"}
    made = quantized("int8", loud, tmp_path / target, settings, images=8, target=target).model
    divided = inserted_nodes(made, "Div")
    if target == "gpu":
        assert divided == []
        return
    assert {f"{name}.rescale/Div" for name in names} <= set(divided)
    ran = optimized(made, tmp_path / "run")
    linears = block_linears(onnx_ir.load(loud.model_path))
    assert ran["MatMulIntegerToFloat"] == len(linears), ran


def test_a_row_keeps_its_answer_whatever_else_is_in_the_batch(
    testing_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inserting, "WORTH_ROWS", 100.0)
    model = onnx_ir.load(testing_bundle.model_path)
    plant(model)
    write_model(model, tmp_path)
    loud = Bundle(tmp_path, testing_bundle.manifest, testing_bundle.labels)
    settings = {"float_budget": 0, "sensitivity_images": 2}
    made = quantized("int8", loud, tmp_path / "low", settings, images=8).model
    assert inserted_nodes(made, "Div")
    images = calibration(6, 4, testing_bundle.manifest.preprocessing)
    workspace = Workspace(tmp_path / "answers")
    settled = workspace.settle(made)
    together, alone = (
        np.concatenate(list(workspace.answers(settled, images.batches(size), "logits")))
        for size in (6, 1)
    )
    np.testing.assert_array_equal(together.argmax(1), alone.argmax(1))
    np.testing.assert_allclose(together, alone, atol=1e-4 * np.abs(alone).max())


def test_nothing_is_inserted_where_it_is_forbidden(testing_bundle: Bundle, tmp_path: Path) -> None:
    model = onnx_ir.load(testing_bundle.model_path)
    plant(model)
    after = rescaled(testing_bundle, model, tmp_path, UINT8, "none")
    assert inserted_nodes(after, "Mul") == []


@pytest.mark.parametrize("precision", ["int8", "int8-dynamic"])
def test_loud_channels_behind_gelu_are_survived(
    precision: str, testing_bundle: Bundle, tmp_path: Path
) -> None:
    model = onnx_ir.load(testing_bundle.model_path)
    plant(model)
    write_model(model, tmp_path)
    loud = Bundle(tmp_path, testing_bundle.manifest, testing_bundle.labels)
    images = calibration(32, 5, testing_bundle.manifest.preprocessing)
    expected = answers(onnx_ir.load(loud.model_path), images, tmp_path / "float")
    kept = {}
    for insert in (True, False):
        settings: dict[str, Any] = {"insert_scales": insert}
        if precision == "int8":
            settings |= {"float_budget": 0, "sensitivity_images": 2}
        made = quantized(precision, loud, tmp_path / str(insert), settings).model
        kept[insert] = compared(answers(made, images, tmp_path / f"low{insert}"), expected)
    assert kept[True]["sqnr_centred_db"] > kept[False]["sqnr_centred_db"] + 3
