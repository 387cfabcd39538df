"""Rewrites of the graph for OpenVINO: the same model, in a faster shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_edge.backends.openvino.runtime import imported
from vit_edge.errors import BackendError, UsageError

if TYPE_CHECKING:
    import openvino

    Parts = Sequence[openvino.Output]

TOKEN_AXIS = 1  # of activations [N, tokens, width]
# Operators that may treat every token by itself; `_by_token` looks at how each is used.
_ELEMENTWISE = {
    *("Add", "Subtract", "Multiply", "Divide", "Maximum", "FakeQuantize", "Convert", "Gelu")
}
_BEHIND_PRODUCTS = {"Add", "Multiply", "Divide", "Gelu", "Sigmoid", "Swish"}
_MOVES = {"Reshape", "Split", "Transpose"}
_ALONG_WIDTH = {"MVN", "Split", "ReduceMax"}  # second input: axes


def split_tokens(model: openvino.Model, first: int) -> None:
    """Run everything that treats tokens one by one for the first tokens and the rest apart.

    Threads share a product [tokens, K] x [K, N] by blocks of 64 rows. A ViT at 224 px has 197
    rows, of which the last five cost two threads nearly as much as 64. As a product of their own
    they cost a quarter of that (docs/openvino.md). Each product of a row is computed as before.

    Args:
        model: Of static shape, batch 1; rewritten in place. Without batches the tokens lie one
            behind the other in memory, so that joining and parting copy nothing.
        first: How many tokens go first, such as 192.

    Raises:
        UsageError: No number of tokens of this model.
        BackendError: It has no LayerNorm over tokens to begin at.
    """
    nodes = model.get_ordered_ops()
    norms = [shape_of(n.input_value(0)) if n.get_type_name() == "MVN" else [] for n in nodes]
    counts = [shape[TOKEN_AXIS] if len(shape) == 3 else 0 for shape in norms]
    several = [count for count in counts if count > 1]
    if not several:
        raise BackendError("split_tokens: this graph has no LayerNormalization over tokens")
    tokens = max(several, key=several.count)  # of the encoder: T2T-ViT has other norms in front
    if not 0 < first < tokens:
        raise UsageError(f"split_tokens must lie between 1 and {tokens - 1} here, not {first}")
    _Split(tokens, first).rewrite(nodes[counts.index(tokens) :])
    model.validate_nodes_and_infer_types()


class _Split:
    """The rewriting of one model, node by node."""

    def __init__(self, tokens: int, first: int) -> None:
        self._tokens = tokens
        self._sizes = np.array([first, tokens - first], np.int64)
        self._parts: dict[tuple[str, int], Parts] = {}  # of an output, by node and port
        self._joined: dict[tuple[str, int], openvino.Output] = {}

    def rewrite(self, nodes: Sequence[openvino.Node]) -> None:
        """Take the nodes in the order of computation."""
        for node in nodes:
            if self._by_token(node):
                copies = [_copy(node, self._inputs(node, part), part) for part in (0, 1)]
                for port in range(len(node.outputs())):
                    self._parts[node.get_name(), port] = [c.output(port) for c in copies]
            else:
                self._join_inputs(node)

    def _by_token(self, node: openvino.Node) -> bool:
        """True if each token of its outputs depends on that token of its inputs alone."""
        kind = node.get_type_name()
        first, *others = node.input_values() or [None]
        if first is None or not all(self._has_tokens(output) for output in node.outputs()):
            return False
        if kind == "MatMul":
            weight = shape_of(others[0])
            return (
                self._has_tokens(first) and len(weight) == 2 and not _attribute(node, "transpose_a")
            )
        if kind in _ALONG_WIDTH:
            axes = others[0].get_node()
            if axes.get_type_name() != "Constant":
                return False
            return self._has_tokens(first) and set(axes.data.reshape(-1).tolist()) <= {2, -1}
        inputs = (first, *others)
        return kind in _ELEMENTWISE and all(self._has_tokens(i) or _same_for_all(i) for i in inputs)

    def _has_tokens(self, output: openvino.Output) -> bool:
        shape = shape_of(output)
        return len(shape) == 3 and shape[TOKEN_AXIS] == self._tokens

    def _inputs(self, node: openvino.Node, part: int) -> list[openvino.Output]:
        inputs = node.input_values()
        return [self._part(i)[part] if self._has_tokens(i) else i for i in inputs]

    def _part(self, output: openvino.Output) -> Parts:
        key = (output.get_node().get_name(), output.get_index())
        if key not in self._parts:
            ops = imported().opset13
            parts = ops.variadic_split(output, ops.constant(np.int64(TOKEN_AXIS)), self._sizes)
            self._parts[key] = parts.outputs()
            self._joined[key] = output
        return self._parts[key]

    def _join_inputs(self, node: openvino.Node) -> None:
        for given in node.inputs():
            output = given.get_source_output()
            key = (output.get_node().get_name(), output.get_index())
            if key not in self._parts:
                continue
            if key not in self._joined:
                joined = imported().opset13.concat(list(self._parts[key]), TOKEN_AXIS).output(0)
                joined.set_names(output.get_names())  # of the model's outputs
                self._joined[key] = joined
            given.replace_source_output(self._joined[key])


def round_products(model: openvino.Model) -> None:
    """Compute float32 products of bfloat16 inputs, with float32 between them; in place.

    Attention, and Linears whose weights are float32. Sums are float32, and so is the head, or
    logits would be rounded. The patch embedding too: pixels in bfloat16 cost an INT8 model 7 dB
    (docs/openvino.md). Products of integers, or of weights held in fewer bits, stay what they are.
    So do those of one token that becomes integers next: OpenVINO 2026.4 fails over their types.
    """
    ops = imported().opset13
    bfloat16, float32 = imported().Type.bf16, imported().Type.f32
    for node in model.get_ordered_ops():
        if not _is_float_product(node) or node.output(0).get_element_type() != float32:
            continue
        if shape_of(node.output(0))[-2] == 1 and _is_rounded_next(node):
            continue
        readers = node.output(0).get_target_inputs()
        for given in map(_before_moves, node.inputs()):
            source = given.get_source_output()
            if source.get_element_type() != bfloat16:  # or it was another input's source too
                given.replace_source_output(ops.convert(source, bfloat16).output(0))
        answer = ops.convert(node, float32).output(0)
        for reader in readers:
            reader.replace_source_output(answer)
    model.validate_nodes_and_infer_types()


def _before_moves(given: openvino.Input) -> openvino.Input:
    """Find the place to round an input: before it is moved about, so that less is moved."""
    node = given.get_source_output().get_node()
    while node.get_type_name() in _MOVES and all(
        len(o.get_target_inputs()) == 1 for o in node.outputs()
    ):
        given = node.input(0)
        node = given.get_source_output().get_node()
    return given


def _is_float_product(node: openvino.Node) -> bool:
    kind = node.get_type_name()
    if kind == "ScaledDotProductAttention":
        return True
    if kind != "MatMul":
        return False
    left, right = node.input_values()
    if len(shape_of(right)) == 2:
        return len(shape_of(left)) > 2 and right.get_node().get_type_name() == "Constant"
    return True  # of attention, written out


def _is_rounded_next(node: openvino.Node) -> bool:
    """True if a value becomes integers behind nothing but elementwise operators."""
    readers = [given.get_node() for given in node.output(0).get_target_inputs()]
    return any(
        reader.get_type_name() == "FakeQuantize"
        or (reader.get_type_name() in _BEHIND_PRODUCTS and _is_rounded_next(reader))
        for reader in readers
    )


def shape_of(output: openvino.Output) -> list[int]:
    """The shape, -1 where it is free."""
    return [d.get_length() if d.is_static else -1 for d in output.get_partial_shape()]


def _same_for_all(output: openvino.Output) -> bool:
    """True if it broadcasts over tokens."""
    shape = shape_of(output)
    return len(shape) < 2 or (len(shape) <= 3 and shape[-2] == 1)


def _attribute(node: openvino.Node, name: str) -> Any:
    return node.get_attributes()[name]


def _copy(node: openvino.Node, inputs: Sequence[openvino.Output], part: int) -> openvino.Node:
    """The same operator on other inputs; the bindings have no method for it."""
    ops = imported().opset13
    given = node.get_attributes()
    makers: dict[str, Callable[[], Any]] = {
        "Add": lambda: ops.add(*inputs),
        "Subtract": lambda: ops.subtract(*inputs),
        "Multiply": lambda: ops.multiply(*inputs),
        "Divide": lambda: ops.divide(*inputs),
        "Maximum": lambda: ops.maximum(*inputs),
        "ReduceMax": lambda: ops.reduce_max(*inputs, given["keep_dims"]),
        "FakeQuantize": lambda: ops.fake_quantize(*inputs, given["levels"]),
        "Convert": lambda: ops.convert(*inputs, given["destination_type"]),
        "Gelu": lambda: ops.gelu(*inputs, given["approximation_mode"]),
        "MVN": lambda: ops.mvn(
            *inputs, given["normalize_variance"], given["eps"], given["eps_mode"]
        ),
        "MatMul": lambda: ops.matmul(*inputs, given["transpose_a"], given["transpose_b"]),
        "Split": lambda: ops.split(*inputs, given["num_splits"]),
    }
    copy: openvino.Node = makers[node.get_type_name()]()
    copy.set_friendly_name(f"{node.get_friendly_name()}/{part}")
    return copy
