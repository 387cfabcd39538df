"""Look into an ONNX file before any runtime parses it; needs no onnx.

    facts = read_model("model.onnx")        the structure, by a walk over the protobuf wire format
    check_external_data(path, facts)        no tensor reaches outside the model's folder
    check_operators(facts, max_opset=23, max_ir=10)
    check_finite(path, facts)               no NaN or infinity among the weights
    initializer_array(path, tensor)         one tensor as NumPy sees it

Each raises ModelError, which lists every problem it found.
"""

from vit_edge.onnxfile.arrays import check_finite, initializer_array
from vit_edge.onnxfile.checks import check_external_data, check_operators
from vit_edge.onnxfile.model import (
    ExternalRef,
    ModelFacts,
    TensorFacts,
    TypedData,
    ValueFacts,
    read_model,
)

__all__ = [
    "ExternalRef",
    "ModelFacts",
    "TensorFacts",
    "TypedData",
    "ValueFacts",
    "check_external_data",
    "check_finite",
    "check_operators",
    "initializer_array",
    "read_model",
]
