"""NumPy's integers are those of ONNX Runtime, to the last bit."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from vit_edge.quantize.formats.integers import INT8, INT8_SYMMETRIC, UINT8, Format, quantized_weight

requires = ("torch", "onnx", "onnxscript", "onnxruntime")

KINDS = [UINT8, INT8, INT8_SYMMETRIC]


def runtime_fake(x: np.ndarray, scale: np.float32, zero_point: int, dtype: str) -> np.ndarray:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
        [
            numpy_helper.from_array(np.array(scale, np.float32), "s"),
            numpy_helper.from_array(np.array(zero_point, dtype), "z"),
        ],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.dtype}-{kind.symmetric}")
def test_rounding_is_that_of_onnxruntime_ties_and_saturation_too(kind: Format) -> None:
    scale, zero_point = kind.parameters(-1.0, 3.0)
    ties = (np.arange(-300, 300) + 0.5) * scale
    x = np.concatenate([ties, np.linspace(-9, 9, 4001)]).astype(np.float32)
    expected = runtime_fake(x, scale, zero_point, kind.dtype)
    np.testing.assert_array_equal(kind.fake(x, scale, zero_point), expected)


@given(st.floats(-1e4, 1e4, width=32), st.floats(-1e4, 1e4, width=32), st.sampled_from(KINDS))
def test_what_lies_in_the_range_is_kept_to_half_a_step_and_zero_exactly(
    one: float, other: float, kind: Format
) -> None:
    low, high = min(one, other), max(one, other)
    scale, zero_point = kind.parameters(low, high)
    assert kind.low <= zero_point <= kind.high
    x = np.linspace(min(low, 0), max(high, 0), 101).astype(np.float32)
    # the zero point is rounded too: half a step for it, half a step for x
    assert np.abs(kind.fake(x, scale, zero_point) - x).max() <= 1.01 * scale + 1e-30
    assert kind.fake(np.zeros(1, np.float32), scale, zero_point)[0] == 0


def test_symmetric_means_zero_point_zero() -> None:
    assert INT8_SYMMETRIC.parameters(-0.17, 6.0)[1] == 0


@given(st.integers(0, 2**32 - 1), st.sampled_from([127, 63]))
def test_weights_are_kept_to_half_a_step_of_their_output(seed: int, largest: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((16, 8)).astype(np.float32) * np.exp(rng.uniform(-5, 5, 8))
    matrix = matrix.astype(np.float32)
    found = quantized_weight(matrix, largest)
    assert found.scale.shape == (8,)
    assert np.abs(found.values).max() == largest
    assert (np.abs(found.dequantize() - matrix) <= 0.5001 * found.scale).all()


def test_an_output_without_weights_stays_zero() -> None:
    found = quantized_weight(np.zeros((4, 2), np.float32), 127)
    assert (found.dequantize() == 0).all()
    assert np.isfinite(found.scale).all()


@pytest.mark.parametrize("kind", [UINT8, INT8])
def test_both_ends_of_a_symmetric_range_stand_on_a_level(kind: Format) -> None:
    """Half way between two, runtimes would round the largest value of every row differently."""
    scale, zero_point = kind.parameters(-1.0, 1.0)
    ends = np.array([-1.0, 1.0], np.float32)
    levels = ends / scale + zero_point
    assert np.abs(levels - np.rint(levels)).max() < 1e-4
    np.testing.assert_allclose(kind.fake(ends, scale, zero_point), ends, rtol=1e-6)
