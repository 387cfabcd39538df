"""Parts of a graph between two values, so that a variant runs only from where it differs.

A value is a waist if all that comes later reads what comes before only through it: in a ViT the
sums behind attention and MLP. A graph can be cut there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir
from numpy.typing import NDArray
from onnx_ir import convenience

from vit_edge.graphs.workspace import Workspace


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
        self._pixels = batches
        self._waists = {-1: model.graph.inputs[0], **waists(model)}
        self._position, self._entering = -1, batches  # what the waist there holds

    def answers(self, variant: onnx_ir.Model, output: str) -> NDArray[np.float32]:
        """float32[images, ...]: what a variant answers; each differs later than the one before."""
        shared = shared_nodes(self._model, variant)
        position = max(place for place in self._waists if place < shared)
        if position < self._position:
            self._position, self._entering = -1, self._pixels
        if position > self._position:
            self._entering = self._run(self._model, str(self._waists[position].name))
            self._position = position
        return np.concatenate(self._run(variant, output))

    def _run(self, model: onnx_ir.Model, end: str) -> list[NDArray[np.float32]]:
        """Run a model from the waist on to a value."""
        start = str(self._waists[self._position].name)
        part = section(model, start, end)
        return list(self._workspace.answers(part, self._entering, end, self._entries))


def waists(model: onnx_ir.Model) -> dict[int, onnx_ir.Value]:
    """Every waist, by the position of the last node that lies before it."""
    nodes = list(model.graph)
    last = dict.fromkeys(model.graph.outputs, len(nodes))
    for position, node in enumerate(nodes):
        for value in _computed(node):
            last[value] = max(last.get(value, position), position)
    found, alive = {}, [value for value in model.graph.inputs if value in last]
    for position, node in enumerate(nodes):
        alive = [value for value in (*alive, *node.outputs) if last.get(value, -1) > position]
        if len(alive) == 1:
            found[position] = alive[0]
    return found


def shared_nodes(model: onnx_ir.Model, variant: onnx_ir.Model) -> int:
    """Count the first nodes of a variant that compute what those of the model do.

    Constants are the same if they are the same object, as they are in a clone.
    """
    pairs = list(zip(model.graph, variant.graph, strict=False))
    return next((i for i, (ours, its) in enumerate(pairs) if not _same(ours, its)), len(pairs))


def section(model: onnx_ir.Model, start: str, end: str) -> onnx_ir.Model:
    """Copy what lies between a waist and a value behind it, both by name."""
    graph = convenience.extract(model.graph, [start], [end])
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
