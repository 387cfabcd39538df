"""The parts of ONNX's protobuf schema that are read, as a table."""

from __future__ import annotations

from vit_edge.onnxfile.protobuf import Entry, Schema

# The parts of onnx.proto (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto) that are read;
# every other field is skipped. Whatever can hold a tensor must be here.
SCHEMA: Schema = {
    "Model": {
        1: Entry("ir_version", "int"),
        2: Entry("producer_name", "text"),
        3: Entry("producer_version", "text"),
        7: Entry("graph", "Graph"),
        8: Entry("opset_import", "OperatorSet", many=True),
        14: Entry("metadata_props", "Pair", many=True),
        20: Entry("training_info", "Training", many=True),
        25: Entry("functions", "Function", many=True),
    },
    "OperatorSet": {1: Entry("domain", "text"), 2: Entry("version", "int")},
    "Pair": {1: Entry("key", "text"), 2: Entry("value", "text")},
    "Training": {1: Entry("initialization", "Graph"), 2: Entry("algorithm", "Graph")},
    "Function": {
        1: Entry("name", "text"),
        7: Entry("node", "Node", many=True),
        9: Entry("opset_import", "OperatorSet", many=True),
        10: Entry("domain", "text"),
        11: Entry("attribute", "Attribute", many=True),
    },
    "Graph": {
        1: Entry("node", "Node", many=True),
        2: Entry("name", "text"),
        5: Entry("initializer", "Tensor", many=True),
        11: Entry("input", "Value", many=True),
        12: Entry("output", "Value", many=True),
        15: Entry("sparse_initializer", "SparseTensor", many=True),
    },
    "Node": {
        2: Entry("output", "text", many=True),
        3: Entry("name", "text"),
        4: Entry("op_type", "text"),
        5: Entry("attribute", "Attribute", many=True),
        7: Entry("domain", "text"),
    },
    "Attribute": {
        1: Entry("name", "text"),
        5: Entry("tensor", "Tensor"),
        6: Entry("graph", "Graph"),
        10: Entry("tensors", "Tensor", many=True),
        11: Entry("graphs", "Graph", many=True),
        22: Entry("sparse_tensor", "SparseTensor"),
        23: Entry("sparse_tensors", "SparseTensor", many=True),
    },
    "SparseTensor": {1: Entry("values", "Tensor"), 2: Entry("indices", "Tensor")},
    "Tensor": {
        1: Entry("dims", "ints"),
        2: Entry("data_type", "int"),
        3: Entry("segment", "span"),
        4: Entry("float_data", "span", many=True),
        5: Entry("int32_data", "span", many=True),
        7: Entry("int64_data", "span", many=True),
        8: Entry("name", "text"),
        9: Entry("raw_data", "span"),
        10: Entry("double_data", "span", many=True),
        11: Entry("uint64_data", "span", many=True),
        13: Entry("external_data", "Pair", many=True),
        14: Entry("data_location", "int"),
    },
    "Value": {1: Entry("name", "text"), 2: Entry("type", "Type")},
    "Type": {1: Entry("tensor_type", "TensorType")},
    "TensorType": {1: Entry("elem_type", "int"), 2: Entry("shape", "Shape")},
    "Shape": {1: Entry("dim", "Dimension", many=True)},
    "Dimension": {1: Entry("dim_value", "int"), 2: Entry("dim_param", "text")},
}

# onnx.TensorProto.DataType -> name, bits of one element (None: of no fixed size).
ELEMENT_TYPES: dict[int, tuple[str, int | None]] = {
    1: ("float32", 32), 2: ("uint8", 8), 3: ("int8", 8), 4: ("uint16", 16), 5: ("int16", 16),
    6: ("int32", 32), 7: ("int64", 64), 8: ("string", None), 9: ("bool", 8), 10: ("float16", 16),
    11: ("float64", 64), 12: ("uint32", 32), 13: ("uint64", 64), 14: ("complex64", 64),
    15: ("complex128", 128), 16: ("bfloat16", 16), 17: ("float8e4m3fn", 8),
    18: ("float8e4m3fnuz", 8), 19: ("float8e5m2", 8), 20: ("float8e5m2fnuz", 8), 21: ("uint4", 4),
    22: ("int4", 4), 23: ("float4e2m1", 4), 24: ("float8e8m0", 8), 25: ("uint2", 2),
    26: ("int2", 2),
}  # fmt: skip
BITS = dict(ELEMENT_TYPES.values())
TYPED_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
EXTERNAL = 1  # onnx.TensorProto.DataLocation
