"""INT8 and FP8 for TensorRT: its rules held graph by graph, and real builds for every GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx_ir
import pytest

from tests.quantize.workbench import broken_rules, quantized, without_search
from tests.support import tensorrt_rtx_build
from tests.support.bundles import Exporter
from vit_edge.bundle import Bundle
from vit_edge.graphs.write import write_model
from vit_edge.quantize.formats.integers import add_constant
from vit_edge.quantize.linears import block_linears, constant

requires = ("torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "tqdm", "tensorrt_rtx")

QUICK = {"float_budget": 0, "sensitivity_images": 1}
FP8_GPUS = ("SM89", "SM120")
TOO_OLD_FOR_FP8 = ("SM75", "SM80", "SM86")


def written(model: onnx_ir.Model, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    write_model(model, folder)
    return folder / "model.onnx"


def give_a_zero_point(model: onnx_ir.Model) -> None:
    node = next(node for node in model.graph if node.op_type == "QuantizeLinear")
    node.replace_input_with(2, add_constant(model, "fault", np.array(3, np.int8)))


def quantize_a_bias(model: onnx_ir.Model) -> None:
    add = next(node for node in model.graph if node.name == "blocks.0.mlp.fc1/Add")
    index = next(i for i, value in enumerate(add.inputs) if value and value.is_initializer())
    bias = add.inputs[index]
    assert bias is not None
    whole = add_constant(model, "fault", np.zeros(constant(bias).shape, np.int32))
    scale = add_constant(model, "fault_scale", np.float32(1e-3))
    zero = add_constant(model, "fault_zero", np.int32(0))
    node = onnx_ir.Node("", "DequantizeLinear", [whole, scale, zero], name="fault")
    node.outputs[0].name, node.outputs[0].type = "fault:0", bias.type
    model.graph.insert_before(add, node)
    add.replace_input_with(index, node.outputs[0])


def compute_in_integers(model: onnx_ir.Model) -> None:
    product = next(node for node in model.graph if node.op_type == "MatMul")
    node = onnx_ir.Node("", "MatMulInteger", product.inputs[:2], name="fault")
    model.graph.insert_before(product, node)


def give_an_activation_many_scales(model: onnx_ir.Model) -> None:
    node = next(node for node in model.graph if node.op_type == "QuantizeLinear")
    node.replace_input_with(1, add_constant(model, "fault", np.ones(4, np.float32)))


FAULTS: dict[str, Callable[[onnx_ir.Model], None]] = {
    "has a zero point": give_a_zero_point,
    "quantizes a bias": quantize_a_bias,
    "is a MatMulInteger": compute_in_integers,
    "more than one scale": give_an_activation_many_scales,
}


@pytest.fixture(scope="module")
def gpu_file(
    decomposed_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Path]:
    """(precision, what is around it) -> the file, made at the first call."""

    @lru_cache
    def made(precision: str, around: str) -> Path:
        folder = tmp_path_factory.mktemp(f"{precision}-{around}")
        settings = {**QUICK, "around": around}
        model = quantized(precision, decomposed_bundle, folder, settings, target="gpu").model
        return written(model, folder)

    return made


@pytest.mark.parametrize("around", ["fp32", "fp16"])
@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_a_gpu_graph_keeps_every_rule(
    precision: str, around: str, decomposed_bundle: Bundle, gpu_file: Callable[[str, str], Path]
) -> None:
    model = onnx_ir.load(gpu_file(precision, around))
    assert broken_rules(model) == []
    linears = len(block_linears(onnx_ir.load(decomposed_bundle.model_path)))
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph) >= linears


@pytest.mark.parametrize("sentence", FAULTS)
def test_a_planted_fault_is_found_here_and_refused_by_tensorrt(
    sentence: str, gpu_file: Callable[[str, str], Path], tmp_path: Path
) -> None:
    model = onnx_ir.load(gpu_file("int8", "fp32"))
    FAULTS[sentence](model)
    assert any(sentence in problem for problem in broken_rules(model))
    (build,) = tensorrt_rtx_build.builds(written(model, tmp_path), ["SM86"])
    assert build.errors
    assert build.plan_bytes == 0


@pytest.mark.parametrize("around", ["fp32", "fp16"])
def test_int8_builds_for_every_gpu(
    around: str, decomposed_bundle: Bundle, gpu_file: Callable[[str, str], Path]
) -> None:
    linears = len(block_linears(onnx_ir.load(decomposed_bundle.model_path)))
    wide = {"fp32": "FLOAT", "fp16": "HALF"}[around]
    for build in tensorrt_rtx_build.builds(gpu_file("int8", around)):
        assert build.errors == (), build.compute_capability
        assert build.plan_bytes > 0
        assert build.layers["QUANTIZE INT8"] == linears
        assert build.layers[f"DEQUANTIZE {wide}"] == 2 * linears


@pytest.mark.parametrize("around", ["fp32", "fp16"])
def test_fp8_builds_where_there_are_fp8_cores(
    around: str, gpu_file: Callable[[str, str], Path]
) -> None:
    path = gpu_file("fp8", around)
    quantizers = sum(node.op_type == "QuantizeLinear" for node in onnx_ir.load(path).graph)
    for build in tensorrt_rtx_build.builds(path, FP8_GPUS):
        assert build.errors == (), build.compute_capability
        assert build.layers["QUANTIZE FP8"] == quantizers


def test_fp8_is_refused_by_older_gpus_in_the_builders_words(
    gpu_file: Callable[[str, str], Path],
) -> None:
    for build in tensorrt_rtx_build.builds(gpu_file("fp8", "fp16"), TOO_OLD_FOR_FP8):
        assert build.plan_bytes == 0
        assert "fp8_e4m3" in build.errors[0]
        assert build.compute_capability.lower() in build.errors[0]


@pytest.mark.slow
def test_plans_of_a_whole_model_are_smaller_the_lower_the_precision_and_fp8_needs_its_cores(
    export_once: Exporter, tmp_path: Path
) -> None:
    """As exported, twelve blocks. Every variant, of two: tests/backends/trt/test_rtx.py."""
    bundle = export_once(
        "--variant", "tiny-patch16-224", "--checkpoint", "seeded:0", "--recipe", "gpu-fp32"
    )
    wanted: dict[str, tuple[Path, Sequence[str]]] = {}
    for precision, gpus in (
        ("fp32", tensorrt_rtx_build.ALL),
        ("fp16", tensorrt_rtx_build.ALL),
        ("int8", tensorrt_rtx_build.ALL),
        ("fp8", FP8_GPUS),
    ):
        folder = tmp_path / precision
        spec = bundle.manifest.preprocessing
        model = without_search(precision, onnx_ir.load(bundle.model_path), spec, folder)
        assert broken_rules(model) == []
        wanted[precision] = (written(model, folder), gpus)
    refused = (wanted["fp8"][0], TOO_OLD_FOR_FP8)
    *found, old = tensorrt_rtx_build.all_builds([*wanted.values(), refused])
    plans: dict[str, dict[str, int]] = {}
    for (precision, (_, gpus)), builds in zip(wanted.items(), found, strict=True):
        assert [build.errors for build in builds] == [()] * len(gpus), precision
        plans[precision] = {build.compute_capability: build.plan_bytes for build in builds}
    for gpu, plan_bytes in plans["int8"].items():
        assert plan_bytes < plans["fp16"][gpu] < plans["fp32"][gpu], plans
    for gpu, plan_bytes in plans["fp8"].items():
        assert plan_bytes < plans["fp16"][gpu], plans
    for build in old:
        assert "fp8_e4m3" in build.errors[0]
