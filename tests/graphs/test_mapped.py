"""A model's weights, mapped: the same numbers, and one file descriptor for all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir

from vit_edge.bundle import Bundle
from vit_edge.graphs.mapped import load_mapped
from vit_edge.graphs.write import write_model

requires = ("onnx", "onnx_ir", "torch")


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_each_file_of_weights_is_mapped_once(testing_bundle: Bundle, tmp_path: Path) -> None:
    model = onnx_ir.load(testing_bundle.model_path)
    for number, dtype in enumerate((np.int8, np.float16, np.int64)):
        array = np.arange(5000).astype(dtype)
        model.graph.initializers.add(
            onnx_ir.Value(name=f"more-{number}", const_value=onnx_ir.tensor(array))
        )
    write_model(model, tmp_path, single_file_limit=0)
    before = open_files()
    mapped = load_mapped(tmp_path / "model.onnx")
    assert len(mapped.graph.initializers) > 30
    for name, value in mapped.graph.initializers.items():
        expected = model.graph.initializers[name].const_value
        assert value.const_value is not None
        assert expected is not None
        assert value.const_value.numpy().dtype == expected.numpy().dtype
        assert np.array_equal(value.const_value.numpy(), expected.numpy())
        assert value.const_value.tobytes() == expected.tobytes()
    assert open_files() <= before + 1
