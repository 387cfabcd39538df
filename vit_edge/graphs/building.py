"""New nodes in an existing graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir
from numpy.typing import NDArray

from vit_edge.graphs.names import Names


class Builder:
    """Puts nodes in front of one that they will replace, named after the module it belongs to."""

    def __init__(self, model: onnx_ir.Model, anchor: onnx_ir.Node) -> None:
        """Build in front of `anchor`, whose name is `MODULE/OPERATOR`."""
        self._graph, self._anchor = model.graph, anchor
        self._module = str(anchor.name).rpartition("/")[0] or str(anchor.name)
        self._names = Names.of(model)

    def __call__(
        self,
        operator: str,
        inputs: Sequence[onnx_ir.Value],
        shape: Iterable[Any],
        dtype: onnx_ir.DataType | None,
        attributes: Mapping[str, Any] | None = None,
    ) -> onnx_ir.Value:
        """Add a node.

        Args:
            operator: A standard one, with one output.
            inputs: Of the node.
            shape: Of its output; sizes or symbols.
            dtype: Of its output; None where it is not known.
            attributes: Of the node.

        Returns:
            The output.
        """
        node = onnx_ir.node(operator, inputs, attributes, name=self._fresh(f"/{operator}"))
        (output,) = node.outputs
        output.name, output.shape = self._names.fresh(f"{node.name}:0"), onnx_ir.Shape(shape)
        output.type = None if dtype is None else onnx_ir.TensorType(dtype)
        self._graph.insert_before(self._anchor, node)
        return output

    def constant(self, name: str, array: NDArray[np.generic]) -> onnx_ir.Value:
        """Add an initializer `MODULE.name`."""
        tensor = onnx_ir.tensor(array, name=self._fresh(f".{name}"))
        value = onnx_ir.Value(
            name=tensor.name,
            shape=onnx_ir.Shape(array.shape),
            type=onnx_ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self._graph.register_initializer(value)
        return value

    def reshape(self, value: onnx_ir.Value, shape: Sequence[Any]) -> onnx_ir.Value:
        """Give all axes but the first, the batch, another form."""
        target = self.constant("shape", np.array([-1, *shape[1:]], np.int64))
        return self("Reshape", [value, target], shape, value.dtype)

    def _fresh(self, end: str) -> str:
        return self._names.fresh(self._module + end)
