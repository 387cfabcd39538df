"""The graph that OpenVINO is given instead: the same answers, and no other products than said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.contracts.backend import check_contract
from tests.support.bundles import TESTING, Exporter
from vit_edge.backends import openvino
from vit_edge.backends.openvino import device as devices
from vit_edge.backends.openvino.options import Options
from vit_edge.backends.openvino.rewrite import round_products, shape_of, split_tokens
from vit_edge.backends.openvino.runtime import imported
from vit_edge.bundle import Bundle
from vit_edge.errors import BackendError, EngineError, UsageError

requires = ("torch", "onnx", "onnxscript", "onnxruntime", "openvino")

TOKENS = 17  # of the testing variant: 16 patches and the class token

needs_bf16 = pytest.mark.skipif(
    "BF16" not in imported().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"),
    reason="this CPU has no BF16",
)


@pytest.fixture(scope="module")
def exported(export_once: Exporter) -> Callable[..., Bundle]:
    """Bundles of the testing variant by the options of export."""
    return lambda *options: export_once(*TESTING, *options)


# of 8 images of noise one class more or less says nothing
CALIBRATION = (
    *("--calibration", "random", "--calibration-images", "8"),
    *("--parity-target", "sqnr_centred_db=20"),
)
INT8 = ("--precision", "int8", *CALIBRATION)
WEIGHTS = ("--precision", "int8-weights", *CALIBRATION)


def static_model(bundle: Bundle) -> Any:
    model = imported().Core().read_model(str(bundle.model_path))
    model.reshape([1, *bundle.manifest.input.shape[1:]])
    return model


def answers(model: Any, count: int = 3) -> dict[str, Any]:
    properties = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 2}
    compiled = imported().Core().compile_model(model, "CPU", properties)
    random = np.random.default_rng(0)
    shape = list(model.input(0).shape)
    images = [random.standard_normal(shape).astype(np.float32) for _ in range(count)]
    found: dict[str, Any] = {}
    for image in images:
        for output, values in compiled(image).items():
            found.setdefault(output.any_name, []).append(values.copy())
    return {name: np.concatenate(values) for name, values in found.items()}


def distance(found: Any, expected: Any) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


# What changes nothing


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(
    first=st.integers(1, TOKENS - 1), precision=st.sampled_from(["fp32", "int8", "int8-weights"])
)
def test_splitting_tokens_changes_no_answer(
    exported: Callable[..., Bundle], first: int, precision: str
) -> None:
    bundle = exported(*({"fp32": (), "int8": INT8, "int8-weights": WEIGHTS}[precision]))
    expected = answers(static_model(bundle))
    model = static_model(bundle)
    split_tokens(model, first)
    found = answers(model)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert distance(found[name], values) <= 2e-6


@pytest.mark.parametrize("options", [(), INT8], ids=["fp32", "int8"])
def test_every_product_of_tokens_is_split(
    exported: Callable[..., Bundle], options: tuple[str, ...]
) -> None:
    model = static_model(exported(*options))
    whole = rows_of_products(model)
    split_tokens(model, 16)
    parts = rows_of_products(model)
    assert whole[TOKENS] == 4  # qkv, out, fc1 and fc2 of the first block; the last needs one token
    assert parts[TOKENS] == 0
    assert parts[16] == whole[TOKENS]
    assert parts[1] == whole[1] + whole[TOKENS]


def rows_of_products(model: Any) -> Counter[int]:
    """How many products with weights there are, by their rows."""
    products = [n for n in model.get_ordered_ops() if n.get_type_name() == "MatMul"]
    shapes = [[shape_of(i) for i in node.input_values()] for node in products]
    return Counter(left[1] for left, right in shapes if len(left) == 3 and len(right) == 2)


def test_a_model_that_answers_with_its_tokens_is_split_too(
    exported: Callable[..., Bundle],
) -> None:
    bundle = exported("--outputs", "logits,tokens")
    expected = answers(static_model(bundle))
    model = static_model(bundle)
    split_tokens(model, 5)
    found = answers(model)
    assert found["tokens"].shape == (3, TOKENS, 64)
    assert distance(found["tokens"], expected["tokens"]) <= 2e-6


def test_a_split_backend_keeps_the_contract(testing_bundle: Bundle) -> None:
    backend = openvino.load(testing_bundle, split_tokens=16)
    assert backend.facts["split_tokens"] == "16"
    assert backend.facts["images_at_once"] == "1"
    check_contract(backend, testing_bundle.manifest, openvino.load(testing_bundle))


# What is refused


@pytest.mark.parametrize("first", [-1, 0, TOKENS, 192])
def test_a_number_of_tokens_that_there_is_not_is_refused(
    testing_bundle: Bundle, first: int
) -> None:
    with pytest.raises(UsageError, match=f"between 1 and 16 here, not {first}"):
        openvino.load(testing_bundle, split_tokens=first)


def test_tokens_are_split_on_cpus_only(testing_bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="split_tokens is for the CPU"):
        openvino.load(testing_bundle, device="GPU", split_tokens=16)


def test_a_graph_without_layer_norms_is_refused() -> None:
    ops = imported().opset13
    given_ = ops.parameter([1, 3, 8, 8], np.float32)
    model = imported().Model([ops.relu(given_)], [given_])
    with pytest.raises(BackendError, match="no LayerNormalization over tokens"):
        split_tokens(model, 4)


# Engines


def test_an_engine_is_of_one_split(bundle: Bundle) -> None:
    engine = openvino.build(bundle, split_tokens=16)
    with pytest.raises(EngineError, match="another model, runtime or machine"):
        openvino.load(bundle, engine="required")
    built = openvino.load(bundle, engine="required", split_tokens=16)
    assert built.facts["engine"] == engine.name
    images = np.zeros((2, *bundle.manifest.input.shape[1:]), np.float32)
    expected = openvino.load(bundle, engine="never").run(images)["logits"]
    assert distance(built.run(images)["logits"], expected) <= 2e-6


def test_a_split_is_tried_where_a_few_tokens_follow_full_blocks(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vit_edge.machine.cpus.default_threads", lambda: 2)
    monkeypatch.setattr(openvino, "_BLOCK_ROWS", 16)
    assert {"split_tokens": 16} in openvino.configurations(bundle)
    monkeypatch.setattr(openvino, "_BLOCK_ROWS", 17)  # they are full blocks
    assert not any("split_tokens" in way for way in openvino.configurations(bundle))
    monkeypatch.setattr(openvino, "_BLOCK_ROWS", 64)  # they are less than one
    assert not any("split_tokens" in way for way in openvino.configurations(bundle))


# Products in bfloat16


@needs_bf16
@pytest.mark.parametrize("split", [None, 16])
def test_products_alone_are_rounded(exported: Callable[..., Bundle], split: int | None) -> None:
    bundle = exported()
    options = Options(execution_precision="bf16-products", split_tokens=split)
    core = imported().Core()
    compiled = devices.compile_model(core, bundle, options)
    layers = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    types: dict[str, Counter[str]] = {}
    for layer in layers:
        kind, precision = (layer[key].astype(str) for key in ("layerType", "runtimePrecision"))
        types.setdefault(kind, Counter())[precision] += 1
    assert set(types["Convolution"]) == {"f32"}
    assert set(types["MVN"]) == {"f32"}
    assert types["FullyConnected"]["f32"] == 1  # the head
    assert types["FullyConnected"]["bf16"] >= 7  # two blocks of four, q apart in the last
    facts = devices.granted(compiled, options)
    assert facts["execution_precision"] == "bf16-products"


@needs_bf16
def test_products_in_bfloat16_answer_as_far_from_float32_as_bfloat16_is(
    exported: Callable[..., Bundle],
) -> None:
    bundle = exported()
    shape = (4, *bundle.manifest.input.shape[1:])
    images: Any = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    exact = openvino.load(bundle).run(images)["logits"]
    found = openvino.load(bundle, execution_precision="bf16-products").run(images)["logits"]
    assert 1e-4 < distance(found, exact) < 0.05  # 8 bits of mantissa through two blocks


@needs_bf16
def test_products_of_integers_stay_integers(exported: Callable[..., Bundle]) -> None:
    bundle = exported(*INT8)
    plain, rounded = (
        openvino.load(bundle, execution_precision=precision).facts["products"]
        for precision in ("f32", "bf16-products")
    )
    integers = [part for part in plain.split(", ") if part.endswith("u8")]
    assert integers
    assert integers == [p for p in rounded.split(", ") if p.endswith("u8")]
    assert "bf16" in rounded
    assert "bf16" not in plain


@needs_bf16
@pytest.mark.parametrize("linear", ["attention.out", "mlp.fc1"])
def test_a_float_linear_of_the_class_token_stands_before_one_of_integers(
    exported: Callable[..., Bundle], linear: str
) -> None:
    kept = ("--set", f"keep_float=blocks.1.{linear}", "--set", "float_budget=0")
    bundle = exported(*INT8, *kept)
    products = openvino.load(bundle, execution_precision="bf16-products").facts["products"]
    assert "bf16" in products
    assert "7 u8" in products


def test_attention_written_out_is_rounded_too(exported: Callable[..., Bundle]) -> None:
    model = static_model(exported("--recipe", "gpu-fp32"))
    round_products(model)
    products = [n for n in model.get_ordered_ops() if n.get_type_name() == "MatMul"]
    attention = [n for n in products if len(shape_of(n.input_value(1))) == 4]
    assert attention
    assert all(n.input_value(0).get_element_type() == imported().Type.bf16 for n in attention)


@needs_bf16
def test_an_engine_of_products_in_bfloat16_is_its_own(bundle: Bundle) -> None:
    openvino.build(bundle, execution_precision="bf16-products")
    with pytest.raises(EngineError):
        openvino.load(bundle, engine="required")
    built = openvino.load(bundle, engine="required", execution_precision="bf16-products")
    assert built.facts["execution_precision"] == "bf16-products"
    assert "bf16" in built.facts["products"]
    assert Path(bundle.path / "engines" / built.facts["engine"]).is_dir()
