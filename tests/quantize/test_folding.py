"""Rescaling what enters the Linears changes nothing that the model answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir
import pytest

from tests.quantize.workbench import answers, calibration
from vit_edge.bundle import Bundle
from vit_edge.quantize.linears import block_linears
from vit_edge.quantize.rescale.folding import Group, groups

requires = ("torch", "onnx", "onnxscript", "onnxruntime")


def folded(model: onnx_ir.Model, seed: int) -> list[Group]:
    rng = np.random.default_rng(seed)
    found = groups(model, block_linears(model))
    for group in found:
        channels = group.linears[0].matrix().shape[0]
        shift = rng.normal(size=channels) if group.can_shift else np.zeros(channels)
        group.fold(np.exp(rng.uniform(-3, 3, channels)), shift)
    return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fixture", ["testing_bundle", "decomposed_bundle", "tokens_bundle"])
def test_any_scale_and_shift_leaves_the_logits(
    fixture: str, seed: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    bundle: Bundle = request.getfixturevalue(fixture)
    images = calibration(4, seed, bundle.manifest.preprocessing)
    model = onnx_ir.load(bundle.model_path)
    before = answers(model, images, tmp_path / "a")
    linears = block_linears(model)
    weights = {linear.name: linear.matrix().copy() for linear in linears}
    found = folded(model, seed)
    after = answers(model, images, tmp_path / "b")
    assert np.abs(after - before).max() < 1e-5 * np.abs(before).max()
    # not in vain: every Linear but fc2, which follows a GELU, has other weights now
    same = [
        linear.name for linear in linears if np.array_equal(linear.matrix(), weights[linear.name])
    ]
    assert same == [linear.name for linear in linears if linear.name.endswith("fc2")]
    assert sum(len(group.linears) for group in found) == 3 * len(linears) // 4


def test_a_scale_folded_on_one_side_only_is_seen(testing_bundle: Bundle, tmp_path: Path) -> None:
    """The check above does notice a fold that is not exact."""
    images = calibration(2, 0, testing_bundle.manifest.preprocessing)
    model = onnx_ir.load(testing_bundle.model_path)
    before = answers(model, images, tmp_path / "a")
    group = groups(model, block_linears(model))[0]
    broken = Group(group.name, group.linears, group.factors[:-1], can_shift=False)
    channels = group.linears[0].matrix().shape[0]
    broken.fold(np.full(channels, 1.5), np.zeros(channels))
    after = answers(model, images, tmp_path / "b")
    assert np.abs(after - before).max() > 1e-3 * np.abs(before).max()
