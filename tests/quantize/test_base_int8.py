"""INT8 of base-patch16-224 at full size, as the runtimes read it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.quantize.workbench import calibration, quantized
from vit_edge.bundle import Bundle
from vit_edge.graphs.write import write_model

requires = ("torch", "onnx", "onnxscript", "onnxruntime", "openvino")

LINEARS = 48  # four in each of twelve blocks


@pytest.fixture(scope="module")
def model(base: tuple[Path, int], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Bundle]:
    """The file, and the float32 bundle that it was made from."""
    folder = tmp_path_factory.mktemp("base")
    bundle = Bundle.read(base[0])
    # not what takes long and leaves the operators as they are
    settings = {
        "sensitivity_images": 1,
        "float_budget": 0,
        "rounding": "nearest",
        "ranges": "minmax",
    }
    made = quantized("int8", bundle, folder, settings, images=8)
    write_model(made.model, folder)
    return folder / "model.onnx", bundle


@pytest.mark.slow
def test_onnxruntime_runs_integers_in_every_linear(
    model: tuple[Path, Bundle], tmp_path: Path
) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(str(model[0]), options)
    graph = onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph
    found = Counter(node.op_type for node in graph.node)
    assert found["DequantizeLinear"] == 0
    assert found["QuantizeLinear"] == LINEARS
    assert found["MatMulIntegerToFloat"] == LINEARS
    assert model[0].stat().st_size < 100e6  # a quarter of 346 MB, and what stays float32


@pytest.mark.slow
def test_openvino_reads_the_same_file(model: tuple[Path, Bundle]) -> None:
    from vit_edge.backends.openvino.runtime import imported

    path, bundle = model
    pixels = calibration(2, 9, bundle.manifest.preprocessing).pixels(0, 2)
    expected = onnxruntime.InferenceSession(str(path)).run(["logits"], {"pixel_values": pixels})[0]
    config = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = imported().Core().compile_model(str(path), "CPU", config)
    found = compiled({"pixel_values": pixels})[compiled.output("logits")]
    # the same integers but other sums: a value in the middle between two steps may go either way
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
