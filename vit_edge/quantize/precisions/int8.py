"""INT8, static: explicit Q/DQ around the Linears of the blocks, everything else in float.

Quantizing more is what breaks ViTs: LayerNormalization, softmax, GELU and the residual additions
have no integer kernels that would be faster, and residuals of real ViTs reach 1400 beside 1
(FQ-ViT, arXiv:2111.13824). Two flavours, by the recipe's target:

- cpu: U8 activations with a zero point (or S8), S8 weights: what ONNX Runtime lowers to integer
  products, and OpenVINO reads;
- gpu: S8 with zero point 0, as TensorRT demands, in FP16 or FP32 surroundings.

The steps in their order:

1. Activations are rescaled where that is exact (rescale/folding, rescale/smoothing). What GELU
   leaves gets a multiplication of its own (rescale/inserting).
2. Weights are rounded per output, so that they make up for each other (rounding/gptq), input ranges
   searched per Linear (rounding/ranges), and biases corrected.
3. The Linears that hurt most for what they cost are kept in float until the target holds on the
   calibration images (search/sensitivity).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir
from numpy.typing import NDArray

from vit_edge.graphs.workspace import Workspace
from vit_edge.quantize import CalibrationUse, Quantized, Task
from vit_edge.quantize.formats.half import rounded_scale
from vit_edge.quantize.formats.integers import (
    INT8,
    INT8_SYMMETRIC,
    LARGEST,
    LARGEST_REDUCED,
    UINT8,
    Format,
    QuantizedWeight,
    quantize_linears,
    quantized_weight,
    unrounded,
)
from vit_edge.quantize.linears import Linear, block_linears, check_names, constant
from vit_edge.quantize.rescale.inserting import Inserted, join_rows, smooth_every
from vit_edge.quantize.rescale.smoothing import Choice, rounding_error, written
from vit_edge.quantize.rounding.gptq import LEAVES, by_output
from vit_edge.quantize.rounding.moments import Moment, Runs, collect_in_passes
from vit_edge.quantize.rounding.ranges import Parameters, RangeMethod, parameters
from vit_edge.quantize.rounding.samples import Sample, collect_samples
from vit_edge.quantize.rounding.weights import Rounding
from vit_edge.quantize.search.costs import float_costs
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
LEAST_OPSET = {"cpu": 17, "gpu": 19}  # 19 brought FP16 scales


@dataclass(frozen=True)
class Settings(SearchSettings):
    """The choices beside the search."""

    activations: Literal["uint8", "int8"] = "uint8"  # cpu; x86 prefers uint8, ARM int8
    smoothing: bool = True
    shift: bool = True
    insert_scales: bool = True  # multiply what no layer in front can scale, as what GELU leaves
    rounding: Rounding = "gptq"
    ranges: RangeMethod = "output"
    bias_correction: bool = True
    reduce_range: bool = False  # for x86 without VNNI
    around: Literal["fp32", "fp16"] = "fp32"  # gpu: what the rest of the graph computes in


@dataclass(frozen=True)
class Rounded:
    """A Linear, rounded."""

    weight: QuantizedWeight
    activation: Parameters
    bias: NDArray[np.float32] | None  # corrected; None where there is none to correct


def quantize(task: Task, settings: Settings) -> Quantized:
    """Quantize the Linears of the blocks.

    Args:
        task: With calibration images.
        settings: What to do.

    Returns:
        The graph, the choices and findings, and the table of the Linears.

    Raises:
        ModelError: The graph is no ViT that this understands.
        ParityError: The task's target does not hold within the float budget.
        UsageError: keep_float names a Linear that is not there.
    """
    kind = _format(task, settings)
    workspace = Workspace(task.scratch / "int8")
    model = workspace.settle(task.model)
    every = [linear.name for linear in block_linears(model)]
    check_names(settings.keep_float, every)
    judge = Judge(workspace, model, task.images, scores=task.scores)
    model, choices, rounded = _smooth_and_round(workspace, model, settings, kind, task)

    def variant(names: Sequence[str]) -> onnx_ir.Model:
        return _apply(model, {name: rounded[name] for name in names}, kind)

    names = [name for name in every if name not in settings.keep_float]
    costs = float_costs(block_linears(model))
    ranked, trials = ranked_search(judge, variant, names, task, settings, costs=costs)
    chosen = [name for name in names if name not in trials[-1].kept_float]
    final = variant(chosen)
    record = _record(settings, kind, choices, rounded, ranked, trials, task)
    quantized = Quantized(final, record, _table(ranked, choices, trials[-1]))
    if not _half_around(task, settings):
        return quantized
    return halve_around(quantized, model, workspace, task)


def _smooth_and_round(
    workspace: Workspace, model: onnx_ir.Model, settings: Settings, kind: Format, task: Task
) -> tuple[onnx_ir.Model, dict[str, Choice], dict[str, Rounded]]:
    """The float32 graph with its activations rescaled, how they were, and every Linear rounded.

    A function of its own, so that the samples (264 MB of base) are gone when it returns.

    Args:
        workspace: Where to run.
        model: Settled; it is rewritten, and gives up its weights.
        settings: What to do.
        kind: Of the activations.
        task: With calibration images.
    """
    linears, images = block_linears(model), task.images.varied()
    samples = collect_samples(workspace, model, linears, images, task.progress)
    choices: dict[str, Choice] = {}
    if settings.smoothing:
        left = LEAVES if settings.rounding == "gptq" else 1.0
        error = rounding_error(kind, _largest_weight(settings), left)
        inserted = _inserted(task, settings)
        choices = smooth_every(
            workspace, model, samples, task, error, shift=settings.shift, inserted=inserted
        )
        model = workspace.settle(model)
        linears = block_linears(model)
        samples = _rename(samples, linears)
    rounded: dict[str, Rounded] = {}
    runs: Runs = [(linears, {})]
    if settings.rounding == "gptq":
        runs = collect_in_passes(workspace, model, linears, images, task.progress)
    for run, moments in runs:
        rounded |= _round(run, samples, moments, settings, kind, task)
    return model, choices, rounded


def _inserted(task: Task, settings: Settings) -> Inserted:
    """Choose what may stand in front of a Linear: GPUs add within the kernel of GELU."""
    if not settings.insert_scales:
        return "none"
    return "scale and shift" if task.target == "gpu" else "rows"


def _half_around(task: Task, settings: Settings) -> bool:
    return task.target == "gpu" and settings.around == "fp16"


def _format(task: Task, settings: Settings) -> Format:
    if task.target == "gpu":
        return INT8_SYMMETRIC
    return {"uint8": UINT8, "int8": INT8}[settings.activations]


def _largest_weight(settings: Settings) -> int:
    return LARGEST_REDUCED if settings.reduce_range else LARGEST


def _rename(
    samples: Mapping[onnx_ir.Value, Sample], linears: Sequence[Linear]
) -> dict[onnx_ir.Value, Sample]:
    """The same samples for the values of a model that was written and read again."""
    by_name = {value.name: sample for value, sample in samples.items()}
    return {linear.input: by_name[linear.input.name] for linear in linears}


def _round(
    linears: Sequence[Linear],
    samples: Mapping[onnx_ir.Value, Sample],
    moments: Mapping[str, Moment],
    settings: Settings,
    kind: Format,
    task: Task,
) -> dict[str, Rounded]:
    """Round every Linear by itself.

    Args:
        linears: Of a settled model.
        samples: Of what enters them.
        moments: Of the same, where weights make up for each other.
        settings: What to do.
        kind: Of the activations.
        task: Its target, and its progress.
    """
    scale_type = rounded_scale if _half_around(task, settings) else unrounded
    rounded = {}
    with task.progress("ranges", len(linears), "Linear") as bar:
        for linear in linears:
            matrix, sample = linear.matrix().astype(np.float32), samples[linear.input]
            weight = quantized_weight(matrix, _largest_weight(settings), scale_type)
            moment = moments.get(str(linear.undivided.name))
            corrected = settings.bias_correction and linear.bias is not None
            if moment is not None:
                counted = moment.covariance if corrected else moment.second
                weight = by_output(matrix, counted, weight.scale, _largest_weight(settings))
            left = weight.dequantize()
            scale, zero_point = parameters(settings.ranges, sample, left, kind)
            activation = (np.float32(scale_type(np.array([scale]))[0]), zero_point)
            bias = _corrected(linear, sample, moment, left, activation, kind) if corrected else None
            rounded[linear.name] = Rounded(weight, activation, bias)
            bar.update(1)
    return rounded


def _corrected(
    linear: Linear,
    sample: Sample,
    moment: Moment | None,
    left: NDArray[np.float32],
    activation: Parameters,
    kind: Format,
) -> NDArray[np.float32]:
    """The bias of a Linear plus the mean of what rounding takes away: float32[out].

    What the weights lose is known from the mean over all tokens, where there is one, and what the
    input loses from the sample.
    """
    assert linear.bias is not None
    sizes = 1.0 if sample.sizes is None else sample.sizes
    mean = (sample.rows * sizes).mean(axis=0, dtype=np.float64) if moment is None else moment.mean
    rounded = kind.fake(sample.rows, *activation)
    of_input = ((sample.rows - rounded) * sizes).mean(axis=0, dtype=np.float64)
    lost = mean @ (linear.matrix() - left) + of_input @ left
    bias: NDArray[np.float32] = (constant(linear.bias) + lost).astype(np.float32)
    return bias


def _apply(model: onnx_ir.Model, rounded: Mapping[str, Rounded], kind: Format) -> onnx_ir.Model:
    """A copy of the model with these Linears quantized."""
    copy = model.clone()
    every = block_linears(copy)
    join_rows(copy, [linear for linear in every if linear.name not in rounded])
    linears = [linear for linear in every if linear.name in rounded]
    for linear in linears:
        linear.correct_bias(rounded[linear.name].bias)
    weights = {name: linear.weight for name, linear in rounded.items()}
    activations = {name: linear.activation for name, linear in rounded.items()}
    quantize_linears(copy, linears, weights, activations, kind)
    return copy


def _record(
    settings: Settings,
    kind: Format,
    choices: Mapping[str, Choice],
    rounded: Mapping[str, Rounded],
    ranked: Sequence[Share],
    trials: Sequence[Trial],
    task: Task,
) -> dict[str, Any]:
    """Return what the manifest keeps: enough to see why the graph is as it is."""
    kept = {*settings.keep_float, *trials[-1].kept_float}
    linears = []
    for name, linear in rounded.items():
        choice = choices.get(name)
        scale, zero_point = linear.activation
        linears.append(
            {
                "name": name,
                "quantized": name not in kept,
                "alpha": None if choice is None else choice.alpha,
                "shifted": choice is not None and choice.shifted,
                "by_row": choice is not None and choice.by_row,
                "input_scale": float(scale),
                "input_zero_point": zero_point,
                **record_of_cost(ranked, name),
            }
        )
    return {
        **task.record("static, Q/DQ on block Linears", settings),
        "target": task.target,
        "activations": kind.dtype + (", symmetric" if kind.symmetric else ", asymmetric"),
        **record_of_search(task, trials),
        "linears": linears,
    }


def _table(
    ranked: Sequence[Share], choices: Mapping[str, Choice], chosen: Trial
) -> tuple[tuple[str, ...], ...]:
    """The Linears, the worst first, to print."""
    rows = [("linear", "share of noise", "alpha", "precision")]
    for share in ranked:
        precision = "float" if share.name in chosen.kept_float else "int8"
        alpha = written(choices.get(share.name))
        rows.append((share.name, f"{share.share:.1%}", alpha, precision))
    return tuple(rows)
