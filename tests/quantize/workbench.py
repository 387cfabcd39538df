"""What the tests of quantizers share: a float graph, natural images, and running what comes out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
from numpy.typing import NDArray
from PIL import Image

from vit_edge import quantize
from vit_edge.bundle import Bundle
from vit_edge.bundle.manifest import Preprocessing
from vit_edge.graphs.workspace import Workspace
from vit_edge.graphs.write import write_model
from vit_edge.parity.logits import LogitComparison
from vit_edge.parity.targets import parse_target
from vit_edge.quantize import Quantized, Task
from vit_edge.quantize.calibration import Calibration, CalibrationRequest
from vit_edge.quantize.formats.half import FLOAT16, convert, rounded_scale
from vit_edge.quantize.formats.integers import (
    INT8_SYMMETRIC,
    QuantizedWeight,
    quantize_linears,
    quantized_weight,
)
from vit_edge.quantize.linears import block_linears, constant
from vit_edge.quantize.rescale.attention import attention_products
from vit_edge.quantize.rounding.fp8 import round_all
from vit_edge.quantize.rounding.samples import Reader, collect_samples

PHOTOS = sorted((Path(__file__).parents[2] / "vit_edge" / "data" / "photos").glob("*.jpg"))


class _Silent:
    def update(self, n: int) -> None:
        pass


@contextmanager
def no_progress(what: str, total: int, unit: str = "image") -> Iterator[_Silent]:
    yield _Silent()


def crops(count: int, seed: int, size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Random crops of the package's photos: uint8[count, H, W, 3]; no two seeds share one."""
    rng = np.random.default_rng(seed)
    photos = [Image.open(path).convert("RGB") for path in PHOTOS]
    made = np.empty((count, *size_hw, 3), np.uint8)
    for index in range(count):
        photo = photos[rng.integers(len(photos))]
        side = int(rng.uniform(0.15, 0.9) * min(photo.size))
        left = int(rng.integers(photo.width - side + 1))
        top = int(rng.integers(photo.height - side + 1))
        box = (left, top, left + side, top + side)
        made[index] = np.asarray(photo.resize(size_hw[::-1], Image.Resampling.BILINEAR, box))
    return made


def write_crops(folder: Path, count: int, seed: int, size_hw: tuple[int, int]) -> Path:
    """Write crops as PNG files; return the folder."""
    for index, crop in enumerate(crops(count, seed, size_hw)):
        Image.fromarray(crop).save(folder / f"{index:02d}.png")
    return folder


def calibration(count: int, seed: int, spec: Preprocessing) -> Calibration:
    """Crops as calibration images."""
    images = crops(count, seed, spec.crop_hw)
    names = tuple(f"crop-{index}" for index in range(count))
    return Calibration(CalibrationRequest("crops", count, seed), names, names, images, spec)


def task(
    model: onnx_ir.Model,
    images: Calibration | None,
    scratch: Path,
    *,
    target: str = "cpu",
    goal: str = "",
    journal: Path | None = None,
) -> Task:
    """A task with everything that a test does not care about filled in."""
    return Task(
        model=model,
        target=target,  # type: ignore[arg-type]
        calibration=images,
        parity_target=parse_target(goal) if goal else None,
        scratch=scratch,
        journal=journal,
        progress=no_progress,
    )


def quantized(
    precision: str,
    bundle: Bundle,
    scratch: Path,
    settings: Mapping[str, Any],
    images: int = 32,
    **options: Any,
) -> Quantized:
    """Quantize a bundle's graph on crops."""
    module = quantize.module(precision)
    seen = calibration(images, 0, bundle.manifest.preprocessing)
    model = onnx_ir.load(bundle.model_path)
    chosen = quantize.settings_from_table(precision, settings, "test")
    return module.quantize(task(model, seen, scratch, **options), chosen)


def answers(
    model: onnx_ir.Model,
    images: Calibration,
    scratch: Path,
    entries: Mapping[str, str] | None = None,
    output: str = "logits",
) -> NDArray[np.float32]:
    """float32[N, ...] of a model on ONNX Runtime."""
    workspace = Workspace(scratch / "answers")
    batches = images.batches(16)
    settled = workspace.settle(model.clone())  # a settled model gives up its weights
    return np.concatenate(list(workspace.answers(settled, batches, output, entries)))


def operators(model: onnx_ir.Model) -> Counter[str]:
    """How often each operator is in a graph."""
    return Counter(node.op_type for node in model.graph)


def optimized(model: onnx_ir.Model, folder: Path) -> Counter[str]:
    """The operators of what ONNX Runtime really runs."""
    folder.mkdir(exist_ok=True)
    write_model(model, folder)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(folder / "model.onnx"), options)
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


def outside(model: onnx_ir.Model) -> dict[str, Any]:
    """What whoever runs a graph sees of it."""
    graph = model.graph
    return {
        "inputs": [(value.name, str(value.shape), value.dtype) for value in graph.inputs],
        "outputs": [(value.name, str(value.shape), value.dtype) for value in graph.outputs],
        "metadata": dict(model.metadata_props),
        "versions": (model.ir_version, dict(graph.opset_imports)),
    }


def compared(found: NDArray[np.float32], expected: NDArray[np.float32]) -> dict[str, Any]:
    """The statistics of two sets of logits."""
    comparison = LogitComparison()
    comparison.add(np.arange(len(found)), found, expected)
    return comparison.summary()


def without_search(
    precision: str, model: onnx_ir.Model, spec: Preprocessing, scratch: Path
) -> onnx_ir.Model:
    """The graph of a GPU's quantizer, from one image and without measuring what it costs."""
    linears, products = block_linears(model), attention_products(model)
    if precision == "fp8":
        operands = [operand for found in products for operand in found.measured]
        readers: list[Reader] = [*linears, *operands]
        images = calibration(1, 0, spec)
        samples = collect_samples(Workspace(scratch), model, readers, images, no_progress)
        rounded = round_all([(linears, {})], products, samples, "largest", no_progress)
        model = rounded.apply(model, rounded.names)
    if precision == "int8":
        weights = {linear.name: quantized_weight(linear.matrix(), 127) for linear in linears}
        halved = {
            name: QuantizedWeight(weight.values, rounded_scale(weight.scale))
            for name, weight in weights.items()
        }
        scales = {linear.name: (np.float32(2**-4), 0) for linear in linears}
        quantize_linears(model, linears, halved, scales, INT8_SYMMETRIC)
    if precision != "fp32":
        convert(model, FLOAT16)
    return model


def broken_rules(model: onnx_ir.Model) -> list[str]:
    """Everything that TensorRT's explicit quantization does not take (NVIDIA's guide).

    Symmetric numbers only, activations per tensor, biases in float, no operators that compute in
    integers themselves, and what TensorRT 10.3's parser reads.
    """
    found = []
    if model.opset_imports != {"": 20} or model.ir_version != 9:
        found.append(f"opset {dict(model.opset_imports)}, IR {model.ir_version}")
    for node in model.graph:
        if "Integer" in node.op_type or node.op_type.startswith(("QLinear", "DynamicQuantize")):
            found.append(f"{node.name} is a {node.op_type}")
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            found += broken_pair_rules(node)
    return found


def broken_pair_rules(node: onnx_ir.Node) -> list[str]:
    value, scale, zero = node.inputs
    assert value is not None
    assert scale is not None
    assert zero is not None
    found = []
    if constant(zero).astype(np.float32).any():
        found.append(f"{node.name} has a zero point")
    if not value.is_initializer() and constant(scale).size != 1:
        found.append(f"{node.name} has more than one scale for an activation")
    if value.is_initializer() and len(value.shape or ()) < 2:
        found.append(f"{node.name} quantizes a bias")
    return found
