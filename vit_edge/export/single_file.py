"""Whether weights fit into one file: end-to-end.onnx and the folder of a layout are no more."""

from __future__ import annotations

import onnx_ir

from vit_edge.errors import UsageError
from vit_edge.graphs.write import SINGLE_FILE_LIMIT_BYTES

# precision -> by how much its weights are smaller than those in float32, at most
_SMALLER = {"fp32": 1, "fp16": 2, "bf16": 2}
_SMALLEST = 8  # four bits


def check_single_file(option: str, weights_bytes: int, precision: str = "fp32") -> None:
    """Refuse weights that are too large for one file.

    Args:
        option: What asks for the file, to name in errors.
        weights_bytes: Their size in float32; in fp32, as they are.
        precision: What they will have. Whatever stays in float may still be too much.

    Raises:
        UsageError: They do not fit.
    """
    least = weights_bytes // _SMALLER.get(precision, _SMALLEST)
    if least > SINGLE_FILE_LIMIT_BYTES:
        raise UsageError(
            f"{option}: weights of {least / 1e9:.1f} GB do not fit into one ONNX file. Leave it "
            "out: the bundle keeps them beside the graph"
        )


def check_model(option: str, model: onnx_ir.Model) -> None:
    """Refuse a model whose weights are too large for one file.

    Raises:
        UsageError: They do not fit.
    """
    weights = (value.const_value for value in model.graph.initializers.values())
    check_single_file(option, sum(0 if tensor is None else tensor.nbytes for tensor in weights))
