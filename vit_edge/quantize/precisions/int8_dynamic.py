"""INT8, dynamic: the range of an activation is that of the batch, measured at every run.

The Linears of the blocks become DynamicQuantizeLinear and MatMulInteger, standard operators that
ONNX Runtime's CPU provider makes one DynamicQuantizeMatMul of. Weights are symmetric, one scale for
each output. It needs no calibration. With images, activations are smoothed first, without which
outliers spoil it as they spoil static INT8, and weights rounded so that they make up for each
other.

One minimum and maximum are taken over the whole batch, so an image's answer depends on which other
images it is sent with. `int8` does not have that, and is no slower. What this has instead is room
for images unlike those of the calibration: nothing is ever clipped.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir
from numpy.typing import NDArray

from vit_edge.errors import ModelError, UsageError
from vit_edge.graphs.building import add_constant
from vit_edge.graphs.names import Names
from vit_edge.graphs.workspace import Workspace
from vit_edge.quantize import CalibrationUse, Quantized, Task
from vit_edge.quantize.formats.integers import (
    LARGEST,
    LARGEST_REDUCED,
    UINT8,
    QuantizedWeight,
    quantized_weight,
)
from vit_edge.quantize.linears import Linear, block_linears, check_names, constant
from vit_edge.quantize.rescale.inserting import Inserted, smooth_every
from vit_edge.quantize.rescale.smoothing import Choice, rounding_error, written
from vit_edge.quantize.rounding.gptq import LEAVES, by_output
from vit_edge.quantize.rounding.moments import collect_in_passes
from vit_edge.quantize.rounding.samples import collect_samples
from vit_edge.quantize.rounding.weights import Rounding

CALIBRATION: CalibrationUse = "optional"
LEAST_OPSET = {"cpu": 17, "gpu": 17}

BATCH_DEPENDENCE = (
    "one range for all images of a batch: an image's answer depends on the others; batch_relative "
    "in parity.json is the largest difference found between batch sizes"
)
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """The choices of dynamic int8.

    Attributes:
        smoothing: Rescale activations first where that is exact; only with calibration images.
        shift: Let smoothing move channels as well.
        insert_scales: Multiply what no layer in front can scale, as what GELU leaves.
        rounding: How each weight finds its level; without calibration images the nearest.
        reduce_range: 7 bits for weights, for x86 without VNNI.
        keep_float: Linears that are not quantized.
    """

    smoothing: bool = True
    shift: bool = True
    insert_scales: bool = True
    rounding: Rounding = "gptq"
    reduce_range: bool = False
    keep_float: tuple[str, ...] = ()

    def problems(self) -> list[str]:
        """Nothing that cannot be followed."""
        return []


def quantize(task: Task, settings: Settings) -> Quantized:
    """Quantize the Linears of the blocks.

    Args:
        task: With or without calibration images.
        settings: What to do.

    Returns:
        The graph, the choices, and the table of the Linears.

    Raises:
        ModelError: The graph is no ViT that this understands.
        UsageError: A recipe for GPUs, or keep_float names a Linear that is not there.
    """
    if task.target != "cpu":
        raise UsageError(
            "int8-dynamic is for CPUs: TensorRT reads neither DynamicQuantizeLinear nor "
            "MatMulInteger. Use --precision int8 with a recipe for GPUs"
        )
    largest = LARGEST_REDUCED if settings.reduce_range else LARGEST
    workspace = Workspace(task.scratch / "int8-dynamic")
    model = task.model
    choices: dict[str, Choice] = {}
    if task.calibration is not None:
        model = workspace.settle(model)
    if settings.smoothing and task.calibration is None:
        _LOG.warning("no calibration images: activations are not smoothed, outliers may hurt")
    elif settings.smoothing:
        choices = _smooth(workspace, model, task, settings, largest)
        model = workspace.settle(model)
    linears = block_linears(model)
    check_names(settings.keep_float, [linear.name for linear in linears])
    chosen = [linear for linear in linears if linear.name not in settings.keep_float]
    weights = {each.name: quantized_weight(_matrix(each), largest) for each in chosen}
    if settings.rounding == "gptq" and task.calibration is not None:
        weights |= _round(workspace, model, chosen, weights, task, largest)
    names = Names.of(model)
    ranges: dict[onnx_ir.Value, onnx_ir.Node] = {}
    for linear in chosen:
        _replace(model, names, linear, weights[linear.name], ranges)
    return Quantized(
        model, _record(task, settings, linears, choices), _table(linears, settings, choices)
    )


def _matrix(linear: Linear) -> NDArray[np.float32]:
    return linear.matrix().astype(np.float32)


def _smooth(
    workspace: Workspace, model: onnx_ir.Model, task: Task, settings: Settings, largest: int
) -> dict[str, Choice]:
    """Smooth for the range of the calibration images, which that of a batch will resemble.

    Altered copies would widen it: they reach further than any batch, and scales would serve them.
    """
    linears = block_linears(model)
    samples = collect_samples(workspace, model, linears, task.images, task.progress)
    left = LEAVES if settings.rounding == "gptq" else 1.0
    error = rounding_error(UINT8, largest, left)
    inserted: Inserted = "scale" if settings.insert_scales else "none"
    return smooth_every(
        workspace, model, samples, task, error, shift=settings.shift, inserted=inserted
    )


def _round(
    workspace: Workspace,
    model: onnx_ir.Model,
    linears: list[Linear],
    nearest: dict[str, QuantizedWeight],
    task: Task,
    largest: int,
) -> dict[str, QuantizedWeight]:
    """Round weights so that they make up for each other; biases take the mean of what is lost."""
    rounded: dict[str, QuantizedWeight] = {}
    biases: dict[str, NDArray[np.float32]] = {}  # corrected when all images have been run
    images = task.images.varied()
    for run, moments in collect_in_passes(workspace, model, linears, images, task.progress):
        with task.progress("rounding", len(run), "Linear") as bar:
            for linear in run:
                matrix, moment = _matrix(linear), moments[str(linear.undivided.name)]
                counted = moment.second if linear.bias is None else moment.covariance
                weight = by_output(matrix, counted, nearest[linear.name].scale, largest)
                if linear.bias is not None:
                    lost = moment.mean @ (matrix - weight.dequantize())
                    biases[linear.name] = (constant(linear.bias) + lost).astype(np.float32)
                rounded[linear.name] = weight
                bar.update(1)
    for linear in linears:
        linear.correct_bias(biases.get(linear.name))
    return rounded


def _replace(
    model: onnx_ir.Model,
    names: Names,
    linear: Linear,
    weight: QuantizedWeight,
    ranges: dict[onnx_ir.Value, onnx_ir.Node],
) -> None:
    """Compute a Linear's product in integers; Linears that read the same share its range."""
    output = linear.node.outputs[0]
    if output.is_graph_output():
        raise ModelError(f"{linear.node.name}: the output of this Linear is one of the graph's")
    nodes = _Nodes(linear, names, [])
    if linear.input not in ranges:
        ranges[linear.input] = nodes.add("DynamicQuantizeLinear", [linear.input], outputs=3)
    levels, scale, zero_point = ranges[linear.input].outputs
    stem = str(linear.weight.name)
    zeros: NDArray[np.int8] = np.zeros(weight.scale.shape, np.int8)
    integers = [
        add_constant(model, f"{stem}_quantized", np.ascontiguousarray(weight.values), names),
        zero_point,
        add_constant(model, f"{stem}_zero_point", zeros, names),
    ]
    product = nodes.add("MatMulInteger", [levels, *integers])
    to_float = onnx_ir.AttrInt64("to", onnx_ir.DataType.FLOAT)
    counted = nodes.add("Cast", [product.outputs[0]], [to_float])
    weight_scale = add_constant(model, f"{stem}_scale", weight.scale, names)
    scales = nodes.add("Mul", [scale, weight_scale], suffix="_scales")
    result = nodes.add("Mul", [counted.outputs[0], scales.outputs[0]])
    if linear.node.op_type == "Gemm" and linear.bias is not None:
        result = nodes.add("Add", [result.outputs[0], linear.bias])
    result.outputs[0].shape, result.outputs[0].type = output.shape, output.type
    model.graph.insert_before(linear.node, nodes.added)
    output.replace_all_uses_with(result.outputs[0])
    model.graph.remove(linear.node, safe=True)
    del model.graph.initializers[stem]


@dataclass(frozen=True)
class _Nodes:
    """Nodes in the place of a Linear's own, in order, named after it."""

    linear: Linear
    names: Names
    added: list[onnx_ir.Node]

    def add(
        self,
        operator: str,
        inputs: list[onnx_ir.Value],
        attributes: list[onnx_ir.Attr] | None = None,
        *,
        outputs: int = 1,
        suffix: str = "",
    ) -> onnx_ir.Node:
        """Make one more node."""
        name = self.names.fresh(f"{self.linear.name}/{operator}{suffix}")
        node = onnx_ir.Node("", operator, inputs, attributes or (), num_outputs=outputs, name=name)
        for index, output in enumerate(node.outputs):
            output.name = self.names.fresh(f"{name}:{index}")
        self.added.append(node)
        return node


def _record(
    task: Task, settings: Settings, linears: list[Linear], choices: dict[str, Choice]
) -> dict[str, Any]:
    """Return what the manifest keeps."""
    return {
        **task.record("dynamic, MatMulInteger in block Linears", settings),
        "batch_dependence": BATCH_DEPENDENCE,
        "linears": [
            {
                "name": linear.name,
                "quantized": linear.name not in settings.keep_float,
                "alpha": choices[linear.name].alpha if linear.name in choices else None,
                "shifted": linear.name in choices and choices[linear.name].shifted,
            }
            for linear in linears
        ],
    }


def _table(
    linears: list[Linear], settings: Settings, choices: dict[str, Choice]
) -> tuple[tuple[str, ...], ...]:
    """The Linears in the order of the graph, to print."""
    rows = [("linear", "alpha", "precision")]
    for linear in linears:
        kept = linear.name in settings.keep_float
        rows.append((linear.name, written(choices.get(linear.name)), "float" if kept else "int8"))
    return tuple(rows)
