"""New nodes in an existing graph."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir
from numpy.typing import NDArray


def add_constant(model: onnx_ir.Model, name: str, array: NDArray[np.generic]) -> onnx_ir.Value:
    """Add an initializer; its name is free."""
    tensor = onnx_ir.tensor(array, name=name)
    value = onnx_ir.Value(
        name=name,
        type=onnx_ir.TensorType(tensor.dtype),
        shape=onnx_ir.Shape(array.shape),
        const_value=tensor,
    )
    model.graph.initializers[name] = value
    return value


class Builder:
    """Puts nodes in front of one that they will replace, named after the module it belongs to."""

    def __init__(self, model: onnx_ir.Model, anchor: onnx_ir.Node) -> None:
        """Build in front of `anchor`, whose name is `MODULE/OPERATOR`."""
        self._model, self._anchor = model, anchor
        self._module = str(anchor.name).rpartition("/")[0] or str(anchor.name)
        self._names = {str(node.name) for node in model.graph} | set(model.graph.initializers)

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
        node = onnx_ir.node(operator, inputs, attributes, name=self._name(f"/{operator}"))
        (output,) = node.outputs
        output.name, output.shape = f"{node.name}:0", onnx_ir.Shape(shape)
        output.type = None if dtype is None else onnx_ir.TensorType(dtype)
        self._model.graph.insert_before(self._anchor, node)
        return output

    def constant(self, name: str, array: NDArray[np.generic]) -> onnx_ir.Value:
        """Add an initializer `MODULE.name`."""
        return add_constant(self._model, self._name(f".{name}"), array)

    def reshape(self, value: onnx_ir.Value, shape: Sequence[Any]) -> onnx_ir.Value:
        """Give all axes but the first, the batch, another form."""
        target = self.constant("shape", np.array([-1, *shape[1:]], np.int64))
        return self("Reshape", [value, target], shape, value.dtype)

    def _name(self, end: str) -> str:
        base = self._module + end
        numbered = (f"{base}_{number}" for number in itertools.count(1))
        name = next(n for n in itertools.chain([base], numbered) if n not in self._names)
        self._names.add(name)
        return name
