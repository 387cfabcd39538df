"""Attention masks that hide nothing, as transformers' models have them when they are exported.

They cost an addition over all scores, and hide the attention from whoever looks for its products.
"""

from __future__ import annotations

import numpy as np
import onnx_ir

_SPREADS = ("Expand", "Unsqueeze", "Reshape", "Identity")  # leave a uniform tensor uniform
_MASK = 3  # which input of Attention


def drop_open_masks(model: onnx_ir.Model) -> None:
    """Take out, in place, the masks that let every token see every other.

    Args:
        model: With the shapes of its values, and constants as initializers.
    """
    for node in list(model.graph):
        if node.domain:
            continue
        if node.op_type == "Attention" and len(node.inputs) > _MASK:
            if _is_open(node.inputs[_MASK]):
                node.replace_input_with(_MASK, None)
        elif node.op_type == "Softmax":
            _drop_added(model, node)


def _drop_added(model: onnx_ir.Model, softmax: onnx_ir.Node) -> None:
    """Drop an open mask that is added to the scores, and the guard against rows without a score."""
    masked = softmax.inputs[0]
    add = None if masked is None else masked.producer()
    if masked is None or add is None or add.op_type != "Add" or add.domain:
        return
    for scores, mask in (tuple(add.inputs), tuple(reversed(add.inputs))):
        if scores is not None and _is_open(mask) and scores.shape == masked.shape is not None:
            softmax.replace_input_with(0, scores)
            for guard in _guards(softmax.outputs[0]):
                guard.outputs[0].replace_all_uses_with(softmax.outputs[0])
            return


def _guards(weights: onnx_ir.Value) -> list[onnx_ir.Node]:
    """Every Where(IsNaN(weights), 0, weights) that no output of the graph is."""
    guards = [
        use.node
        for test in weights.uses()
        if test.node.op_type == "IsNaN"
        for use in test.node.outputs[0].uses()
        if use.node.op_type == "Where" and use.idx == 0
    ]
    return [
        node
        for node in guards
        if node.inputs[2] is weights
        and _uniform(node.inputs[1]) == 0
        and not node.outputs[0].is_graph_output()
    ]


def _is_open(mask: onnx_ir.Value | None) -> bool:
    """True for a computed mask that is true, or adds 0, everywhere."""
    if mask is None or mask.is_initializer():
        return False
    number = _uniform(mask)
    return number is not None and number == (1 if mask.dtype == onnx_ir.DataType.BOOL else 0)


def _uniform(value: onnx_ir.Value | None) -> float | None:
    """The number that every element of a tensor is, if that can be told."""
    if value is None or value.is_graph_input():
        return None
    if value.const_value is not None:
        array = value.const_value.numpy()
        first = array.reshape(-1)[:1]
        return float(first[0]) if array.size and np.all(array == first[0]) else None
    node = value.producer()
    if node is None or node.domain:
        return None
    if node.op_type in _SPREADS:
        return _uniform(node.inputs[0])
    if node.op_type == "Where":
        condition = _uniform(node.inputs[0])
        return None if condition is None else _uniform(node.inputs[1 if condition else 2])
    return None
