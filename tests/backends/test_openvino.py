"""OpenVINO: what was asked for or an error, engines that are ours alone, and nothing reported."""

from __future__ import annotations

import dataclasses
import gc
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.bundles import TESTING, Exporter, trained_on_cifar10
from vit_edge import Predictor
from vit_edge.backends import eager, openvino, ort
from vit_edge.backends.openvino import device as devices
from vit_edge.backends.openvino import runtime
from vit_edge.backends.openvino.options import CAPABILITY, Options, properties
from vit_edge.backends.openvino.runtime import imported
from vit_edge.bundle import Bundle
from vit_edge.bundle.bundle import write_manifest
from vit_edge.errors import BackendError, EngineError, IntegrityError, ModelError, UsageError
from vit_edge.parity import __main__ as parity

requires = ("torch", "onnx", "onnxscript", "onnxruntime", "openvino")

CAPABILITIES = imported().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
needs_bf16 = pytest.mark.skipif("BF16" not in CAPABILITIES, reason="this CPU has no BF16")


@pytest.fixture(scope="module")
def lowered(export_once: Exporter) -> Callable[[str], Bundle]:
    """Bundles of the testing variant in another precision."""
    few = ("--calibration", "random", "--calibration-images", "8")
    # of 8 images of noise one class more or less says nothing
    goal = ("--parity-target", "sqnr_centred_db=20")
    return lambda precision: export_once(*TESTING, "--precision", precision, *few, *goal)


def pixels(bundle: Bundle, count: int = 4) -> Any:
    shape = bundle.manifest.input.shape[1:]
    return np.random.default_rng(0).standard_normal((count, *shape)).astype(np.float32)


def distance(found: Any, expected: Any) -> float:
    """The largest difference, against the largest value."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("version", ["2025.4.1", "2026.2.1"])
def test_a_version_that_answers_wrong_is_not_available(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert openvino.available().ok
    monkeypatch.setattr(runtime, "version", lambda: version)
    found = openvino.available()
    assert not found.ok
    assert version in found.reason
    assert "2026.3 is needed: pip install" in found.reason


# What runs is what was asked for


def test_float32_is_float32_also_where_openvino_would_take_bfloat16(testing_bundle: Bundle) -> None:
    backend = openvino.load(testing_bundle)
    assert backend.facts["execution_precision"] == "f32"
    assert "bf16" not in backend.facts["products"]
    expected = eager.load(testing_bundle, dtype="float64").run(pixels(testing_bundle))["logits"]
    assert distance(backend.run(pixels(testing_bundle))["logits"], expected) <= 1e-5


@needs_bf16
def test_bfloat16_runs_where_it_is_asked_for_and_is_said(testing_bundle: Bundle) -> None:
    backend = openvino.load(testing_bundle, execution_precision="bf16")
    assert backend.facts["execution_precision"] == "bf16"
    assert "bf16" in backend.facts["products"]
    expected = openvino.load(testing_bundle).run(pixels(testing_bundle))["logits"]
    found = backend.run(pixels(testing_bundle))["logits"]
    assert 1e-4 < distance(found, expected) < 0.1  # 8 bits of mantissa through two blocks


@pytest.mark.skipif("FP16" in CAPABILITIES, reason="this CPU has FP16")
def test_a_precision_that_the_cpu_lacks_is_refused_with_those_it_has(
    testing_bundle: Bundle,
) -> None:
    with pytest.raises(BackendError, match=r"does not compute in f16: OpenVINO lists .*FP32.*f32"):
        openvino.load(testing_bundle, execution_precision="f16")
    with pytest.raises(BackendError, match="f16"):
        openvino.build(testing_bundle, execution_precision="f16")


@pytest.mark.skipif("FP16" in CAPABILITIES, reason="this CPU has FP16")
def test_a_precision_that_openvino_changes_unasked_is_an_error(
    testing_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU without FP16 it takes f16 and compiles for another type, without a word."""
    monkeypatch.setitem(CAPABILITY, "f16", "FP32")
    with pytest.raises(BackendError, match=r"for execution_precision f16, got (bf16|f32)"):
        openvino.load(testing_bundle, execution_precision="f16")


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [({"threads": 5000}, "threads 5000"), ({"mode": "throughput", "streams": 5000}, "streams")],
)
def test_more_threads_or_streams_than_openvino_gives_are_an_error(
    testing_bundle: Bundle, arguments: dict[str, Any], asked: str
) -> None:
    with pytest.raises(BackendError, match=f"{asked}.*, got "):
        openvino.load(testing_bundle, **arguments)


@pytest.mark.parametrize("device", ["GPU.7", "NPU.7", "TPU", "AUTO", "cpu", ""])
def test_a_device_that_is_not_there_is_an_error_with_those_that_are(
    testing_bundle: Bundle, device: str
) -> None:
    with pytest.raises(BackendError, match=r"has no device .* here, only CPU"):
        openvino.load(testing_bundle, device=device)


class CpuWithoutBf16:
    """As OpenVINO describes a CPU with AVX2 only."""

    def get_property(self, device: str, name: str) -> list[str]:
        assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
        return ["FP32", "INT8", "BIN", "EXPORT_IMPORT"]


def test_a_bfloat16_bundle_is_refused_where_it_would_run_in_float32(bundle: Bundle) -> None:
    core: Any = CpuWithoutBf16()
    devices.check_device(core, bundle, Options())
    write_manifest(bundle.path, dataclasses.replace(bundle.manifest, precision="bf16"))
    with pytest.raises(BackendError, match="has no BF16"):
        devices.check_device(core, Bundle.read(bundle.path), Options())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"threads": 0}, ["threads"]),
        ({"mode": "fast"}, ["mode"]),
        ({"execution_precision": "fp32"}, ["execution_precision", "f32, bf16, bf16-products, f16"]),
        ({"streams": 2}, ["throughput"]),
        ({"device": "GPU", "threads": 1}, ["threads"]),
        ({"engine": "yes"}, ["engine"]),
        ({"accuracy_level": 3}, ["accuracy_level"]),
        ({"threads": -1, "mode": "x", "accuracy_level": 9}, ["threads", "mode", "accuracy_level"]),
    ],
)
def test_wrong_options_are_refused_all_at_once(
    testing_bundle: Bundle, arguments: dict[str, Any], named: list[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        openvino.load(testing_bundle, **arguments)
    assert all(word in str(caught.value) for word in named)


# Modes


def test_throughput_mode_answers_in_order_whatever_the_streams(testing_bundle: Bundle) -> None:
    expected = openvino.load(testing_bundle).run(pixels(testing_bundle))
    for streams in (None, 1):
        backend = openvino.load(testing_bundle, mode="throughput", streams=streams)
        assert backend.facts["images_at_once"] == "1"
        for count in (1, 2, 3, 4):
            found = backend.run(pixels(testing_bundle, count))
            for name, values in found.items():
                assert distance(values, expected[name][:count]) <= 5e-6


def test_a_device_of_static_shapes_gets_images_one_by_one(
    testing_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As NPUs do, which there is none of here: the CPU stands in."""
    monkeypatch.setattr(Options, "static", True)
    backend = openvino.load(testing_bundle, engine="never")
    assert backend._opened is not None
    assert backend._opened.model.input(0).shape[0] == 1
    assert backend.facts["images_at_once"] == "1"
    found = backend.run(pixels(testing_bundle, 3))["logits"]
    monkeypatch.undo()
    expected = openvino.load(testing_bundle).run(pixels(testing_bundle, 3))["logits"]
    assert distance(found, expected) <= 5e-6


@pytest.mark.parametrize("mode", ["latency", "throughput"])
def test_threads_get_their_own_answers(testing_bundle: Bundle, mode: Any) -> None:
    backend = openvino.load(testing_bundle, mode=mode)
    everything = pixels(testing_bundle)
    expected = backend.run(everything)["logits"]
    turns = [np.roll(np.arange(4), turn)[: 1 + turn % 4] for turn in range(40)]
    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(lambda rows: backend.run(everything[rows])["logits"], turns)
        for rows, found in zip(turns, answers, strict=True):
            assert distance(found, expected[rows]) <= 5e-6


def test_only_configurations_that_can_run_here_are_tried(testing_bundle: Bundle) -> None:
    for options in openvino.configurations(testing_bundle):
        module: Any = openvino
        backend = module.load(testing_bundle, **options)
        assert backend.run(pixels(testing_bundle, 1))["logits"].shape[0] == 1
        own = {name: options[name] for name in options if name in openvino.BUILD_OPTIONS}
        assert module.find(testing_bundle, **own).path is None


# Precisions of the bundle


def test_an_int8_bundle_multiplies_integers_and_answers_as_onnx_runtime(
    lowered: Callable[[str], Bundle],
) -> None:
    bundle = lowered("int8")
    backend = openvino.load(bundle)
    quantized = [entry for entry in _linears(bundle) if entry["quantized"]]
    products = [part.split() for part in backend.facts["products"].split(", ")]
    integer = sum(int(count) for count, name in products if name in ("u8", "i8"))
    assert integer == len(quantized) > 0
    expected = ort.load(bundle).run(pixels(bundle))["logits"]
    assert distance(backend.run(pixels(bundle))["logits"], expected) <= 1e-5


def _linears(bundle: Bundle) -> list[dict[str, Any]]:
    record = bundle.manifest.quantization
    assert record is not None
    return list(record["linears"])


@pytest.mark.parametrize("level", [0, 4])
def test_an_accuracy_level_means_what_it_means_to_onnx_runtime(
    lowered: Callable[[str], Bundle], level: Any
) -> None:
    bundle = lowered("int8-weights")
    backend = openvino.load(bundle, accuracy_level=level)
    assert backend.facts["accuracy_level"] == str(level)
    found = backend.run(pixels(bundle))["logits"]
    same, other = (
        ort.load(bundle, accuracy_level=each).run(pixels(bundle))["logits"]
        for each in (level, 4 - level)
    )
    assert distance(found, same) <= 1e-5
    assert distance(found, other) > 1e-3  # or the test would see no difference


@needs_bf16
def test_a_bfloat16_bundle_runs_its_products_in_bfloat16(
    lowered: Callable[[str], Bundle], testing_bundle: Bundle
) -> None:
    bundle = lowered("bf16")
    backend = openvino.load(bundle)
    assert backend.facts["execution_precision"] == "f32"
    assert "bf16" in backend.facts["products"]
    exact = openvino.load(testing_bundle).run(pixels(bundle))["logits"]
    assert 1e-4 < distance(backend.run(pixels(bundle))["logits"], exact) < 0.1


def test_a_float16_bundle_runs(lowered: Callable[[str], Bundle], testing_bundle: Bundle) -> None:
    bundle = lowered("fp16")
    exact = openvino.load(testing_bundle).run(pixels(bundle))["logits"]
    found = openvino.load(bundle).run(pixels(bundle))["logits"]
    assert distance(found, exact) < 5e-3  # 11 bits of mantissa


def test_golden_answers_hold(testing_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert parity.main([str(testing_bundle.path), "--backend", "openvino"]) == 0
    assert "parity holds" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("outliers", [False, True])
def test_golden_answers_of_trained_weights_hold(
    shared_data: Path, tmp_path: Path, export_once: Exporter, outliers: bool, precision: str
) -> None:
    """Without outliers and an engine: tests/parity/test_healthy.py."""
    arguments = trained_on_cifar10(precision, shared_data)
    if outliers:
        source = f"hf:{shared_data / 'checkpoints' / 'vit-cifar10-outliers' / 'hf'}"
        arguments = ("--checkpoint", source, "--precision", precision, "--max-batch", "8")
    if outliers and precision == "int8":
        images = str(shared_data / "images" / "cifar10" / "calibration")
        arguments += ("--calibration", images, "--calibration-images", "32")
        arguments += ("--parity-target", "top1_agreement=0.9")  # of 16 images: the gate is not it
        # what stays float is found from one image: what is quantized is as hard for OpenVINO
        arguments += ("--set", "sensitivity_images=1")
    out = shutil.copytree(export_once(*arguments).path, tmp_path / "bundle")
    assert not outliers or parity.main([str(out), "--backend", "openvino"]) == 0
    openvino.build(Bundle.read(out))
    assert parity.main([str(out), "--backend", "openvino"]) == 0


# Engines


def test_a_built_engine_answers_like_the_model_and_is_used_by_itself(bundle: Bundle) -> None:
    plain = openvino.load(bundle)
    engine = openvino.build(bundle)
    assert engine.parent == bundle.path / "engines"
    assert openvino.find(bundle).path == engine
    built = openvino.load(bundle)
    assert built.facts["engine"] == engine.name
    assert {**built.facts, "engine": ""} == {**plain.facts, "engine": ""}
    expected, found = plain.run(pixels(bundle)), built.run(pixels(bundle))
    for name, values in expected.items():
        assert distance(found[name], values) <= 2e-6
    assert openvino.load(bundle, engine="never").facts["engine"].startswith("none")


def test_weights_of_an_engine_are_mapped_until_it_is_closed(bundle: Bundle) -> None:
    engine = openvino.build(bundle)
    backend = openvino.load(bundle, engine="required")
    backend.run(pixels(bundle))
    maps = Path("/proc/self/maps")
    assert str(engine / "model.blob") in maps.read_text()
    backend.close()
    gc.collect()
    assert str(engine / "model.blob") not in maps.read_text()
    with pytest.raises(UsageError, match="closed"):
        backend.run(pixels(bundle))


def test_a_run_that_is_under_way_survives_closing(bundle: Bundle) -> None:
    openvino.build(bundle)
    for _ in range(5):
        backend = openvino.load(bundle, engine="required")
        expected = backend.run(pixels(bundle))["logits"]
        with ThreadPoolExecutor(2) as pool:
            runs = [pool.submit(backend.run, pixels(bundle)) for _ in range(6)]
            runs[0].result()
            backend.close()
            for run in runs:
                error = run.exception()
                assert error is None or isinstance(error, UsageError)
                if error is None:
                    assert distance(run.result()["logits"], expected) <= 5e-6


def test_an_engine_is_of_one_mode_for_any_number_of_threads_and_streams(bundle: Bundle) -> None:
    """Throughput takes images one by one, and its graph is made for that."""
    engine = openvino.build(bundle)
    expected = openvino.load(bundle, engine="never").run(pixels(bundle))["logits"]
    with pytest.raises(EngineError, match=r"build\(bundle, mode='throughput'\)"):
        openvino.load(bundle, engine="required", mode="throughput")
    for_streams = openvino.build(bundle, mode="throughput")
    assert for_streams != engine
    choices: tuple[tuple[Path, dict[str, Any]], ...] = (
        (engine, {"threads": 1}),
        (for_streams, {"mode": "throughput"}),
        (for_streams, {"mode": "throughput", "streams": 1, "threads": 1}),
    )
    for used, arguments in choices:
        backend = openvino.load(bundle, engine="required", **arguments)
        assert backend.facts["engine"] == used.name
        assert distance(backend.run(pixels(bundle))["logits"], expected) <= 5e-6


@needs_bf16
def test_an_engine_of_another_precision_is_not_taken(bundle: Bundle) -> None:
    openvino.build(bundle, execution_precision="bf16")
    with pytest.raises(EngineError, match="another model, runtime or machine"):
        openvino.load(bundle, engine="required")
    built = openvino.load(bundle, engine="required", execution_precision="bf16")
    assert built.facts["execution_precision"] == "bf16"
    assert "bf16" in built.facts["products"]


def test_a_tampered_engine_is_never_run(bundle: Bundle) -> None:
    blob = openvino.build(bundle) / "model.blob"
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    before = blob.stat()
    with blob.open("r+b") as file:
        file.write(data)
    os.utime(blob, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(EngineError, match="changed since"):
        openvino.load(bundle, engine="required")


def test_an_engine_that_came_with_a_bundle_is_never_run(bundle: Bundle, tmp_path: Path) -> None:
    openvino.build(bundle)
    shutil.copytree(bundle.path, tmp_path / "shipped")
    with pytest.raises(EngineError, match="was not built here"):
        openvino.load(Bundle.read(tmp_path / "shipped"), engine="required")


# Bad bundles


@pytest.mark.parametrize("content", [b"", b"\xff" * 64])
def test_a_changed_model_is_refused_before_the_runtime_sees_it(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(devices, "compile_model", lambda *_: pytest.fail("parsed"))
    bundle.model_path.write_bytes(content)
    with pytest.raises((IntegrityError, ModelError)):
        openvino.load(bundle)
    write_manifest(bundle.path, bundle.manifest)  # even with a manifest that agrees with it
    with pytest.raises(ModelError):
        openvino.load(Bundle.read(bundle.path))


def test_what_openvino_says_of_a_model_it_refuses_reaches_the_user(bundle: Bundle) -> None:
    import onnx

    model = onnx.load(bundle.model_path)
    node = next(node for node in model.graph.node if node.op_type == "MatMul")
    node.op_type = "Det"  # in ONNX's standard, unknown to OpenVINO, and of one input
    del node.input[1]
    onnx.save(model, bundle.model_path)
    with pytest.raises(BackendError, match="(?s)OpenVINO .* refuses it: .*Det"):
        devices.compile_model(imported().Core(), bundle, Options())


# Processes


def test_a_pickled_backend_finds_its_bundle_and_engine_from_anywhere(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = openvino.build(bundle, mode="throughput")
    monkeypatch.chdir(bundle.path.parent)
    data = pickle.dumps(openvino.load(Bundle.read(bundle.path.name), threads=1, mode="throughput"))
    monkeypatch.chdir("/")
    facts = pickle.loads(data).facts
    assert (facts["threads"], facts["mode"], facts["engine"]) == ("1", "throughput", engine.name)


def _label_in_child(predictor: Predictor, photo: Path, queue: Any) -> None:
    queue.put(predictor.predict(photo).index)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_another_process_may_use_a_predictor_on_it(
    method: str, testing_bundle: Bundle, photos: list[Path]
) -> None:
    predictor = Predictor(testing_bundle, "openvino")
    expected = predictor.predict(photos[0]).index
    context: Any = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=_label_in_child, args=(predictor, photos[0], queue))
    child.start()
    assert queue.get(timeout=60) == expected
    child.join()
    assert child.exitcode == 0


def run_python(code: str, home: Path, *arguments: str) -> str:
    """Run code where nobody has opted out of anything; return what it printed."""
    in_ci = ("CI", "TF_BUILD", "JENKINS_URL")  # in which openvino reports nothing either
    kept = {name: value for name, value in os.environ.items() if name not in in_ci}
    environment = {**kept, "HOME": str(home), "XDG_STATE_HOME": str(home / "state")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nothing_is_reported_to_anybody_nor_printed(testing_bundle: Bundle, tmp_path: Path) -> None:
    code = """
import sys
from vit_edge import Bundle
from vit_edge.backends import openvino
bundle = Bundle.read(sys.argv[1])
assert "openvino" not in sys.modules
openvino.load(bundle)
assert "openvino" in sys.modules
assert not [name for name in sys.modules if name.startswith("openvino_telemetry")]
"""
    assert run_python(code, tmp_path, str(testing_bundle.path)) == ""
    assert {path.name for path in tmp_path.iterdir()} <= {"state"}


def test_an_openvino_that_was_imported_before_is_left_alone(tmp_path: Path) -> None:
    code = """
import sys, types
sys.modules["openvino_telemetry"] = standing = types.ModuleType("openvino_telemetry")
sys.modules["openvino"] = types.ModuleType("openvino")
from vit_edge.backends.openvino import runtime
from vit_edge.backends.openvino.runtime import imported
assert imported() is sys.modules["openvino"]
assert sys.modules["openvino_telemetry"] is standing
"""
    run_python(code, tmp_path)


def test_what_openvino_is_told_names_the_precision_always(testing_bundle: Bundle) -> None:
    for options in (Options(), Options(device="GPU"), Options(mode="throughput")):
        assert properties(testing_bundle, options)["INFERENCE_PRECISION_HINT"] == "f32"
    assert "INFERENCE_NUM_THREADS" not in properties(testing_bundle, Options(device="GPU"))
