"""FP8: E4M3 Q/DQ around the Linears of the blocks and the products of attention, for TensorRT.

TensorRT multiplies in FP8 from compute capability 8.9 on (Ada, Hopper, Blackwell). Its rules: one
scale for all of an activation, one per output for weights, no zero point. It makes one kernel of an
attention whose q, k, v and softmax are quantized right in front of the products, the softmax with
scale 1/448 (https://github.com/NVIDIA/Model-Optimizer/pull/1289).

A float's error grows with its magnitude, so what helps INT8 does not help here: rescaled channels
keep their errors, and outliers cost their neighbours nothing. What helps is to take constant
offsets out of the activations first, which is exact: of what enters the Linears
(rescale/centring), and of the keys, since softmax ignores what all keys have in common. The rest
stays in FP16 or FP32, and so does what is no multiple of 16 wide: FP8's kernels read 16 bytes.

On vit-cifar10 and its outlier checkpoint, in dB of the logits' centred SQNR: 33 and 14 as it is, 34
and 26 with activations centred, the latter 30 with its keys too, and 34 to 37 both with up to four
of 39 parts in float. Rounded weights alone leave 43, and bias correction changes nothing. Weights
that make up for each other (GPTQ) take DINOv2-small's trained ones from 17.1 to 19.6 dB.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import onnx_ir

from vit_edge.errors import ModelError, UsageError
from vit_edge.graphs.workspace import Workspace
from vit_edge.quantize import CalibrationUse, Quantized, Task
from vit_edge.quantize.formats.half import prepare
from vit_edge.quantize.linears import Linear, block_linears, check_names
from vit_edge.quantize.rescale.attention import Products, attention_products, centre_keys
from vit_edge.quantize.rescale.centring import centre
from vit_edge.quantize.rounding.fp8 import Rounded, ScaleMethod, round_all
from vit_edge.quantize.rounding.moments import Runs, collect_in_passes
from vit_edge.quantize.rounding.samples import Reader, collect_samples
from vit_edge.quantize.rounding.weights import Rounding
from vit_edge.quantize.search.overflow import halve_around
from vit_edge.quantize.search.sensitivity import (
    Judge,
    SearchSettings,
    Share,
    Trial,
    ranked_search,
    record_of_cost,
    record_of_search,
)

CALIBRATION: CalibrationUse = "required"

LEAST_OPSET = {"cpu": 19, "gpu": 19}  # with FLOAT8E4M3FN in QuantizeLinear and FP16 scales
# ONNX Runtime's CPU provider has kernels for E4M3 Q/DQ, and optimizer rules that trip over them
_LOG = logging.getLogger(__name__)
BLOCK = 16  # what divides the widths of an FP8 product, as cuBLASLt's FP8 kernels ask for it too
SIMULATION = {"session.disable_quant_qdq": "1"}


@dataclass(frozen=True)
class Settings(SearchSettings):
    """The choices beside the search, which may keep blocks.N.attention.products too.

    Attributes:
        attention: Quantize the products q k^T and p v too.
        centre: Shift what enters the Linears, and the keys, to zero mean first, which is exact.
        scales: Cover the largest number seen, or search the scale of least error.
        rounding: Of weights: so that they make up for each other, or to the nearest.
        around: What the rest of the graph computes in.
    """

    float_share: float = 0.15
    attention: bool = True
    centre: bool = True
    scales: ScaleMethod = "search"
    rounding: Rounding = "gptq"
    around: Literal["fp16", "fp32"] = "fp16"


def quantize(task: Task, settings: Settings) -> Quantized:
    """Quantize the Linears of the blocks and the products of attention.

    Args:
        task: With calibration images.
        settings: What to do.

    Returns:
        The graph, the choices and findings, the table of what was quantized, and a simulation
        where FP16 is around it.

    Raises:
        ModelError: The graph is no ViT that this understands.
        ParityError: The task's target does not hold within the float budget.
        UsageError: A recipe for CPUs, no images, or keep_float names what is not there.
    """
    _check(task)
    workspace = Workspace(task.scratch / "fp8")
    prepare(task.model)
    model = workspace.settle(task.model)
    centred = []
    if settings.centre:
        centred = _centre(workspace, model, task)
        model = workspace.settle(model)
    rounded = _round(workspace, model, task, settings)
    ranked, trials = _search(workspace, model, rounded, task, settings)
    kept = {*settings.keep_float, *trials[-1].kept_float}
    final = rounded.apply(model, [name for name in rounded.names if name not in kept])
    record = _record(settings, centred, rounded, ranked, trials, task)
    quantized = Quantized(final, record, _table(ranked, trials[-1], settings))
    if settings.around == "fp32":
        return quantized
    remark = "; products of E4M3 numbers as products of float32"
    return halve_around(quantized, model, workspace, task, remark)


def _check(task: Task) -> None:
    if task.target != "gpu":
        raise UsageError(
            "fp8 is for GPUs: no CPU multiplies E4M3 numbers. Use --recipe gpu-fp8, or "
            "--precision int8"
        )
    if task.calibration is None:
        raise UsageError("fp8 needs real images to fit its scales to: give --calibration DIR")
    opset = task.model.opset_imports.get("", 0)
    if opset < LEAST_OPSET[task.target]:
        least = LEAST_OPSET[task.target]
        raise ModelError(f"FLOAT8E4M3FN needs opset {least} or newer, not {opset}")


def _centre(workspace: Workspace, model: onnx_ir.Model, task: Task) -> list[str]:
    """Take offsets out of activations and keys, in place; the names of what was shifted."""
    keys = centre_keys(model, workspace, task.images, task.progress)
    return [*centre(model, workspace, task.images, task.progress), *keys]


def _round(workspace: Workspace, model: onnx_ir.Model, task: Task, settings: Settings) -> Rounded:
    linears = block_linears(model)
    products = attention_products(model) if settings.attention else []
    operands = [operand for product in products for operand in product.measured]
    readers: list[Reader] = [*linears, *operands]
    parts: list[Linear | Products] = [*linears, *products]
    check_names(settings.keep_float, [part.name for part in parts])
    samples = collect_samples(workspace, model, readers, task.images, task.progress)
    even_linears = [each for each in linears if _is_even(*each.matrix().shape)]
    even_products = [each for each in products if _is_even(samples[each.v.input].rows.shape[1])]
    even = {linear.name for linear in even_linears} | {each.name for each in even_products}
    uneven = [part.name for part in parts if part.name not in even]
    if not even_linears:
        widths = sorted({size for linear in linears for size in linear.matrix().shape})
        raise ModelError(
            f"fp8 multiplies what is a multiple of {BLOCK} wide; the Linears of this model are "
            f"{', '.join(map(str, widths))} wide, and none is on both sides. Use --precision "
            "fp16, or int8 with --recipe gpu-int8"
        )
    if uneven:
        names = ", ".join(uneven)
        _LOG.warning(
            "no multiple of %d wide, so not in fp8 but %s: %s", BLOCK, settings.around, names
        )
    runs: Runs = [(even_linears, {})]
    if settings.rounding == "gptq":
        images = task.images.varied()
        runs = collect_in_passes(workspace, model, even_linears, images, task.progress)
    return round_all(runs, even_products, samples, settings.scales, task.progress)


def _is_even(*sizes: int) -> bool:
    """True if FP8's blocks divide all of them."""
    return not any(size % BLOCK for size in sizes)


def _search(
    workspace: Workspace, model: onnx_ir.Model, rounded: Rounded, task: Task, settings: Settings
) -> tuple[list[Share], list[Trial]]:
    """Measure what each part costs, and how many must stay in float for the target."""
    names = [name for name in rounded.names if name not in settings.keep_float]

    def variant(chosen: Sequence[str]) -> onnx_ir.Model:
        return rounded.apply(model, chosen)

    judge = Judge(workspace, model, task.images, SIMULATION, task.scores)
    return ranked_search(judge, variant, names, task, settings)


def _record(
    settings: Settings,
    centred: Sequence[str],
    rounded: Rounded,
    ranked: Sequence[Share],
    trials: Sequence[Trial],
    task: Task,
) -> dict[str, Any]:
    """Return what the manifest keeps: enough to see why the graph is as it is."""
    kept = {*settings.keep_float, *trials[-1].kept_float}
    return {
        **task.record("static E4M3 Q/DQ on block Linears and attention products", settings),
        "target": task.target,
        "centred": list(centred),
        **record_of_search(task, trials),
        "parts": [
            {
                "name": name,
                "quantized": name not in kept,
                "input_scales": rounded.scales(name),
                **record_of_cost(ranked, name),
            }
            for name in rounded.names
        ],
    }


def _table(
    ranked: Sequence[Share], chosen: Trial, settings: Settings
) -> tuple[tuple[str, ...], ...]:
    """The parts, the worst first, to print."""
    rows = [("part", "share of noise", "precision")]
    for share in ranked:
        precision = settings.around if share.name in chosen.kept_float else "fp8"
        rows.append((share.name, f"{share.share:.1%}", precision))
    return tuple(rows)
