"""No group is used on trust: each is rescaled at random, and the answers must not move."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir
from numpy.typing import NDArray

from vit_edge.graphs.exactness import relative_difference
from vit_edge.graphs.workspace import Workspace
from vit_edge.quantize.linears import Linear, constant
from vit_edge.quantize.rescale.folding import Group, groups
from vit_edge.quantize.rescale.values import value_groups

_LOG = logging.getLogger(__name__)

# A right fold changes the answers by rounding alone: 4e-7 of the largest is what is found, also on
# checkpoints with outliers. A wrong one changes channels by up to e^2.
ALLOWED_RELATIVE = 1e-4
IMAGES = 2  # that a group is tried on
_LOG_SCALE = 2.0  # scales are drawn from e^-2 to e^2, more than smoothing asks for
_CHUNK_BYTES = 96 * 2**20  # of weights that are rewritten, and so held in memory, at once


def prove_groups(
    workspace: Workspace,
    model: onnx_ir.Model,
    linears: list[Linear],
    pixels: NDArray[np.float32],
) -> list[Group]:
    """Find every group of a graph, whoever exported it, and keep those that really are one.

    Costs two runs for each 96 MB of weights, and a few more for every group that fails.

    Args:
        workspace: Where to run.
        model: Settled (Workspace.settle); its weights are those it had when this returns.
        linears: Of its blocks.
        pixels: float32[N, 3, H, W] of an image or two.

    Returns:
        Groups of `folding` and `values`; one that does not hold is left out, and logged.
    """
    candidates = groups(model, linears)
    grouped = {linear for group in candidates for linear in group.linears}
    others = [linear for linear in linears if linear not in grouped]
    candidates += value_groups(workspace, model, linears, others, pixels)
    trial = _Trial(workspace, model, pixels)
    return [group for chunk in _chunks(candidates) for group in _holding(trial, chunk)]


@dataclass(frozen=True)
class _Trial:
    """Rescales groups at random, looks whether anything moves, and puts the weights back."""

    workspace: Workspace
    model: onnx_ir.Model
    pixels: NDArray[np.float32]

    def holds(self, tried: Sequence[Group]) -> bool:
        """True if the outputs, and what comes out of the groups' Linears, stay as they are."""
        rewritten = {value: value.const_value for group in tried for value in _rewritten(group)}
        makers = {factor.value for group in tried for factor in group.factors if factor.inverse}
        linears = (linear for group in tried for linear in group.linears)
        # what makes another group's channels is meant to give other values
        watched = [linear.output for linear in linears if linear.weight not in makers]
        before = self._answers(watched)
        rng = np.random.default_rng(0)
        try:
            for group in tried:
                channels = len(group.linears[0].matrix())
                scale = np.exp(rng.uniform(-_LOG_SCALE, _LOG_SCALE, channels))
                shift = rng.standard_normal(channels) if group.can_shift else np.zeros(channels)
                group.fold(scale, shift)
            after = self._answers(watched)
        finally:
            for value, tensor in rewritten.items():
                value.const_value = tensor
        return all(
            relative_difference(after[name], expected) <= ALLOWED_RELATIVE
            for name, expected in before.items()
        )

    def _answers(self, watched: list[onnx_ir.Value]) -> dict[str, NDArray[np.float32]]:
        observed = [*self.model.graph.outputs, *watched]
        (answers,) = self.workspace.observe(self.model, observed, [self.pixels])
        return answers


def _holding(trial: _Trial, tried: Sequence[Group]) -> list[Group]:
    """The groups that hold; halves are tried apart where not all do."""
    if not tried or trial.holds(tried):
        return list(tried)
    if len(tried) == 1:
        _LOG.warning(
            "%s: rescaling its channels changes the answers; they are left as they are",
            tried[0].name,
        )
        return []
    middle = len(tried) // 2
    return _holding(trial, tried[:middle]) + _holding(trial, tried[middle:])


def _chunks(candidates: list[Group]) -> Iterator[list[Group]]:
    """Groups whose weights together stay below _CHUNK_BYTES."""
    chunk: list[Group] = []
    size = 0
    for group in candidates:
        nbytes = sum(constant(value).nbytes for value in _rewritten(group))
        if chunk and size + nbytes > _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
        chunk.append(group)
        size += nbytes
    yield chunk


def _rewritten(group: Group) -> set[onnx_ir.Value]:
    """Every initializer that `fold` may change."""
    biases = {linear.bias for linear in group.linears if linear.bias is not None}
    return biases | {factor.value for factor in group.factors}
