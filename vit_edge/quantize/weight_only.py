"""Weight-only precisions: the weights of the Linears in 4 or 8 bits, everything else in float.

For devices where the size of the file and the memory decide. The steps in their order:

1. Inputs are rescaled where that is exact (rescale/folding, rescale/awq).
2. Each block's levels are fitted (formats/blocks), and weights rounded so that what comes out
   changes least (rounding/gptq).
3. Biases are corrected by the mean that is lost.
4. Of 4-bit weights, the part that hurts most for its size may take 8 bits (`wide_part`).
5. Where a target asks for it, the Linears that hurt most are kept in float (search/sensitivity).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir

from vit_edge.errors import ModelError, UsageError
from vit_edge.graphs.workspace import Workspace
from vit_edge.quantize import Quantized, Task
from vit_edge.quantize.formats.blocks import BLOCK_SIZES, BlockFormat, dequantize_in_graph
from vit_edge.quantize.linears import Linear, all_linears, block_linears, check_names
from vit_edge.quantize.rescale.awq import Choice
from vit_edge.quantize.rescale.proving import IMAGES, prove_groups
from vit_edge.quantize.rounding.moments import collect_moments, passes
from vit_edge.quantize.rounding.weights import Rounded, Rounding, rescale, round_linear, widen
from vit_edge.quantize.search.journal import Journal
from vit_edge.quantize.search.sensitivity import (
    Judge,
    SearchSettings,
    Trial,
    Variant,
    by_cost,
    ranked_search,
    record_of_search,
    shares,
)

_LOG = logging.getLogger(__name__)

LEAST_OPSET = {"cpu": 21, "gpu": 21}  # brought block_size and 4-bit integers to DequantizeLinear


@dataclass(frozen=True)
class Settings(SearchSettings):
    """The choices beside the search, which starts only where the target is missed."""

    block_size: int = 64  # input channels that share a scale; fewer where 64 do not divide them
    symmetric: bool = False  # without zero points: a little smaller and less exact
    rescale: bool = True  # AWQ
    rounding: Rounding = "gptq"
    bias_correction: bool = True
    head: bool = False  # the Linears behind the last LayerNormalization too

    def problems(self) -> list[str]:
        """List everything that cannot be followed; empty if nothing."""
        problems = super().problems()
        if self.block_size not in BLOCK_SIZES:
            sizes = list(BLOCK_SIZES)
            problems.append(f"block_size must be one of {sizes}, not {self.block_size}")
        return problems


def quantize(task: Task, settings: Settings, bits: int, wide_part: float = 0.0) -> Quantized:
    """Store the weights of the Linears in blocks of so many bits.

    Args:
        task: With calibration images; its model gives up its weights.
        settings: What to do.
        bits: 4 or 8.
        wide_part: The part of these weights that take 8 bits whatever the others take.

    Returns:
        The graph, the choices and findings, and the table of the Linears.

    Raises:
        ModelError: The graph is no ViT that this understands, or its opset is too old.
        ParityError: The task's target does not hold within the float budget.
        UsageError: keep_float names a Linear that is not there, or the target is no CPU.
    """
    _check(task)
    kind = BlockFormat(bits, settings.symmetric, settings.block_size)
    workspace = Workspace(task.scratch / "weight-only")
    reference = workspace.settle(task.model)
    model = reference.clone()
    rounded, choices = _round(task, settings, kind, workspace, reference, model)
    model = workspace.settle(model)

    def variant(names: Sequence[str]) -> onnx_ir.Model:
        return _apply(model, {name: rounded[name] for name in names})

    judged = wide_part > 0 or task.parity_target is not None
    judge = Judge(workspace, reference, task.images, scores=task.scores) if judged else None
    if judge is not None and wide_part > 0:
        rounded |= _widened(task, settings, judge, model, variant, rounded, wide_part)
    trials = _search(task, settings, judge, variant, list(rounded))
    kept_float = trials[-1].kept_float if trials else ()
    names = [name for name in rounded if name not in kept_float]
    return Quantized(
        variant(names),
        _record(task, settings, kind, rounded, choices, names, trials),
        _table(rounded, choices, names),
    )


def _check(task: Task) -> None:
    if task.target != "cpu":
        raise UsageError(
            "weight-only precisions are for ONNX Runtime and OpenVINO on CPUs; for TensorRT choose "
            "int8, fp8 or fp16, or take a cpu recipe"
        )
    opset = task.model.opset_imports.get("", 0)
    least = LEAST_OPSET[task.target]
    if opset < least:
        raise ModelError(f"the graph has opset {opset}; blocks need {least} or newer (--opset 23)")


def linears_of(model: onnx_ir.Model, head: bool) -> list[Linear]:
    """The Linears of the blocks, and those of the readout if asked for.

    OpenVINO reads whole blocks alone. Linears that no block divides stay float beside others that
    some do: T2T-ViT's first, of 147 inputs.
    """
    inside = block_linears(model)
    nodes = {linear.node for linear in inside}
    others = [linear for linear in all_linears(model) if head and linear.node not in nodes]
    every = [*inside, *others]
    return [each for each in every if each.matrix().shape[0] % BLOCK_SIZES[0] == 0] or every


def _round(
    task: Task,
    settings: Settings,
    kind: BlockFormat,
    workspace: Workspace,
    reference: onnx_ir.Model,
    model: onnx_ir.Model,
) -> tuple[dict[str, Rounded], dict[str, Choice]]:
    """Rescale the model's groups in place and round its Linears, some of them at a time."""
    linears = linears_of(model, settings.head)
    check_names(settings.keep_float, [linear.name for linear in linears])
    pixels = task.images.pixels(0, IMAGES)
    tied = prove_groups(workspace, model, linears, pixels) if settings.rescale else []
    corrects, images = settings.bias_correction, task.images.varied()
    rounded: dict[str, Rounded] = {}
    choices: dict[str, Choice] = {}
    for run in passes(linears, tied):
        seen = collect_moments(workspace, reference, run, images, task.progress)
        weights = {linear.weight for linear in run}
        with task.progress("rounding", len(run), "Linear") as bar:
            for group in tied:
                if weights.intersection(linear.weight for linear in group.linears):
                    even = kind.dividing(len(group.linears[0].matrix()))
                    choices |= rescale(group, seen, even, correct_bias=corrects)
            for linear in run:
                if linear.name not in settings.keep_float:
                    moment = seen[str(linear.undivided.name)]
                    rounded[linear.name] = round_linear(
                        linear, moment, even_blocks(linear, kind), settings.rounding,
                        correct_bias=corrects,
                    )  # fmt: skip
                bar.update(1)
        seen.clear()  # before the next pass fills its own
    return rounded, choices


def even_blocks(linear: Linear, kind: BlockFormat) -> BlockFormat:
    """Choose blocks that cut a Linear's inputs evenly; say so where there are none."""
    rows = len(linear.matrix())
    even = kind.dividing(rows)
    if rows % even.block:
        _LOG.warning(
            "%s: no block of %d to %d channels divides its %d; ONNX Runtime reads this bundle, "
            "OpenVINO will not. Take --precision int8, or --set keep_float=%s",
            linear.name, BLOCK_SIZES[0], kind.block, rows, linear.name,
        )  # fmt: skip
    return even


def _apply(model: onnx_ir.Model, rounded: Mapping[str, Rounded]) -> onnx_ir.Model:
    """A copy of the model with these Linears quantized."""
    copy = model.clone()
    for linear in all_linears(copy):
        if linear.name in rounded:
            linear.correct_bias(rounded[linear.name].bias)
            dequantize_in_graph(copy, linear, rounded[linear.name].weight)
    return copy


def _widened(
    task: Task,
    settings: Settings,
    judge: Judge,
    model: onnx_ir.Model,
    variant: Variant,
    rounded: Mapping[str, Rounded],
    part: float,
) -> dict[str, Rounded]:
    """Those that make the most noise for their size, in 8 bits: a part of all weights at most."""
    linears = {each.name: each for each in all_linears(model) if each.name in rounded}
    sizes = {name: linear.matrix().size for name, linear in linears.items()}
    images = settings.sensitivity_images
    journal = Journal(task.journal and task.journal.with_suffix(".narrow"))
    found = shares(judge, variant, list(rounded), images, journal, task.progress)
    left, wide = part * sum(sizes.values()) + 0.5, {}
    for share in by_cost(found, sizes):
        if sizes[share.name] <= left:
            left -= sizes[share.name]
            wide[share.name] = widen(linears[share.name], rounded[share.name].weight.kind)
    journal.finish()
    return wide


def _search(
    task: Task,
    settings: Settings,
    judge: Judge | None,
    variant: Variant,
    names: Sequence[str],
) -> list[Trial]:
    """Look whether the target holds with all of them, and only if not, which to keep in float."""
    if task.parity_target is None or judge is None:
        return []
    summary = judge.summary(variant(names))
    first = Trial((), tuple(task.parity_target.judged(summary).missed(summary)), summary)
    if not first.missed:
        return [first]
    _, more = ranked_search(judge, variant, names, task, settings, least=1)
    return [first, *more]


def _record(
    task: Task,
    settings: Settings,
    kind: BlockFormat,
    rounded: Mapping[str, Rounded],
    choices: Mapping[str, Choice],
    names: Sequence[str],
    trials: Sequence[Trial],
) -> dict[str, Any]:
    """Return what the manifest keeps: enough to see why the graph is as it is."""
    method = f"weight-only, {kind.dtype.name.lower()} in blocks of {kind.block}"
    wide = [name for name in names if rounded[name].weight.kind.bits > kind.bits]
    if wide:
        method += f", {len(wide)} of {len(names)} Linears in 8 bits"
    return {
        **task.record(method, settings),
        **record_of_search(task, trials),
        "weight_bytes": sum(rounded[name].weight.stored_bytes for name in names),
        "linears": [
            {
                "name": name,
                "quantized": name in names,
                "block": linear.weight.kind.block,
                "bits": linear.weight.kind.bits,
                "exponent": choices[name].exponent if name in choices else None,
                "output_error": linear.error,
            }
            for name, linear in rounded.items()
        ],
    }


def _table(
    rounded: Mapping[str, Rounded], choices: Mapping[str, Choice], names: Sequence[str]
) -> tuple[tuple[str, ...], ...]:
    """The Linears, the worst first, to print."""
    rows = [("linear", "output error", "exponent", "weights")]
    for name in sorted(rounded, key=lambda name: -(rounded[name].error or 0.0)):
        linear = rounded[name]
        error = "-" if linear.error is None else f"{linear.error:.1e}"
        exponent = f"{choices[name].exponent:.1f}" if name in choices else "-"
        stored = linear.weight.kind.dtype.name.lower() if name in names else "float"
        rows.append((name, error, exponent, stored))
    return tuple(rows)
