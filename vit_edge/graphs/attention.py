"""The Attention operator taken to pieces, for runtimes and quantizers that need its products."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir

from vit_edge.graphs.building import Builder
from vit_edge.graphs.exactness import prove_same
from vit_edge.graphs.workspace import Workspace

_RANK = 4  # [N, heads, tokens, head_dim], as torch's exporters write it
_INPUTS = 3  # q, k, v: no mask, nothing that was computed before


def with_decomposed_attention(model: onnx_ir.Model, workspace: Workspace) -> onnx_ir.Model:
    """Give a model whose Attention operators are MatMul, Softmax and MatMul, proven unchanged.

    Args:
        model: Settled; left as it is, and returned where it has none that `decompose` takes.
        workspace: Where to run both.

    Raises:
        ModelError: What was made computes something else.
    """
    rewritten = model.clone()
    if not decompose(rewritten):
        return model
    remedy = "Export the model again with opset 18 to 22, whose attention is decomposed."
    prove_same(model, rewritten, workspace, "with its attention decomposed", remedy)
    return rewritten


def decompose(model: onnx_ir.Model) -> list[str]:
    """Write softmax(q k^T scale) v as MatMul, Softmax and MatMul, in place.

    Half of the scale goes to each side of the first product, as the operator itself does it.

    Args:
        model: Normalised. Attention with a mask, a soft cap, a past, several outputs or q, k and v
            of rank 3 stays as it is.

    Returns:
        The names of the nodes that are gone.
    """
    plain = [node for node in model.graph if node.op_type == "Attention" and _is_plain(node)]
    for node in plain:
        q, k, v = node.inputs[:_INPUTS]
        assert q is not None
        assert k is not None
        assert v is not None
        batch, heads, tokens, width = _sizes(q)
        keys, dtype = _sizes(k)[2], q.dtype
        default = float(width) ** -0.5 if isinstance(width, int) else 1.0
        scale = node.attributes["scale"].as_float() if "scale" in node.attributes else default
        build = Builder(model, node)
        root = build.constant("root_of_scale", np.array(scale**0.5, np.float32))
        q = build("Mul", [q, root], [batch, heads, tokens, width], dtype)
        turned = [batch, heads, width, keys]
        k = build("Transpose", [k], turned, dtype, {"perm": [0, 1, 3, 2]})
        k = build("Mul", [k, root], turned, dtype)
        scores = build("MatMul", [q, k], [batch, heads, tokens, keys], dtype)
        weights = build("Softmax", [scores], [batch, heads, tokens, keys], dtype, {"axis": -1})
        mixed = build("MatMul", [weights, v], [batch, heads, tokens, _sizes(v)[3]], dtype)
        output = node.outputs[0]
        name, output.name = output.name, None
        output.replace_all_uses_with(mixed, replace_graph_outputs=True)
        mixed.name = name
        model.graph.remove(node, safe=True)
    return [str(node.name) for node in plain]


def _is_plain(node: onnx_ir.Node) -> bool:
    """True if a node is softmax(q k^T scale) v and no more."""
    if node.domain or len(node.inputs) < _INPUTS or any(node.inputs[_INPUTS:]):
        return False
    sizes = [_sizes(value) for value in node.inputs[:_INPUTS]]
    if any(len(each) != _RANK for each in sizes):
        return False
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return False
    if any(
        name in node.attributes and node.attributes[name].value
        for name in ("is_causal", "softcap", "softmax_precision")
    ):
        return False
    heads, width = sizes[0][1], sizes[0][3]
    same_heads = isinstance(heads, int) and all(each[1] == heads for each in sizes)
    return same_heads and (isinstance(width, int) or "scale" in node.attributes)


def _sizes(value: onnx_ir.Value | None) -> list[Any]:
    """Sizes, and symbols for those that are dynamic; none where nothing is known."""
    return [] if value is None or value.shape is None else list(value.shape)
