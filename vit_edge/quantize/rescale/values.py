"""Values and the projection behind them, in graphs whose names say nothing.

Structure says where to look: from a projection back over nodes that only move data, through the
product with the attention's weights, and on to a Linear. Its layout (q, k and v separate, or
fused as [3, heads, head_dim] or otherwise) is not guessed. Which of its outputs are the values, and
in which order they reach the projection, is measured: each output of the Linear is replaced by its
own number, and the projection's input shows which number arrives in which channel. Weights that
sum to 1 leave the numbers as they are.
"""

from __future__ import annotations

import numpy as np
import onnx_ir
from numpy.typing import NDArray

from vit_edge.graphs.building import add_constant
from vit_edge.graphs.names import Names
from vit_edge.graphs.workspace import Workspace
from vit_edge.quantize.linears import Linear, is_initializer
from vit_edge.quantize.rescale.folding import Group, columns, rows

_MOVES = {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Split", "Gather"}
_VALUE_INPUT = {"MatMul": 1, "Attention": 2}  # which operand of the product with the weights
# Numbers up to three times the width arrive within a float32 rounding of what they were.
_TOLERANCE = 0.05


def value_groups(
    workspace: Workspace,
    model: onnx_ir.Model,
    linears: list[Linear],
    projections: list[Linear],
    pixels: NDArray[np.float32],
) -> list[Group]:
    """Find values whose channels reach a projection in their order, whoever exported the graph.

    Args:
        workspace: Where to run.
        model: Settled; left as it is.
        linears: Those that may make values.
        projections: Those that may read them.
        pixels: float32[N, 3, H, W]; what they show does not matter.
    """
    pairs = _pairs(linears, projections)
    if not pairs:
        return []
    arrived = _arrivals(workspace, model, pairs, pixels)
    groups = []
    for maker, out in pairs:
        start = _first_channel(arrived[str(out.input.name)])
        width = out.matrix().shape[0]
        if start is not None and start + width <= maker.matrix().shape[1]:
            factors = (*columns(maker, start, start + width), rows(out))
            can_shift = maker.bias is not None and out.bias is not None
            groups.append(Group(f"{maker.name}.value", (out,), factors, can_shift))
    return groups


def _pairs(linears: list[Linear], projections: list[Linear]) -> list[tuple[Linear, Linear]]:
    """(the Linear that makes the values, the projection), as far as only moves lie between."""
    makers = {linear.output: linear for linear in linears}
    pairs = []
    for out in projections:
        mixed = _origin(out.input).producer()
        operand = None if mixed is None or mixed.domain else _VALUE_INPUT.get(mixed.op_type)
        if mixed is None or operand is None:
            continue
        values = mixed.inputs[operand]
        if values is not None and not is_initializer(values) and not _is_added(values):
            maker = makers.get(_origin(values))
            if maker is not None:
                pairs.append((maker, out))
    return pairs


def _is_added(values: onnx_ir.Value) -> bool:
    """True if values go past the attention too, as T2T-ViT's do."""
    return any(use.node.op_type == "Add" for use in values.uses())


def _origin(value: onnx_ir.Value) -> onnx_ir.Value:
    """Follow a value back to where it was before it was only moved."""
    producer = value.producer()
    while producer is not None and not producer.domain and producer.op_type in _MOVES:
        source = producer.inputs[0]
        if source is None:
            break
        value, producer = source, source.producer()
    return value


def _arrivals(
    workspace: Workspace,
    model: onnx_ir.Model,
    pairs: list[tuple[Linear, Linear]],
    pixels: NDArray[np.float32],
) -> dict[str, NDArray[np.float32]]:
    """Observe what reaches the projections when every maker's outputs are their own numbers."""
    marked = model.clone()
    values = {v.name: v for node in marked.graph for v in node.outputs}
    for number, maker in enumerate({linear.output: linear for linear, _ in pairs}.values()):
        _number_channels(marked, values[maker.output.name], maker.matrix().shape[1], number)
    observed = [values[out.input.name] for _, out in pairs]
    (arrived,) = workspace.observe(marked, observed, [pixels])
    return arrived


def _number_channels(model: onnx_ir.Model, value: onnx_ir.Value, width: int, number: int) -> None:
    """Replace what all readers see of a value by 0, 1, 2, ... along its last axis."""
    readers, names, stem = value.uses(), Names.of(model), f"value_probe.{number}"
    zero = add_constant(model, f"{stem}.zero", np.float32(0), names)
    numbers = add_constant(model, stem, np.arange(width, dtype=np.float32), names)
    erased = onnx_ir.Node("", "Mul", [value, zero], name=names.fresh(f"{stem}/Mul"))
    filled = onnx_ir.Node("", "Add", [erased.outputs[0], numbers], name=names.fresh(f"{stem}/Add"))
    for node in (erased, filled):
        node.outputs[0].name = names.fresh(f"{node.name}:0")
    producer = value.producer()
    assert producer is not None
    model.graph.insert_after(producer, [erased, filled])
    for use in readers:
        use.node.replace_input_with(use.idx, filled.outputs[0])


def _first_channel(arrived: NDArray[np.float32]) -> int | None:
    """Return the number that arrived first, if the others follow one by one at every token."""
    tokens = arrived.reshape(-1, arrived.shape[-1])
    if not np.isfinite(tokens).all():
        return None
    start = round(float(tokens[0, 0]))
    expected = start + np.arange(tokens.shape[1])
    return start if np.abs(tokens - expected).max() < _TOLERANCE else None
