"""ONNX -> ONNX passes: a function each, which changes a model in place."""
