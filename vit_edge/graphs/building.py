"""New nodes in an existing graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir
from numpy.typing import NDArray

from vit_edge.graphs.names import Names


def add_constant(
    model: onnx_ir.Model, wish: str, array: NDArray[np.generic], names: Names | None = None
) -> onnx_ir.Value:
    """Add an initializer, called `wish` unless something else is; `names` are the model's."""
    tensor = onnx_ir.tensor(array, name=(names or Names.of(model)).fresh(wish))
    value = onnx_ir.Value(
        name=tensor.name,
        type=onnx_ir.TensorType(tensor.dtype),
        shape=onnx_ir.Shape(array.shape),
        const_value=tensor,
    )
    model.graph.register_initializer(value)
    return value


class Builder:
    """Puts nodes in front of one that they will replace, named after the module it belongs to."""

    def __init__(self, model: onnx_ir.Model, anchor: onnx_ir.Node) -> None:
        """Build in front of `anchor`, whose name is `MODULE/OPERATOR`."""
        self._model, self._anchor = model, anchor
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
        self._model.graph.insert_before(self._anchor, node)
        return output

    def constant(self, name: str, array: NDArray[np.generic]) -> onnx_ir.Value:
        """Add an initializer `MODULE.name`."""
        return add_constant(self._model, f"{self._module}.{name}", array, self._names)

    def reshape(self, value: onnx_ir.Value, shape: Sequence[Any]) -> onnx_ir.Value:
        """Give all axes but the first, the batch, another form."""
        target = self.constant("shape", np.array([-1, *shape[1:]], np.int64))
        return self("Reshape", [value, target], shape, value.dtype)

    def _fresh(self, end: str) -> str:
        return self._names.fresh(self._module + end)
