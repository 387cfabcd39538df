"""Graphs of other exporters become sources of bundles, unchanged in what they compute."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tests.support import foreign_graphs as graphs
from tests.support.foreign import FOREIGN
from vit_edge import Bundle, Predictor, inspect
from vit_edge.backends import eager
from vit_edge.bundle.bundle import sha256_of, write_manifest
from vit_edge.errors import BackendError, ModelError, UsageError
from vit_edge.export.draft import Draft, answer_golden_images, write_draft
from vit_edge.export.foreign.source import (
    ForeignSource,
    foreign_source,
)
from vit_edge.export.golden_set import write_golden_set
from vit_edge.export.plan import ExportOptions, plan_export
from vit_edge.export.recipe import load_recipe
from vit_edge.graphs.exactness import relative_difference
from vit_edge.graphs.opset import with_opset
from vit_edge.graphs.workspace import Workspace
from vit_edge.quantize.linears import block_linears

requires = ("torch", "onnx", "onnx_ir", "onnxruntime", "transformers")

ForeignFile = Callable[[str], Path]


def source_of(path: Path, scratch: Path) -> ForeignSource:
    return foreign_source(path, "google-vit", None, scratch)


def draft_of(source: ForeignSource, folder: Path) -> Draft:
    plan = plan_export(ExportOptions(load_recipe("cpu-fp32")))
    return write_draft(plan, source, answer_golden_images(plan, source, folder), folder)


def answers(model: Path | bytes, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(
        model if isinstance(model, bytes) else str(model), providers=["CPUExecutionProvider"]
    )
    found: NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: pixels})[0]
    return found


def noise(batch: int) -> NDArray[np.float32]:
    return np.random.default_rng(batch).standard_normal((batch, 3, 32, 32), np.float32)


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_rewritten_graph_computes_what_the_file_does(
    kind: str, foreign_file: ForeignFile, tmp_path: Path
) -> None:
    path = foreign_file(kind)
    source = source_of(path, tmp_path)
    draft = draft_of(source, tmp_path)
    for batch in (1, 2, 3, 5):
        pixels = noise(batch)
        found, expected = answers(tmp_path / "model.onnx", pixels), answers(path, pixels)
        assert relative_difference(found, expected) < 2e-6
    assert draft.manifest.opset == int(kind.rpartition("-")[2])
    assert source.facts.input.name == onnx.load(path).graph.input[0].name


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_rewritten_graph_is_in_the_one_form(
    kind: str, foreign_file: ForeignFile, tmp_path: Path
) -> None:
    model = source_of(foreign_file(kind), tmp_path).model
    operators = Counter(node.op_type for node in model.graph)
    assert not {"Constant", "Identity"} & set(operators)
    assert [output.name for output in model.graph.outputs] == ["logits"]
    shared = [
        name
        for name, value in model.graph.initializers.items()
        if value.dtype == onnx_ir.DataType.FLOAT and value.shape and len(value.uses()) != 1
    ]
    assert shared == []
    linears = block_linears(model)
    assert len(linears) == 2 * (6 if kind.startswith("hf") else 4)
    assert all(isinstance(linear.input.shape[-1], int) for linear in linears if linear.input.shape)
    projection = "o_proj" if kind.startswith("hf") else "proj"
    names = [linear.name for linear in linears]
    assert any("0" in name and name.endswith(projection) for name in names), names
    assert len(set(names)) == len(names)


def test_weights_that_are_transposed_at_every_start_are_transposed_once(tmp_path: Path) -> None:
    model = graphs.with_random_weights(graphs.TimmViT(graphs.Shape()))
    path = tmp_path / "unfolded.onnx"
    graphs.export(model, path, "torchscript", 17, do_constant_folding=False)
    before = Counter(node.op_type for node in onnx.load(path).graph.node)
    source = source_of(path, tmp_path)
    after = Counter(node.op_type for node in source.model.graph)
    linears = block_linears(source.model)
    assert before["Transpose"] - after["Transpose"] == len(linears) == 8


def test_the_reference_is_the_file_as_it_came(foreign_file: ForeignFile, tmp_path: Path) -> None:
    path = foreign_file("hf-dynamo-18")
    source = source_of(path, tmp_path)
    resized = np.random.default_rng(0).integers(0, 256, (11, 32, 32, 3), np.uint8)
    done: list[int] = []
    found = source.answers(resized, tmp_path, done.append)["logits"]
    pixels = ((resized / np.float32(255) - 0.5) / 0.5).transpose(0, 3, 1, 2).astype(np.float32)
    assert relative_difference(found, answers(path, pixels)) < 1e-6
    assert sum(done) == 11
    assert source.facts.record.source == "onnx:hf-dynamo-18.onnx"
    assert source.facts.record.sha256 == {path.name: sha256_of(path)}
    assert source.facts.producer["exported_output"] == onnx.load(path).graph.output[0].name


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_newer_opset_computes_the_same(
    kind: str, foreign_file: ForeignFile, tmp_path: Path
) -> None:
    model = source_of(foreign_file(kind), tmp_path).model
    converted = with_opset(model, 21, Workspace(tmp_path / "opset"))
    assert converted.opset_imports[""] == 21
    assert model.opset_imports[""] == int(kind.rpartition("-")[2])
    assert converted.ir_version == 10
    assert {v.name for v in converted.graph.inputs} == {v.name for v in model.graph.inputs}
    assert names_of_linears(converted) == names_of_linears(model)
    assert with_opset(converted, 20, Workspace(tmp_path / "older")) is converted


def names_of_linears(model: onnx_ir.Model) -> list[str]:
    return [linear.name for linear in block_linears(model)]


def test_an_operator_that_changed_its_form_is_converted(tmp_path: Path) -> None:
    """ReduceMean has its axes in an attribute up to opset 17, in an input from 18 on."""
    body = [helper.make_node("ReduceMean", ["embedded"], ["pooled"], axes=[1], keepdims=0)]
    path = small_model(tmp_path, body)
    model = source_of(path, tmp_path).model
    converted = with_opset(model, 21, Workspace(tmp_path / "opset"))
    (mean,) = (node for node in converted.graph if node.op_type == "ReduceMean")
    assert len(mean.inputs) == 2


def test_a_conversion_that_changes_an_answer_is_refused(
    foreign_file: ForeignFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = source_of(foreign_file("timm-torchscript-17"), tmp_path).model
    real = onnx.version_converter.convert_version

    def wrong(proto: onnx.ModelProto, opset: int) -> onnx.ModelProto:
        converted = real(proto, opset)
        (norm, *_) = (n for n in converted.graph.node if n.op_type == "LayerNormalization")
        (eps,) = (a for a in norm.attribute if a.name == "epsilon")
        eps.f = 0.1
        return converted

    monkeypatch.setattr(onnx.version_converter, "convert_version", wrong)
    with pytest.raises(ModelError, match="Export the model again with opset 21"):
        with_opset(model, 21, Workspace(tmp_path / "opset"))


def test_a_bundle_of_a_foreign_graph_predicts(
    foreign_file: ForeignFile,
    tmp_path: Path,
    photos: list[Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("".join(f"kind {index}\n" for index in range(7)))
    source = foreign_source(foreign_file("timm-dynamo-20"), "timm-deit", labels, tmp_path)
    folder = tmp_path / "bundle"
    folder.mkdir()
    draft = draft_of(source, folder)
    (folder / "labels.txt").write_text(labels.read_text())
    (folder / "parity.json").write_text(json.dumps({"passed": True, "limit": {}, "facts": {}}))
    write_golden_set(folder / "golden.npz", draft.golden, source.facts.preprocessing, "float32")
    write_manifest(folder, draft.manifest)
    bundle = Bundle.read(folder)
    assert bundle.manifest.architecture is None
    with Predictor(bundle) as predictor:
        predictions = predictor.predict_batch(photos)
        with pytest.raises(UsageError, match="only the logits are kept"):
            predictor.features(photos)
    found = np.stack([prediction.logits for prediction in predictions])
    expected = draft.golden.expected["logits"][::2]  # each photo comes with a mirrored view
    assert relative_difference(found, expected) < 2e-6
    assert predictions[0].label.startswith("kind ")
    with pytest.raises(BackendError, match="not taken apart"):
        eager.load(bundle)
    assert inspect.main([str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "a graph from another exporter; image 32x32 px" in shown
    assert "onnx:timm-dynamo-20.onnx" in shown


def small_model(
    folder: Path,
    body: list[onnx.NodeProto],
    *,
    weights: dict[str, NDArray[Any]] | None = None,
    after: str | None = None,
) -> Path:
    """pixels -> [batch, 64, 48] `embedded` -> `body` -> `pooled` [batch, 48] -> 7 scores."""
    rng = np.random.default_rng(0)
    arrays: dict[str, NDArray[Any]] = {
        "to_tokens": np.array([0, 64, 48]),
        "gamma": np.ones(48, np.float32),
        "beta": np.zeros(48, np.float32),
        "head": rng.standard_normal((48, 7), np.float32),
        **(weights or {}),
    }
    nodes = [
        helper.make_node("Reshape", ["pixels", "to_tokens"], ["tokens"]),
        helper.make_node("LayerNormalization", ["tokens", "gamma", "beta"], ["embedded"]),
        *body,
        helper.make_node("MatMul", ["pooled", "head"], ["scores" if after is None else "raw"]),
        *([] if after is None else [helper.make_node(after, ["raw"], ["scores"])]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 3, 32, 32])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 7])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "small.onnx"
    onnx.save(model, path)
    return path


MEAN = helper.make_node("ReduceMean", ["embedded"], ["pooled"], axes=[1], keepdims=0)


@pytest.mark.parametrize(
    ("body", "weights", "after", "said"),
    [
        (
            [
                helper.make_node("Reshape", ["embedded", "one"], ["flat"]),
                helper.make_node("Slice", ["flat", "start", "end", "axis"], ["pooled"]),
            ],
            {
                "one": np.array([1, 64 * 48]),
                "start": np.array([0]),
                "end": np.array([48]),
                "axis": np.array([1]),
            },
            None,
            "does not run with 3 image\\(s\\).*example batch of 2",
        ),
        (
            [
                helper.make_node("ReduceMean", ["embedded"], ["each"], axes=[1], keepdims=0),
                helper.make_node("ReduceMean", ["each"], ["all"], axes=[0], keepdims=1),
                helper.make_node("Sub", ["each", "all"], ["pooled"]),
            ],
            {},
            None,
            "depends on how many others",
        ),
        ([MEAN], {}, "Softmax", "comes out of a Softmax"),
        ([MEAN], {"head": np.full((48, 7), np.nan, np.float32)}, None, "not finite"),
    ],
    ids=["baked-batch", "mixed-batch", "probabilities", "nan"],
)
def test_a_graph_that_cannot_be_a_classifier_is_refused(
    body: list[onnx.NodeProto],
    weights: dict[str, NDArray[Any]],
    after: str | None,
    said: str,
    tmp_path: Path,
) -> None:
    path = small_model(tmp_path, body, weights=weights, after=after)
    with pytest.raises(ModelError, match=said):
        source_of(path, tmp_path)


def test_probabilities_in_per_cent_are_no_logits_either(tmp_path: Path) -> None:
    model = onnx.load(small_model(tmp_path, [MEAN], after="Softmax"))
    model.graph.node[-1].output[0] = "shares"
    model.graph.node.append(helper.make_node("Mul", ["shares", "hundred"], ["scores"]))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(100), "hundred"))
    onnx.save(model, tmp_path / "percent.onnx")
    with pytest.raises(ModelError, match="comes out of a Softmax"):
        source_of(tmp_path / "percent.onnx", tmp_path)


def test_the_small_model_itself_is_accepted(tmp_path: Path) -> None:
    assert source_of(small_model(tmp_path, [MEAN]), tmp_path).facts.outputs[0].shape == (None, 7)


def test_weights_outside_the_folder_are_refused_before_anything_reads_them(tmp_path: Path) -> None:
    path = small_model(tmp_path, [MEAN])
    model = onnx.load(path)
    (head,) = (tensor for tensor in model.graph.initializer if tensor.name == "head")
    head.ClearField("raw_data")
    head.data_location = TensorProto.EXTERNAL
    head.external_data.add(key="location", value="../secret")
    onnx.save(model, path)
    with pytest.raises(ModelError, match="'head': location '../secret' leaves the model's folder"):
        source_of(path, tmp_path)


def test_external_weights_are_hashed_too(foreign_file: ForeignFile, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(
        onnx.load(foreign_file("timm-torchscript-17")),
        path,
        save_as_external_data=True,
        location="weights.bin",
    )
    source = source_of(path, tmp_path)
    assert set(source.facts.record.sha256) == {"model.onnx", "weights.bin"}
    assert source.facts.variant == tmp_path.name  # "model" says nothing
