"""Parts of a graph, so that a variant runs only from where it differs.

A graph can be cut at a waist: all that comes later reads what comes before only through one value,
or two. In a ViT these are the sums behind attention and MLP, and with each of them the sizes of its
tokens where tokens are merged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir
from numpy.typing import NDArray
from onnx_ir import convenience

from vit_edge.graphs.workspace import Workspace

WIDEST = 2  # values of a waist

Values = dict[str, NDArray[np.float32]]


class SharedRuns:
    """Runs variants of a graph over the same images, and what they share with it only once."""

    def __init__(
        self,
        workspace: Workspace,
        model: onnx_ir.Model,
        batches: Sequence[NDArray[np.float32]],
        entries: Mapping[str, str] | None = None,
    ) -> None:
        """Run nothing yet.

        Args:
            workspace: Of the model and its variants.
            model: Settled; it has one input.
            batches: float32[N, 3, H, W] each.
            entries: See Workspace.session.
        """
        self._workspace, self._model, self._entries = workspace, model, entries
        (pixels,) = model.graph.inputs
        self._waists = {-1: (pixels,), **waists(model)}
        self._pixels: list[Values] = [{str(pixels.name): batch} for batch in batches]
        self._position, self._entering = -1, self._pixels  # what the waist there holds

    def answers(self, variant: onnx_ir.Model, output: str) -> NDArray[np.float32]:
        """float32[images, ...]: what a variant answers; each differs later than the one before."""
        shared = shared_nodes(self._model, variant)
        position = max(place for place in self._waists if place < shared)
        if position < self._position:
            self._position, self._entering = -1, self._pixels
        if position > self._position:
            self._entering = self._run(self._model, names(self._waists[position]))
            self._position = position
        return np.concatenate([values[output] for values in self._run(variant, [output])])

    def _run(self, model: onnx_ir.Model, ends: Sequence[str]) -> list[Values]:
        """Run a model from the waist on to some values."""
        starts = names(self._waists[self._position])
        made = [end for end in ends if end not in starts]  # the others pass by as they are
        if not made:
            return self._entering
        part = section(model, starts, made)
        found = self._workspace.values(part, self._entering, made, self._entries)
        return [
            {end: (values | entering)[end] for end in ends}
            for values, entering in zip(found, self._entering, strict=True)
        ]


def names(values: Sequence[onnx_ir.Value]) -> list[str]:
    """List what values are called."""
    return [str(value.name) for value in values]


def waists(model: onnx_ir.Model) -> dict[int, tuple[onnx_ir.Value, ...]]:
    """Every waist, by the position of the last node that lies before it."""
    nodes = list(model.graph)
    last = dict.fromkeys(model.graph.outputs, len(nodes))
    for position, node in enumerate(nodes):
        for value in _computed(node):
            last[value] = max(last.get(value, position), position)
    found: dict[int, tuple[onnx_ir.Value, ...]] = {}
    alive = [value for value in model.graph.inputs if value in last]
    for position, node in enumerate(nodes):
        alive = [value for value in (*alive, *node.outputs) if last.get(value, -1) > position]
        if 0 < len(alive) <= WIDEST:
            found[position] = tuple(alive)
    return found


def shared_nodes(model: onnx_ir.Model, variant: onnx_ir.Model) -> int:
    """Count the first nodes of a variant that compute what those of the model do.

    Constants are the same if they are the same object, as they are in a clone.
    """
    pairs = list(zip(model.graph, variant.graph, strict=False))
    return next((i for i, (ours, its) in enumerate(pairs) if not _same(ours, its)), len(pairs))


def section(model: onnx_ir.Model, starts: Sequence[str], ends: Sequence[str]) -> onnx_ir.Model:
    """Copy what lies between a waist and values behind it, all by name."""
    graph = convenience.extract(model.graph, starts, ends)
    graph.opset_imports.update(model.opset_imports)
    return onnx_ir.Model(graph, ir_version=model.ir_version)


def _computed(node: onnx_ir.Node) -> list[onnx_ir.Value]:
    return [value for value in node.inputs if value is not None and not value.is_initializer()]


def _same(ours: onnx_ir.Node, its: onnx_ir.Node) -> bool:
    if (ours.op_type, ours.domain, dict(ours.attributes)) != (
        its.op_type,
        its.domain,
        dict(its.attributes),
    ):
        return False
    return [_identity(value) for value in ours.inputs] == [_identity(v) for v in its.inputs]


def _identity(value: onnx_ir.Value | None) -> object:
    if value is None or value.const_value is None:
        return None if value is None else value.name
    return id(value.const_value)
