"""Weight-only bundles on the ort backend: fused or refused, at the accuracy level asked for."""

from __future__ import annotations

import dataclasses
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.quantize.workbench import calibration
from tests.support.bundles import Exporter
from vit_edge.backends import ort
from vit_edge.backends.ort import packed, version
from vit_edge.backends.ort.session import session_options
from vit_edge.bundle import Bundle, integrity
from vit_edge.errors import BackendError, UsageError

requires = ("torch", "onnx", "onnxscript", "onnxruntime")


@pytest.fixture(scope="module")
def int4_bundle(export_once: Exporter, repository: Path) -> Bundle:
    """A small model in 4 bits, by the command line; few drawn weights hold the limit of int4."""
    photos = str(repository / "vit_edge" / "data" / "photos")
    drawn = ("--variant", "testing", "--checkpoint", "seeded:6", "--max-batch", "4")
    return export_once(*drawn, "--precision", "int4", "--calibration", photos)


@pytest.fixture
def bundle(int4_bundle: Bundle, tmp_path: Path) -> Bundle:
    shutil.copytree(int4_bundle.path, tmp_path / "bundle")
    return Bundle.read(tmp_path / "bundle")


def pixels(bundle: Bundle) -> Any:
    return calibration(4, 3, bundle.manifest.preprocessing).pixels(0, 4)


def test_the_model_is_safe_to_hand_to_a_runtime(int4_bundle: Bundle) -> None:
    integrity.check_model(int4_bundle)


def test_an_engine_holds_matmulnbits_and_no_dequantizelinear(bundle: Bundle) -> None:
    engine = ort.build(bundle)
    graph = onnx.load(engine / "model.onnx", load_external_data=False).graph
    operators = [node.op_type for node in graph.node]
    assert operators.count("MatMulNBits") == 8
    assert "DequantizeLinear" not in operators
    found, expected = ort.load(bundle), ort.load(bundle, engine="never")
    assert found.facts["engine"] == engine.name
    answer = found.run(pixels(bundle))["logits"]
    assert (
        np.abs(answer - expected.run(pixels(bundle))["logits"]).max() <= 1e-5 * np.abs(answer).max()
    )


def test_weights_that_are_not_fused_are_refused(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the optimizer that does it, as in a runtime that has not learnt it yet."""
    real = onnxruntime.InferenceSession

    def unfused(*arguments: Any, **options: Any) -> Any:
        off = ["QDQSelectorActionTransformer"]
        return real(*arguments, **options, disabled_optimizers=off)

    monkeypatch.setattr(onnxruntime, "InferenceSession", unfused)
    with pytest.raises(BackendError, match="fused 0 of 8 DequantizeLinear into MatMulNBits"):
        ort.build(bundle)
    assert list((bundle.path / "engines").iterdir()) == []


def test_each_accuracy_level_has_an_engine_of_its_own(bundle: Bundle) -> None:
    built = {level: ort.build(bundle, accuracy_level=level) for level in (0, 4)}
    assert built[0] != built[4]
    for level, engine in built.items():
        backend = ort.load(bundle, accuracy_level=level)  # type: ignore[arg-type]
        assert backend.facts["engine"] == engine.name
        assert backend.facts["accuracy_level"] == str(level)
        graph = onnx.load(engine / "model.onnx", load_external_data=False).graph
        levels = {
            attribute.i
            for node in graph.node
            for attribute in node.attribute
            if attribute.name == "accuracy_level"
        }
        assert levels == {level}


def test_level_0_computes_in_float_and_level_4_does_not(bundle: Bundle) -> None:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(bundle.model_path), options)
    expected = session.run(["logits"], {bundle.manifest.input.name: pixels(bundle)})[0]

    def off(level: Any) -> float:
        found = ort.load(bundle, accuracy_level=level).run(pixels(bundle))["logits"]
        return float(np.abs(found - expected).max() / np.abs(expected).max())

    assert off(0) < 1e-5
    assert 1e-4 < off(4) < 0.1


def test_level_0_maps_its_packed_weights_and_answers_the_same_to_the_bit(bundle: Bundle) -> None:
    expected = ort.load(bundle, engine="never", accuracy_level=0).run(pixels(bundle))
    linears = 8
    for level, mapped in ((0, linears), (4, 0)):  # level 4 writes into what it would map
        external = packed.external_data(ort.build(bundle, accuracy_level=level) / "model.onnx")
        keys = [key for entry in external.values() for key, _ in packed.blobs(entry).values()]
        assert sum(key.startswith("MatMulNBits") for key in keys) == mapped
    backend = ort.load(bundle, engine="required", accuracy_level=0, arena=False)
    for name, found in backend.run(pixels(bundle)).items():
        np.testing.assert_array_equal(found, expected[name])


def test_a_pickled_backend_keeps_its_accuracy_level(bundle: Bundle) -> None:
    again = pickle.loads(pickle.dumps(ort.load(bundle, accuracy_level=0)))
    assert again.facts["accuracy_level"] == "0"


@pytest.mark.parametrize(
    ("precision", "installed"), [("int8-weights", "1.24.2"), ("int4", "1.22.1")]
)
def test_a_runtime_that_would_expand_the_weights_is_refused(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, precision: str, installed: str
) -> None:
    manifest = dataclasses.replace(bundle.manifest, precision=precision)
    older = dataclasses.replace(bundle, manifest=manifest)
    monkeypatch.setattr(version, "installed_version", lambda: installed)
    for open_it in (ort.load, ort.build):
        with pytest.raises(BackendError, match=f"onnxruntime {installed} would expand {precision}"):
            open_it(older)


def test_a_runtime_too_old_for_the_wide_part_is_refused(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**(bundle.manifest.quantization or {})["settings"], "wide_part": 0.25}
    manifest = dataclasses.replace(bundle.manifest, quantization={"settings": settings})
    monkeypatch.setattr(version, "installed_version", lambda: "1.24.2")
    assert ort.load(bundle).facts["accuracy_level"] == "4"
    with pytest.raises(BackendError, match=r"1\.25 or newer .* \(its wide_part 0\)"):
        ort.load(dataclasses.replace(bundle, manifest=manifest))


@pytest.mark.parametrize("level", [1, 3, -1])
def test_other_accuracy_levels_are_refused(bundle: Bundle, level: Any) -> None:
    with pytest.raises(UsageError, match="accuracy_level must be 0"):
        ort.load(bundle, accuracy_level=level)
    with pytest.raises(UsageError, match="accuracy_level must be 0"):
        ort.build(bundle, accuracy_level=level)


def test_float_bundles_know_nothing_of_accuracy_levels(testing_bundle: Bundle) -> None:
    assert "accuracy_level" not in ort.load(testing_bundle).facts
    rounded = ort.key(testing_bundle, accuracy_level=4)
    assert ort.key(testing_bundle, accuracy_level=0) == rounded


def test_fp8_runs_as_a_simulation_and_says_so(testing_bundle: Bundle) -> None:
    fp8 = dataclasses.replace(
        testing_bundle, manifest=dataclasses.replace(testing_bundle.manifest, precision="fp8")
    )
    options = session_options(onnxruntime, ort.LoadOptions(threads=1), "fp8", optimize=True)
    assert options.get_session_config_entry("session.disable_quant_qdq") == "1"
    backend = ort.OrtBackend(fp8, None, "test", ort.LoadOptions(threads=1))
    assert "rounded" in backend.facts["simulated"]
    assert "simulated" not in ort.load(testing_bundle).facts
