"""Scales for what no layer in front can absorb: fc1 -> GELU -> Mul -> fc2.

A few channels behind GELU reach ten times further than the others, and one step serves all. GELU is
not linear, so nothing in front of it can undo a scale. A multiplication in front of fc2 can: it is
exact, costs hardly any time, and the weights of fc2 take its inverse. Symmetric integers gain
from a shift too, since GELU leaves nothing below -0.17.

A multiplication that gains less than a decibel is taken out again.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import onnx_ir

from vit_edge.graphs.building import add_constant
from vit_edge.graphs.workspace import Workspace
from vit_edge.quantize import Task
from vit_edge.quantize.linears import Linear, block_linears
from vit_edge.quantize.rescale.folding import Factor, Group, rows
from vit_edge.quantize.rescale.proving import IMAGES, prove_groups
from vit_edge.quantize.rescale.smoothing import Choice, Error, choose, smooth
from vit_edge.quantize.rounding.samples import Sample

Inserted = Literal["none", "scale", "scale and shift"]

WORTH = 0.8  # of the error without: a decibel


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
    choices = smooth(groups, samples, error, shift=shift, progress=task.progress)
    if inserted == "none":
        return choices
    grouped = {linear.name for group in groups for linear in group.linears}
    readers: dict[onnx_ir.Value, list[Linear]] = {}
    for linear in linears:
        if linear.name not in grouped:
            readers.setdefault(linear.input, []).append(linear)
    with task.progress("scales", len(readers), "Linear") as bar:
        for value, alike in readers.items():
            shifted = shift and inserted == "scale and shift"
            choices |= _insert(model, value, alike, samples, error, shift=shifted)
            bar.update(1)
    return choices


def _insert(
    model: onnx_ir.Model,
    value: onnx_ir.Value,
    linears: list[Linear],
    samples: dict[onnx_ir.Value, Sample],
    error: Error,
    *,
    shift: bool,
) -> dict[str, Choice]:
    """Multiply what some Linears read, and perhaps add to it, if that is worth it."""
    weights = tuple(factor for linear in linears for factor in [rows(linear)])
    can_shift = shift and all(linear.bias is not None for linear in linears)
    group = Group(f"{linears[0].name}.rescale", tuple(linears), weights, can_shift)
    choice = choose(group, samples[value], error)
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
    samples[scaled.outputs[0]] = sample.rescale(choice.scale, choice.shift)
    return {linear.name: choice for linear in linears}


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
    node.outputs[0].name, node.outputs[0].shape = f"{name}:0", value.shape
    node.outputs[0].type = value.type
    model.graph.insert_before(linear.node, node)
    return node
