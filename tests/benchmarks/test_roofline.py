"""What a machine reaches: kernels that are right, rates that are plausible, shares that add up."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import limits
import numpy as np
import onnx
import pytest
from roofline import kernels, peaks, shares
from roofline.peaks import Effort
from roofline.runtimes import RUNTIMES

from tests.bench.planted import process
from tests.bench.report_runs import made_entry, made_run, typed, typed_entry
from vit_edge.bench.results import results
from vit_edge.bench.results.runs import Run
from vit_edge.bench.run import scenarios
from vit_edge.bench.run.operations import multiply_adds
from vit_edge.errors import InputError, UsageError
from vit_edge.strict import json_from_record
from vit_edge.variants import variant

requires = ("onnx", "onnxruntime", "openvino")

TINY = Effort(at_least_s=0.01, samples=3, sizes=((16, 32, 8), (64, 64, 64)), read_bytes=1 << 20)


def ran(model: bytes, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    answer: np.ndarray[Any, Any] = session.run(None, {kernels.INPUT: x})[0]
    return answer


def constant(model: bytes, name: str) -> np.ndarray[Any, Any]:
    (found,) = [t for t in onnx.load_from_string(model).graph.initializer if t.name == name]
    array: np.ndarray[Any, Any] = onnx.numpy_helper.to_array(found)
    return array


@pytest.mark.parametrize(
    "model", [kernels.product(3, 5, 7), kernels.quantized_product(3, 5, 7), kernels.largest(3, 5)]
)
def test_kernels_are_sound_onnx_files(model: bytes) -> None:
    onnx.checker.check_model(onnx.load_from_string(model), full_check=True)


def test_a_product_is_what_numpy_multiplies() -> None:
    model = kernels.product(3, 5, 7)
    x = np.random.default_rng(1).random((3, 5), np.float32)
    np.testing.assert_allclose(ran(model, x), x @ constant(model, "w"), rtol=1e-5)


def test_a_quantized_product_is_that_of_the_rounded_numbers() -> None:
    model = kernels.quantized_product(3, 5, 7)
    x = np.random.default_rng(1).random((3, 5), np.float32)
    rounded = np.round(x * 255) / 255
    expected = rounded @ (constant(model, "w").astype(np.float32) / 255)
    np.testing.assert_allclose(ran(model, x), expected, rtol=1e-4, atol=1e-4)


def test_a_quantized_product_is_fused_and_multiplies_integers(tmp_path: Path) -> None:
    """Otherwise the limit would be that of float32, and shares of it too large."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    model = kernels.quantized_product(64, 64, 64)
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    optimized = onnx.load(tmp_path / "optimized.onnx")
    operators = {node.op_type for node in optimized.graph.node}
    assert "MatMulIntegerToFloat" in operators
    assert "DequantizeLinear" not in operators


def test_the_largest_of_each_row_is_found() -> None:
    x = np.random.default_rng(1).random((3, 5), np.float32)
    np.testing.assert_array_equal(ran(kernels.largest(3, 5), x), x.max(axis=1, keepdims=True))


@pytest.mark.parametrize("name", list(RUNTIMES))
def test_a_runtime_is_measured_in_every_kind_it_has(name: str) -> None:
    found = peaks.peaks(name, TINY)
    assert [peak.kind for peak in found] == list(RUNTIMES[name]().kinds)
    for peak in found:
        assert peak.per_second > 1e6
        assert len(peak.latencies_ms) >= TINY.samples
        assert peak.size in TINY.sizes or peak.kind == "read"


@pytest.mark.parametrize(("small_ms", "best"), [(1.0, (64, 64, 64)), (1e-3, (16, 32, 8))])
def test_the_size_of_the_best_rate_is_kept(
    monkeypatch: pytest.MonkeyPatch, small_ms: float, best: tuple[int, ...]
) -> None:
    """The times are planted: 64 times the work in the same time, or in a thousand times it."""

    def timed(query: scenarios.Query, limits: scenarios.Limits) -> tuple[list[float], float]:
        query()
        return [next(times)] * limits.samples, 1.0

    times = itertools.cycle([small_ms, 1.0])
    monkeypatch.setattr(scenarios, "timed", timed)
    products = [peak for peak in peaks.peaks("ort", TINY) if peak.kind != "read"]
    assert {peak.size for peak in products} == {best}


def test_a_roofline_is_a_run_beside_others_and_compare_does_not_take_it_for_one(
    tmp_path: Path,
) -> None:
    found = peaks.measure(["ort"], TINY)
    assert found.roofline is not None
    reached = found.roofline.limits
    assert reached["bf16"] is None
    assert reached["fp32"] == next(
        peak.per_second for peak in found.roofline.peaks if peak.kind == "fp32"
    )
    with results.appending(tmp_path / "r.json") as save:
        save(made_run(made_entry()))
    with results.appending(tmp_path / "r.json") as save:
        save(found)
    assert json_from_record(results.read(tmp_path / "r.json")[1]) == json.loads(
        json.dumps(json_from_record(found))
    )
    assert results.last(tmp_path / "r.json").configurations == (typed_entry(made_entry()),)
    assert ("bf16", "-", "none has it", "", "", "") in limits.rows(found.roofline)


def test_a_backend_without_kernels_is_refused() -> None:
    with pytest.raises(UsageError, match="ort, openvino"):
        peaks.measure(["trt"], TINY)


def test_the_command_line_prints_limits_and_shares(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = peaks.measure(["ort"], TINY)
    monkeypatch.setattr(peaks, "measure", lambda names, effort, command: found)
    with results.appending(tmp_path / "r.json") as save:
        save(made_run(made_entry("fp32")) | {"facts": found.facts})
    out = tmp_path / "roofline.json"
    arguments = ["--backend", "ort", "--out", str(out)]
    assert limits.main([*arguments, "--share-of", str(tmp_path / "r.json")]) == 0
    said = capsys.readouterr().out
    assert "GMAC/s" in said
    assert made_entry("fp32")["name"] in said
    assert len(results.read(out)) == 1


@pytest.mark.parametrize("fault", ["another machine", "an unwritable folder"])
def test_what_would_be_refused_at_the_end_is_refused_before_anything_is_measured(
    fault: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peaks, "measure", lambda *_: pytest.fail("it measured"))
    with results.appending(tmp_path / "r.json") as save:
        save(made_run(made_entry("fp32"), cpu="an abacus"))
    more = {
        "another machine": ["--share-of", str(tmp_path / "r.json")],
        "an unwritable folder": ["--out", "/proc/r.json"],  # not even by root
    }[fault]
    assert limits.main(["--backend", "ort", *more]) == 3
    said = capsys.readouterr().err
    assert ("cpu: an abacus against" if fault == "another machine" else "/proc") in said


# Multiply-adds, and shares


@pytest.mark.parametrize(
    ("name", "published"),
    # Multiply-adds in units of 1e9 that timm's benchmark tables give (GMACs, 224 and 384 pixels).
    [("tiny-patch16-224", 1.26), ("small-patch16-224", 4.61), ("base-patch16-224", 17.58),
     ("base-patch16-384", 55.5), ("large-patch16-224", 61.6)],
)  # fmt: skip
def test_multiply_adds_are_those_that_are_published(name: str, published: float) -> None:
    # Tables differ in whether the products of attention count: 4 % of base, 14 % of tiny.
    assert multiply_adds(variant(name).architecture) / 1e9 == pytest.approx(published, rel=0.15)


@pytest.mark.parametrize(
    ("name", "published"),  # by the README of yitu-opensource/T2T-ViT
    [("t2t-vit-7", 1.1), ("t2t-vit-10", 1.5), ("t2t-vit-12", 1.8), ("t2t-vit-14", 4.8),
     ("t2t-vit-19", 8.5), ("t2t-vit-t-14", 6.1), ("t2t-vit-t-24", 15.0)],
)  # fmt: skip
def test_those_of_overlapping_windows_are_too(name: str, published: float) -> None:
    assert multiply_adds(variant(name).architecture) / 1e9 == pytest.approx(published, abs=0.05)


def test_multiply_adds_are_counted_layer_by_layer() -> None:
    shape = variant("testing").architecture  # 17 tokens, width 64, 2 blocks, MLP of 128
    block = 17 * (64 * 192 + 64 * 64 + 2 * 64 * 128) + 2 * 17 * 17 * 64
    assert multiply_adds(shape) == 2 * block + 16 * 64 * 3 * 256 + 64 * 10
    clip = dataclasses.replace(shape, projection_dim=24, logit_scale=100.0)
    assert multiply_adds(clip) == 2 * block + 16 * 64 * 3 * 256 + 64 * 24 + 24 * 10


def entry(precision: str = "fp32", **facts: str) -> dict[str, Any]:
    made = made_entry()
    made["bundle"] |= {"precision": precision, "model_bytes": 1000, "multiply_adds": 500}
    return made | {
        "name": "base ort", "backend": "ort", "batch": 4, "stage": "model", "failed": None,
        "facts": {"provider": "CPUExecutionProvider", **facts},
        "processes": [process([2.0, 2.0, 50.0]), process([2.0])],
    }  # fmt: skip


def limited(**limits: float | None) -> Run:
    every = {"fp32": 4e6, "bf16": None, "int8": 16e6, "read": 1e6, **limits}
    limits_of = {"facts": {"cpu": "a"}, "roofline": {"peaks": [], "limits": every}}
    return typed(made_run() | limits_of)


def run_of(*entries: dict[str, Any], cpu: str = "a") -> Run:
    return typed(made_run(*entries) | {"facts": {"cpu": cpu}})


def test_a_share_is_the_rate_over_the_limit_of_its_precision() -> None:
    run = run_of(entry(), entry("int8"), entry("fp16"))
    single, int8, half = shares.shares_of(run, limited())
    assert single.multiply_adds_per_s == 500 * 4 / 2e-3
    assert (single.kind, single.of_products) == ("fp32", 0.25)
    assert (int8.kind, int8.of_products) == ("int8", 1 / 16)
    assert single.of_bandwidth == 1000 / 2e-3 / 1e6
    assert (half.kind, half.of_products) == (None, None)
    assert len(shares.rows([single, int8, half])) == 4


@pytest.mark.parametrize(
    ("precision", "facts", "kind"),
    [
        ("fp32", {}, "fp32"),
        ("fp32", {"execution_precision": "f32"}, "fp32"),
        ("fp32", {"execution_precision": "bf16-products"}, "bf16"),
        ("int8", {"execution_precision": "bf16"}, "int8"),
        ("int4", {"accuracy_level": "4"}, "int8"),
        ("int4", {"accuracy_level": "0"}, "fp32"),
        ("fp8", {}, None),
    ],
)
def test_the_limit_is_that_of_what_is_multiplied(
    precision: str, facts: dict[str, str], kind: str | None
) -> None:
    assert shares.product_kind(typed_entry(entry(precision, **facts))) == kind


def test_what_ran_on_a_gpu_or_was_not_measured_has_no_share_of_a_cpu() -> None:
    on_gpu = entry(provider="CUDAExecutionProvider")
    failed = entry() | {"failed": "it died", "processes": []}
    whole = entry() | {"stage": "end-to-end"}
    run = run_of(on_gpu, failed, whole)
    assert shares.shares_of(run, limited()) == []


def test_a_roofline_of_another_machine_is_refused() -> None:
    run = run_of(entry(), cpu="b")
    with pytest.raises(InputError, match="cpu: b against a"):
        shares.shares_of(run, limited())
