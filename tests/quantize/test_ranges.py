"""How ranges and scales are chosen."""

from __future__ import annotations

import numpy as np
import pytest

from vit_edge.quantize.formats.integers import INT8_SYMMETRIC, UINT8, Format, quantized_weight
from vit_edge.quantize.rescale.smoothing import smoothing_scale
from vit_edge.quantize.rounding.ranges import RangeMethod, parameters
from vit_edge.quantize.rounding.samples import Sample

requires = ("torch", "onnx", "onnxscript", "onnxruntime")

SEARCHES: list[RangeMethod] = ["percentile", "entropy", "mse", "output"]


def sample_of(rows: np.ndarray) -> Sample:
    rows = rows.astype(np.float32)
    low, high = rows.min(axis=0), rows.max(axis=0)
    return Sample(low, high, low, high, rows)


def with_one_spike() -> tuple[Sample, np.ndarray]:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((512, 64))
    rows[17, 5] = 60  # one value in 32,768
    return sample_of(rows), rng.standard_normal((64, 32)).astype(np.float32)


def error(method: RangeMethod, sample: Sample, weight: np.ndarray, kind: Format) -> float:
    """Mean square error of the product by the input's rounding, over the rows without the spike."""
    left = quantized_weight(weight, 127).dequantize()
    scale, zero_point = parameters(method, sample, left, kind)
    rows = np.delete(sample.rows, 17, axis=0)
    return float(np.square(kind.fake(rows, scale, zero_point) @ left - rows @ left).mean())


def test_minmax_covers_everything_that_was_seen() -> None:
    sample, weight = with_one_spike()
    scale, zero_point = parameters("minmax", sample, weight, UINT8)
    assert (255 - zero_point) * scale >= 59.9


@pytest.mark.parametrize("kind", [UINT8, INT8_SYMMETRIC], ids=["uint8", "symmetric"])
@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_a_rank_or_a_histogram_does_not_see_one_value(method: RangeMethod, kind: Format) -> None:
    sample, weight = with_one_spike()
    assert error(method, sample, weight, kind) < 0.5 * error("minmax", sample, weight, kind)


@pytest.mark.parametrize("kind", [UINT8, INT8_SYMMETRIC], ids=["uint8", "symmetric"])
@pytest.mark.parametrize("method", ["mse", "output"])
def test_a_squared_error_clips_a_heavy_tail(method: RangeMethod, kind: Format) -> None:
    """One value of 60 among 32,768 it does not clip, and should not: it is worth its steps."""
    rng = np.random.default_rng(0)
    sample = sample_of(np.clip(rng.standard_t(3, (512, 64)), -40, 40))
    weight = rng.standard_normal((64, 32)).astype(np.float32)
    clipped, whole = (error(m, sample, weight, kind) for m in (method, "minmax"))
    assert clipped < 0.97 * whole


@pytest.mark.parametrize("method", ["minmax", *SEARCHES])
def test_a_constant_input_is_no_division_by_zero(method: RangeMethod) -> None:
    for value in (0.0, 3.0, -3.0):
        sample = sample_of(np.full((8, 4), value))
        weight = np.ones((4, 2), np.float32)
        scale, zero_point = parameters(method, sample, weight, UINT8)
        assert scale > 0
        assert UINT8.fake(sample.rows, scale, zero_point) == pytest.approx(value, abs=0.05)


def test_the_largest_channel_is_scaled_down_the_most() -> None:
    reach = np.array([1.0, 40.0, 1.0, 2.0])
    scale = smoothing_scale(reach, np.ones(4), 0.5)
    assert scale.argmax() == 1
    assert (reach / scale).max() / (reach / scale).min() < 7  # of 40
    assert np.exp(np.log(scale).mean()) == pytest.approx(1)


def test_a_channel_that_is_always_zero_is_left_alone() -> None:
    scale = smoothing_scale(np.array([0.0, 3.0]), np.array([1.0, 0.0]), 0.5)
    assert scale.tolist() == [1.0, 1.0]
