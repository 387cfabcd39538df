"""Scales for what no layer in front can absorb: fc1 -> GELU -> Mul -> fc2.

A few channels behind GELU reach ten times further than the others, and one step serves all. GELU is
not linear, so nothing in front of it can undo a scale. A multiplication in front of fc2 can: it is
exact, costs hardly any time, and the weights of fc2 take its inverse. Symmetric integers gain
from a shift too, since GELU leaves nothing below -0.17.

Rows differ as channels do: a token's largest value may be a tenth of another's. On CPUs each row is
divided by its own maximum as well, and what the Linear makes of it multiplied again:

    x -> x / s - z -> / max of the row -> Linear -> * max of the row -> + bias

With the lower end of every channel, z, at zero, every row fills the integers from 0 to the largest,
whatever image it is from: no range has to be known. What a LayerNormalization or the attention
leaves lies on both sides of zero; its rows are divided by their largest |x|, which costs less,
since they are narrow.

What gains less than it costs is left out.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import onnx_ir
from numpy.typing import NDArray

from vit_edge.graphs.building import add_constant
from vit_edge.graphs.workspace import Workspace
from vit_edge.quantize import Task
from vit_edge.quantize.linears import Linear, block_linears
from vit_edge.quantize.rescale.folding import Factor, Group, rows
from vit_edge.quantize.rescale.proving import IMAGES, prove_groups
from vit_edge.quantize.rescale.smoothing import Choice, Error, choose, smoothing_scale
from vit_edge.quantize.rounding.samples import SMALLEST_ROW, Sample

Inserted = Literal["none", "scale", "scale and shift", "rows"]

WORTH = 0.8  # of the error without: a decibel
WORTH_ROWS = 0.6  # of the error with a scale alone: they take 5 % of an MLP's time
WORTH_NARROW_ROWS = 0.9  # of qkv, out and fc1: 0.07 to 0.2 % of a graph of 12 blocks, each
ROW_ALPHAS = (0.6, 0.8, 1.0)
OPSET_OF_AXES = 18  # from here on ReduceMax takes its axes as an input
PEAK = 0.7  # of a channel's reach is its largest value, the rest its mean square, geometrically


def smooth_every(
    workspace: Workspace,
    model: onnx_ir.Model,
    samples: dict[onnx_ir.Value, Sample],
    task: Task,
    error: Error,
    *,
    shift: bool,
    inserted: Inserted,
) -> dict[str, Choice]:
    """Choose and fold a scale for every Linear of the blocks.

    Args:
        workspace: Where to run.
        model: Settled; its weights are rewritten, and nodes are inserted.
        samples: Of what enters the Linears; they follow.
        task: With calibration images.
        error: What rounding does to a Linear.
        shift: Whether channels may be moved as well.
        inserted: What may stand in front of a Linear that nothing else rescales.

    Returns:
        What was done, by the name of the Linear.
    """
    linears = block_linears(model)
    groups = prove_groups(workspace, model, linears, task.images.pixels(0, IMAGES))
    choices: dict[str, Choice] = {}
    with task.progress("smoothing", len(groups), "group") as bar:
        for group in groups:
            allowed = dataclasses.replace(group, can_shift=group.can_shift and shift)
            choices |= _smooth(model, allowed, samples, error, by_row=inserted == "rows")
            bar.update(1)
    if inserted == "none":
        return choices
    grouped = {linear.name for group in groups for linear in group.linears}
    readers: dict[onnx_ir.Value, list[Linear]] = {}
    for linear in linears:
        if linear.name not in grouped:
            readers.setdefault(linear.input, []).append(linear)
    with task.progress("scales", len(readers), "Linear") as bar:
        for value, alike in readers.items():
            kind = inserted if shift else "scale"
            choices |= _insert(model, value, alike, samples, error, kind)
            bar.update(1)
    return choices


def _smooth(
    model: onnx_ir.Model,
    group: Group,
    samples: dict[onnx_ir.Value, Sample],
    error: Error,
    *,
    by_row: bool,
) -> dict[str, Choice]:
    """Fold the scale of a group, and divide the rows behind it if that is worth it."""
    sample = samples[group.linears[0].input]
    choice = choose(group, sample, error)
    if by_row and all(linear.add is not None for linear in group.linears):
        of_rows = _for_rows(group, sample, error, choice.shift, two_sided=True)
        choice = of_rows if of_rows.error < WORTH_NARROW_ROWS * choice.error else choice
    group.fold(choice.scale, choice.shift)
    readers: dict[onnx_ir.Value, list[Linear]] = {}
    for linear in group.linears:
        readers.setdefault(linear.input, []).append(linear)
    for value, alike in readers.items():
        sample = samples.pop(value).rescale(choice.scale, choice.shift)
        if choice.by_row:
            value = divide_rows(model, value, alike, two_sided=True)
            sample = sample.by_row(two_sided=True)
        samples[value] = sample
    return {linear.name: choice for linear in group.linears}


def _insert(
    model: onnx_ir.Model,
    value: onnx_ir.Value,
    linears: list[Linear],
    samples: dict[onnx_ir.Value, Sample],
    error: Error,
    inserted: Inserted,
) -> dict[str, Choice]:
    """Multiply what some Linears read, and perhaps more, if that is worth it."""
    weights = tuple(factor for linear in linears for factor in [rows(linear)])
    group = Group(f"{linears[0].name}.rescale", tuple(linears), weights, can_shift=False)
    if inserted != "scale" and all(linear.bias is not None for linear in linears):
        group = dataclasses.replace(group, can_shift=True)
    middle = dataclasses.replace(group, can_shift=group.can_shift and inserted != "rows")
    choice = choose(middle, samples[value], error)
    if inserted == "rows" and all(linear.add is not None for linear in linears):
        lowest = samples[value].low.astype(np.float64)
        of_rows = _for_rows(group, samples[value], error, lowest, two_sided=False)
        choice = of_rows if of_rows.error < WORTH_ROWS * choice.error else choice
    if choice.alpha is None or choice.error > WORTH:
        return {}
    sample = samples.pop(value)
    scaled = _node(model, linears[0], "Mul", value, np.ones(len(choice.scale), np.float32))
    factors = [_factor(scaled, shifted=False)]
    if choice.shifted:
        zeros = np.zeros(len(choice.scale), np.float32)
        scaled = _node(model, linears[0], "Add", scaled.outputs[0], zeros)
        factors.append(_factor(scaled, shifted=True))
    for linear in linears:
        linear.node.replace_input_with(0, scaled.outputs[0])
    dataclasses.replace(group, factors=(*factors, *weights)).fold(choice.scale, choice.shift)
    sample, entering = sample.rescale(choice.scale, choice.shift), scaled.outputs[0]
    if choice.by_row:
        entering = divide_rows(model, entering, linears, two_sided=False)
        sample = sample.by_row()
    samples[entering] = sample
    return {linear.name: choice for linear in linears}


def _for_rows(
    group: Group,
    sample: Sample,
    error: Error,
    shift: NDArray[np.float64],
    *,
    two_sided: bool,
) -> Choice:
    """Find the scale for rows that are divided by their maxima.

    The maximum of a row is that of its largest channel, so a channel that is rarely large should
    not be made small for it: its mean square counts beside its largest value.

    Args:
        group: Its weights are read, not changed.
        sample: Of what enters its Linears.
        error: What rounding does to a Linear.
        shift: float64[C], taken from the channels first.
        two_sided: Whether something lies below 0 then.
    """
    weights = [linear.matrix().astype(np.float32) for linear in group.linears]
    largest = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0)
    unscaled = sum(error(sample, weight) for weight in weights)
    mean_square = np.square(sample.rows - shift).mean(axis=0)
    farthest = np.maximum(np.abs(sample.low - shift), np.abs(sample.high - shift))
    reach = farthest**PEAK * np.sqrt(mean_square) ** (1 - PEAK)
    best = Choice(None, False, np.ones(len(shift)), np.zeros(len(shift)), np.inf)
    for alpha in ROW_ALPHAS:
        scale = smoothing_scale(reach, largest, alpha)
        moved = sample.rescale(scale, shift).by_row(two_sided=two_sided)
        scaled = [(weight * scale[:, None]).astype(np.float32) for weight in weights]
        relative = sum(error(moved, weight) for weight in scaled) / (unscaled or 1.0)
        if relative < best.error:
            best = Choice(alpha, bool(shift.any()), scale, shift, relative, by_row=True)
    return best


def divide_rows(
    model: onnx_ir.Model, value: onnx_ir.Value, linears: list[Linear], *, two_sided: bool
) -> onnx_ir.Value:
    """Divide what some Linears read by the maxima of the rows, and multiply what they make.

    Args:
        model: Nodes are inserted.
        value: What the Linears read.
        linears: Each has an Add for its bias, or none.
        two_sided: Whether it is the largest |x| of a row that counts.

    Returns:
        What the Linears read now.
    """
    stem, shape = f"{linears[0].name}.rescale", list(value.shape or ())[:-1]
    axes: list[onnx_ir.Value] = []
    attributes = [onnx_ir.AttrInt64("keepdims", 1)]
    if model.opset_imports[""] < OPSET_OF_AXES:
        attributes.append(onnx_ir.AttrInt64s("axes", [-1]))
    else:
        axes = [add_constant(model, f"{stem}.axes", np.array([-1], np.int64))]
    least = add_constant(model, f"{stem}.least", SMALLEST_ROW)
    reach, first = value, []
    if two_sided:
        first = [onnx_ir.Node("", "Abs", [value], name=f"{stem}/Abs")]
        reach = first[0].outputs[0]
    largest = onnx_ir.Node("", "ReduceMax", [reach, *axes], attributes, name=f"{stem}/ReduceMax")
    sizes = onnx_ir.Node("", "Max", [largest.outputs[0], least], name=f"{stem}/Max")
    divided = onnx_ir.Node("", "Div", [value, sizes.outputs[0]], name=f"{stem}/Div")
    for node in (*first, largest, sizes, divided):
        narrow = node in (largest, sizes)
        _describe(node, value, onnx_ir.Shape([*shape, 1]) if narrow else value.shape)
    readers = {linear.node for linear in linears}
    earliest = next(node for node in model.graph if node in readers)
    model.graph.insert_before(earliest, [*first, largest, sizes, divided])
    for linear in linears:
        linear.node.replace_input_with(0, divided.outputs[0])
        made = linear.node.outputs[0]
        uses = list(made.uses())
        back = onnx_ir.Node("", "Mul", [made, sizes.outputs[0]], name=f"{linear.name}.rows/Mul")
        _describe(back, made, made.shape)
        model.graph.insert_after(linear.node, back)
        for use in uses:
            use.node.replace_input_with(use.idx, back.outputs[0])
    return divided.outputs[0]


def join_rows(model: onnx_ir.Model, linears: list[Linear]) -> None:
    """Take the division of rows away again where none of its Linears is quantized.

    Args:
        model: Its nodes are removed.
        linears: Those that stay in float.
    """
    staying = {linear.node for linear in linears}
    for linear in linears:
        divided, undivided = linear.input, linear.undivided
        if divided is undivided or any(use.node not in staying for use in divided.uses()):
            continue
        for node in [use.node for use in divided.uses()]:
            node.replace_input_with(0, undivided)
            made = node.outputs[0]
            (back,) = (use.node for use in made.uses())
            back.outputs[0].replace_all_uses_with(made)
            model.graph.remove(back, safe=True)
        _remove_unused(divided.producer())


def _remove_unused(node: onnx_ir.Node | None) -> None:
    """Remove a node whose outputs nothing reads, and what only it read."""
    if node is None or node.graph is None or any(output.uses() for output in node.outputs):
        return
    read = [value.producer() for value in node.inputs if value is not None]
    node.graph.remove(node, safe=True)
    for producer in read:
        _remove_unused(producer)


def _describe(node: onnx_ir.Node, like: onnx_ir.Value, shape: onnx_ir.Shape | None) -> None:
    """Name the output of a node of ours, and say what it is."""
    node.outputs[0].name, node.outputs[0].shape = f"{node.name}:0", shape
    node.outputs[0].type = like.type


def _factor(node: onnx_ir.Node, *, shifted: bool) -> Factor:
    """What follows the scale in a node of ours: its constant."""
    value = node.inputs[1]
    assert value is not None
    return Factor(value, (slice(None),), (-1,), inverse=True, shifted=shifted)


def _node(
    model: onnx_ir.Model,
    linear: Linear,
    operator: str,
    value: onnx_ir.Value,
    neutral: np.ndarray[tuple[int], np.dtype[np.float32]],
) -> onnx_ir.Node:
    """Insert an operator with a constant in front of a Linear."""
    name = f"{linear.name}.rescale/{operator}"
    operand = add_constant(model, f"{linear.name}.rescale.{operator.lower()}", neutral)
    node = onnx_ir.Node("", operator, [value, operand], name=name)
    _describe(node, value, value.shape)
    model.graph.insert_before(linear.node, node)
    return node
