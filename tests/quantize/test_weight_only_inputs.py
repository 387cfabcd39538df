"""What weight-only rounding knows of the inputs: their moments, and the scale that follows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir
import pytest

from tests.quantize.workbench import calibration, no_progress
from vit_edge.bundle import Bundle
from vit_edge.errors import ModelError
from vit_edge.graphs.workspace import Workspace
from vit_edge.quantize.formats.blocks import BlockFormat
from vit_edge.quantize.linears import block_linears, constant, set_constant
from vit_edge.quantize.rescale.awq import choose, scale_of
from vit_edge.quantize.rescale.folding import groups
from vit_edge.quantize.rounding.moments import Moment, _Sums, collect_moments, passes
from vit_edge.quantize.rounding.weights import input_noise, output_error

requires = ("torch", "onnx", "onnxscript", "onnxruntime")


def test_moments_over_batches_are_those_over_all_rows() -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((300, 7)) @ rng.standard_normal((7, 7)) + 3).astype(np.float32)
    sums = _Sums(x[:10])
    for start, stop in ((0, 10), (10, 130), (130, 300)):
        sums.add(x[start:stop])
    found = sums.moment()
    assert found.mean == pytest.approx(x.mean(axis=0, dtype=np.float64), rel=1e-5)
    assert np.abs(found.covariance - np.cov(x.T, bias=True)).max() < 1e-5
    assert np.abs(found.second - x.T.astype(np.float64) @ x / 300).max() < 1e-4


def test_a_large_mean_does_not_drown_a_small_variance() -> None:
    """Channels of real ViTs stand at 1400 and hardly move; float32 holds seven digits."""
    rng = np.random.default_rng(0)
    x = (1400 + 0.05 * rng.standard_normal((5000, 3))).astype(np.float32)
    sums = _Sums(x[:100])
    for start in range(0, 5000, 100):
        sums.add(x[start : start + 100])
    expected = np.cov(x.T.astype(np.float64), bias=True)
    assert np.diag(sums.moment().covariance) == pytest.approx(np.diag(expected), rel=1e-3)


def test_rescaled_moments_are_those_of_the_rescaled_inputs() -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((100, 5)) + 2).astype(np.float32)
    scale = np.array([0.1, 1, 3, 10, 100])
    sums = _Sums(x)
    sums.add(x)
    expected = np.cov((x / scale).T, bias=True)
    assert sums.moment().rescale(scale).covariance == pytest.approx(expected, rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("limit_bytes", [1, 30_000, 10**9])
def test_passes_keep_what_is_tied_together(testing_bundle: Bundle, limit_bytes: int) -> None:
    model = onnx_ir.load(testing_bundle.model_path)
    linears = block_linears(model)
    tied = groups(model, linears)
    runs = passes(linears, tied, limit_bytes)
    assert [linear for run in runs for linear in run] == linears
    place = {linear.weight: index for index, run in enumerate(runs) for linear in run}
    for group in tied:
        assert len({place[f.value] for f in group.factors if f.value in place}) == 1
    assert (len(runs) == 1) == (limit_bytes == 10**9)


def test_moments_are_of_what_enters_each_linear(testing_bundle: Bundle, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    model = workspace.settle(onnx_ir.load(testing_bundle.model_path))
    linears = block_linears(model)
    images = calibration(6, 0, testing_bundle.manifest.preprocessing)
    found = collect_moments(workspace, model, linears, images, no_progress)
    value = linears[-1].input
    x = np.concatenate(
        [a[str(value.name)] for a in workspace.observe(model, [value], images.batches(6))]
    )
    x = x.reshape(-1, x.shape[-1]).astype(np.float64)
    assert found[str(value.name)].mean == pytest.approx(x.mean(axis=0), rel=1e-4, abs=1e-6)
    expected = np.cov(x.T, bias=True)
    assert np.abs(found[str(value.name)].covariance - expected).max() < 1e-4 * expected.max()


def test_an_infinite_activation_is_refused_by_the_linears_name(
    testing_bundle: Bundle, tmp_path: Path
) -> None:
    model = onnx_ir.load(testing_bundle.model_path)
    linear = block_linears(model)[2]
    assert linear.bias is not None
    set_constant(linear.bias, np.full_like(constant(linear.bias), 3e38))
    linear.set_matrix(np.full_like(linear.matrix(), 3e38))
    workspace = Workspace(tmp_path)
    settled = workspace.settle(model)
    images = calibration(2, 0, testing_bundle.manifest.preprocessing)
    with pytest.raises(ModelError, match=r"fc2: its input is NaN or infinite"):
        collect_moments(workspace, settled, block_linears(settled), images, no_progress)


def test_scales_have_a_geometric_mean_of_one_and_leave_silent_channels_alone() -> None:
    strength = np.array([0.0, 1.0, 4.0, 16.0])
    scale = scale_of(strength, 0.5)
    assert scale[0] == 1
    assert np.log(scale[1:]).sum() == pytest.approx(0, abs=1e-12)
    assert scale[3] / scale[1] == pytest.approx(4)
    assert (scale_of(np.zeros(3), 1.0) == 1).all()


@pytest.mark.parametrize("seed", range(3))
def test_the_search_finds_what_protects_planted_outliers(testing_bundle: Bundle, seed: int) -> None:
    """Random channels of random strength: some exponent loses less than half of none."""
    rng = np.random.default_rng(seed)
    model = onnx_ir.load(testing_bundle.model_path)
    group = groups(model, block_linears(model))[0]
    channels = group.linears[0].matrix().shape[0]
    strength = np.ones(channels)
    strength[rng.choice(channels, 3, replace=False)] = rng.uniform(15, 40, 3)
    moment = Moment(np.zeros(channels), np.diag(strength**2).astype(np.float32))
    kind = BlockFormat(4, False, 32)

    def error(weight: np.ndarray, moved: Moment) -> float:
        return output_error(weight - kind.nearest(weight, kind.covering(weight)), moved.covariance)

    choice = choose(group, moment, error)
    assert choice.exponent > 0
    assert choice.error < 0.5


def test_the_noise_of_int8_inputs_is_what_is_simulated() -> None:
    rng = np.random.default_rng(0)
    strength = np.exp(rng.uniform(-1, 1, 96))
    strength[[5, 70]] = 30
    x = (rng.standard_normal((20000, 96)) * strength).astype(np.float32)
    weight = rng.standard_normal((96, 10)).astype(np.float32)
    blocks = x.reshape(len(x), 3, 32)
    step = np.abs(blocks).max(axis=2, keepdims=True) / 127
    wrong = (np.rint(blocks / step) * step - blocks).reshape(x.shape)
    simulated = np.square(wrong @ weight).sum(axis=1).mean()
    moment = Moment(np.zeros(96), np.diag(strength**2).astype(np.float32))
    assert input_noise(weight, moment, 32) == pytest.approx(simulated, rel=0.3)
