"""Every bundle has its preprocessing as a graph, and none is published with a wrong one."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest

from tests.support.bundles import TESTING, Exporter
from vit_edge import Predictor, export, verify
from vit_edge.answers import Answer
from vit_edge.bundle import Bundle
from vit_edge.bundle.bundle import PREPROCESS_NAME, write_manifest
from vit_edge.errors import IntegrityError, ModelError, ParityError, UsageError
from vit_edge.export import preprocessing as subject
from vit_edge.export.golden_set import golden_files
from vit_edge.graphs import preprocessing as graphs
from vit_edge.images.load import load_image
from vit_edge.images.preprocess import input_from_resized, resized_from_source

requires = ("torch", "onnx", "onnx_ir", "onnxruntime", "onnxscript")


def pixels_of(bundle: Bundle, image: Path) -> np.ndarray[Any, Any]:
    assert bundle.preprocess_path is not None
    session = subject.open_session(bundle.preprocess_path)
    found: np.ndarray[Any, Any] = session.run(None, {"image": np.asarray(load_image(image))})[0]
    return found


def test_a_bundle_makes_its_own_pixels(testing_bundle: Bundle, photos: list[Path]) -> None:
    manifest = testing_bundle.manifest
    for photo in photos[:3]:
        resized = resized_from_source(photo, manifest.preprocessing)[None]
        found = pixels_of(testing_bundle, photo)
        np.testing.assert_array_equal(found, input_from_resized(resized, manifest))


def test_a_bundle_of_uint8_images_does_too(export_once: Exporter, photos: list[Path]) -> None:
    bundle = export_once(*TESTING, "--input", "uint8")
    found = pixels_of(bundle, photos[0])
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(
        found[0], resized_from_source(photos[0], bundle.manifest.preprocessing)
    )


def test_the_gate_says_what_was_found(testing_bundle: Bundle) -> None:
    found = testing_bundle.parity()["preprocessing"]
    assert (found["largest_level"], found["top1_agreement"]) == (0, 1.0)
    assert found["images"] == 9 + 8  # probes and photos
    assert found["allowed_level"] == 1


def faulty(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """Let graphs be written with one fault."""
    honest = graphs.preprocessing_graph

    def written(spec: Any, dtype: Any, opset: int = 13) -> onnx_ir.Model:
        if fault == "BGR":
            model = honest(spec, dtype, opset)
            (first,) = (node for node in model.graph if node.op_type == "Unsqueeze"
                        and node.inputs[0].producer().op_type == "Transpose")  # fmt: skip
            turned = onnx_ir.node("Gather", [first.inputs[0], _backwards(model)], {"axis": 0})
            turned.outputs[0].name = "backwards"
            model.graph.insert_before(first, turned)
            first.replace_input_with(0, turned.outputs[0])
            return model
        if fault == "mean":
            spec = replace(spec, mean=tuple(mean + 0.2 for mean in spec.mean))
        if fault == "no antialias":
            monkeypatch.setitem(graphs._SUPPORT_PX, spec.interpolation, 1e-3 + 0.5)
        return honest(spec, dtype, opset)

    monkeypatch.setattr(subject, "preprocessing_graph", written)


def _backwards(model: onnx_ir.Model) -> onnx_ir.Value:
    from vit_edge.graphs.building import add_constant

    return add_constant(model, "order", np.array([2, 1, 0], np.int64))


@pytest.mark.parametrize("fault", ["BGR", "mean", "no antialias"])
def test_a_wrong_preprocessing_is_not_published(
    testing_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    manifest, stage = testing_bundle.manifest, tmp_path / "stage"
    shutil.copytree(testing_bundle.path, stage)
    faulty(monkeypatch, fault)
    subject.write_preprocessing(manifest, stage)
    with pytest.raises(ParityError, match="levels of 255 apart"):
        subject.check_preprocessing(stage, manifest, golden_files(None), stage)


@pytest.mark.parametrize(("level", "holds"), [(0, True), (200, False)])
def test_one_level_is_judged_by_the_answers(
    testing_bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    level: int,
    holds: bool,
) -> None:
    """A level here and there passes, unless it makes too much noise of the logits."""
    manifest, stage = testing_bundle.manifest, tmp_path / "stage"
    shutil.copytree(testing_bundle.path, stage)
    honest = graphs.preprocessing_graph

    def written(spec: Any, dtype: Any, opset: int = 13) -> onnx_ir.Model:
        """Take one level for the next."""
        proto = onnx_ir.to_proto(honest(spec, dtype, opset))
        (to_float,) = (
            node for node in proto.graph.node
            if node.op_type == "Cast" and node.attribute[0].i == onnx.TensorProto.FLOAT
        )  # fmt: skip
        (scale,) = (node for node in proto.graph.node if node.output[0] == to_float.input[0])
        levels = scale.input[0]
        constant = onnx.numpy_helper.from_array(np.array(level, np.float64), "level")
        proto.graph.initializer.append(constant)
        scale.input[0] = "moved"
        place = list(proto.graph.node).index(scale)
        for node in (
            onnx.helper.make_node("Add", [levels, "one"], ["moved"], name="move"),
            onnx.helper.make_node(
                "Cast", ["same"], ["one"], to=onnx.TensorProto.DOUBLE, name="one"
            ),
            onnx.helper.make_node("Equal", [levels, "level"], ["same"], name="same"),
        ):
            proto.graph.node.insert(place, node)
        return onnx_ir.from_proto(proto)

    monkeypatch.setattr(subject, "preprocessing_graph", written)
    subject.write_preprocessing(manifest, stage)
    if not holds:
        with pytest.raises(ParityError, match="at least 40 dB asked for"):
            subject.check_preprocessing(stage, manifest, golden_files(None), stage)
        return
    found = subject.check_preprocessing(stage, manifest, golden_files(None), stage)
    assert found["largest_level"] == 1
    assert 40 < found["sqnr_db"] < 60


def test_verify_reads_the_file_before_a_runtime_does(bundle: Bundle) -> None:
    assert bundle.preprocess_path is not None
    data = bundle.preprocess_path.read_bytes()
    bundle.preprocess_path.write_bytes(data.replace(b"MatMulInteger", b"MatMulInteges"))
    with pytest.raises(IntegrityError, match=PREPROCESS_NAME):
        verify(bundle.path)
    bundle.preprocess_path.write_bytes(data[:-100])
    write_manifest(bundle.path, bundle.manifest)
    with pytest.raises(ModelError, match=PREPROCESS_NAME):
        verify(bundle.path)


def test_a_bundle_without_the_file_still_opens(bundle: Bundle) -> None:
    assert bundle.preprocess_path is not None
    bundle.preprocess_path.unlink()
    write_manifest(bundle.path, bundle.manifest)
    parity = bundle.path / "parity.json"
    parity.write_text(
        json.dumps({k: v for k, v in bundle.parity().items() if k != "preprocessing"})
    )
    write_manifest(bundle.path, bundle.manifest)
    opened = verify(bundle.path)
    assert opened.preprocess_path is None


@pytest.mark.parametrize(
    "options",
    [(), ("--input", "uint8"), ("--precision", "int8-weights", "--calibration", "random")],
)
def test_one_graph_answers_images_as_predictor_does(
    export_once: Exporter, photos: list[Path], options: tuple[str, ...]
) -> None:
    bundle = export_once(*TESTING, "--include-preprocessing", *options)
    assert bundle.end_to_end_path is not None
    session = subject.open_session(bundle.end_to_end_path)
    (image,) = session.get_inputs()
    assert (image.name, image.type, image.shape) == (
        "image", "tensor(uint8)", ["height", "width", 3],
    )  # fmt: skip
    with Predictor(bundle) as predictor:
        for photo, answer in zip(photos, predictor.run(photos, ["logits"]), strict=True):
            assert isinstance(answer, Answer)
            (logits,) = session.run(["logits"], {"image": np.asarray(load_image(photo))})
            assert logits.shape == (1, len(bundle.labels))
            np.testing.assert_allclose(logits[0], answer.outputs["logits"], rtol=1e-4, atol=1e-4)
    assert bundle.parity()["end_to_end"]["images"] == 9


def test_one_graph_that_answers_otherwise_is_not_published(
    testing_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = tmp_path / "stage"
    shutil.copytree(testing_bundle.path, stage)
    faulty(monkeypatch, "BGR")
    with pytest.raises(ModelError, match="answers otherwise"):
        subject.write_end_to_end(stage, testing_bundle.manifest)


def test_rounding_explains_what_a_low_precision_answers_otherwise_and_a_fault_does_not(
    export_once: Exporter, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sum in another order decides how the kernel rounds an input to 8 bits."""
    given = ("--precision", "int4", "--calibration", str(photos[0].parent))
    bundle = export_once("--checkpoint", "embedded", "--include-preprocessing", *given)
    found = bundle.parity()["end_to_end"]
    assert found["allowed_relative"] is None
    assert found["sqnr_centred_db"] >= found["allowed_sqnr_centred_db"]
    stage = tmp_path / "stage"
    shutil.copytree(bundle.path, stage)
    faulty(monkeypatch, "BGR")
    with pytest.raises(ModelError, match="answers otherwise"):
        subject.write_end_to_end(stage, bundle.manifest)


@pytest.mark.parametrize("recipe", ["gpu-fp32", "gpu-int8", "cpu-bf16", "orin-nano"])
def test_graphs_that_a_cpu_does_not_run_stay_without(tmp_path: Path, recipe: str) -> None:
    with pytest.raises(UsageError, match="include_preprocessing: .* makes a graph"):
        export("seeded:0", variant="testing", recipe=recipe, include_preprocessing=True,
               calibration="random", out=tmp_path / "b")  # fmt: skip
