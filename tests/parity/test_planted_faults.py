"""Planted faults are caught, in every precision whose noise they exceed, and found where they are.

The bundle is vit-cifar10, trained, 8 blocks; what is planted into it, planted.py says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.parity import planted
from tests.parity.planted import Change
from tests.support.bundles import Exporter, trained_on_cifar10
from vit_edge.backends import ort
from vit_edge.bundle import Bundle
from vit_edge.parity.localize.localize import localize
from vit_edge.parity.result import FAIL, PASS, Run
from vit_edge.parity.run import Question, compare_here

requires = ("torch", "onnx", "onnxscript", "onnxruntime")

# What happens in one block, and the step that is to be named.
INSIDE: list[tuple[Change, str]] = [
    (planted.dropped_bias, "fc1"),
    (planted.transposed_heads, "qkv"),
    (planted.tanh_gelu, "GELU"),
    (planted.zeroed_channel, "fc1"),
    (planted.overflow, "fc2"),
    (planted.dropped_qkv_bias, "qkv"),
    (planted.leak_between_rows, "the sum after the MLP"),
]
BEFORE: list[Change] = [
    planted.swapped_channels, planted.positions_off_by_one, planted.frozen_batch,
]  # fmt: skip
BEHIND: list[Change] = [planted.wrong_head_bias]
EVERYWHERE: list[Change] = [planted.other_epsilon]
ALL: list[Change] = [*(change for change, _ in INSIDE), *BEFORE, *BEHIND, *EVERYWHERE]


def name_of(value: object) -> str:
    return getattr(value, "__name__", str(value))


def verdict(candidate: Bundle, sound: Bundle, backend: str = "ort") -> Run:
    """In this process: a child each would take a second."""
    golden = str(sound.golden_path)
    return compare_here(Question(str(candidate.path), backend, golden, None))


def test_a_sound_bundle_passes_by_every_check(embedded_bundle: Bundle) -> None:
    found = verdict(embedded_bundle, embedded_bundle)
    assert found.verdict == PASS
    names = {check.name for check in found.checks if check.passed}
    assert names == {"preprocessing", "repeatability", "placement"}


@pytest.mark.slow
@pytest.mark.parametrize("change", ALL, ids=name_of)
def test_a_fault_in_float32_is_caught(
    change: Change, embedded_bundle: Bundle, tmp_path: Path
) -> None:
    candidate = planted.planted(embedded_bundle, change, tmp_path / "planted")
    found = verdict(candidate, embedded_bundle)
    assert found.verdict == FAIL
    assert any("logits" in problem for problem in found.problems)


def test_another_mean_and_std_are_caught(embedded_bundle: Bundle, tmp_path: Path) -> None:
    candidate = planted.with_other_normalisation(embedded_bundle, tmp_path / "planted")
    assert verdict(candidate, embedded_bundle).verdict == FAIL


def test_an_orientation_that_is_not_applied_is_caught(
    embedded_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vit_edge.images.load.upright_from", lambda image, *_: None)
    found = verdict(embedded_bundle, embedded_bundle)
    assert found.verdict == FAIL
    assert any(problem.startswith("preprocessing: probe") for problem in found.problems)


def test_a_leak_between_rows_is_caught_by_the_candidates_own_answers(
    embedded_bundle: Bundle, tmp_path: Path
) -> None:
    candidate = planted.planted(embedded_bundle, planted.leak_between_rows, tmp_path / "planted")
    found = verdict(candidate, embedded_bundle)
    batches = [r.summary["batch_relative"] for r in found.comparisons if r.output == "logits"]
    assert max(batches) > 1e-4


def test_an_engine_of_another_model_is_not_run(embedded_bundle: Bundle, tmp_path: Path) -> None:
    """As when a bundle is exported anew over one that was built."""
    sound = planted.planted(embedded_bundle, _nothing_that_matters, tmp_path / "sound")
    stale = ort.build(planted.planted(sound, planted.dropped_bias, tmp_path / "old"))
    place = sound.path / "engines" / stale.name
    place.parent.mkdir(exist_ok=True)
    stale.rename(place)
    found = verdict(sound, embedded_bundle)
    assert found.verdict == PASS
    assert found.facts["engine"].startswith("none")
    assert "another model" in ort.find(sound).reason


def _nothing_that_matters(graph: Any) -> None:
    graph.name = "another name"


# Localizing


@pytest.mark.slow
@pytest.mark.parametrize(("change", "step"), INSIDE, ids=name_of)
def test_a_fault_is_found_in_its_block_and_at_its_step(
    change: Change, step: str, embedded_bundle: Bundle, tmp_path: Path
) -> None:
    candidate = planted.planted(embedded_bundle, change, tmp_path / "planted")
    found = localize(candidate, embedded_bundle, backend="ort", golden=embedded_bundle.golden_path)
    assert found.sentence.startswith(f"block {planted.BLOCK}, {step}: SQNR falls from ")
    assert "with the reference's values there the logits are at" in found.sentence


@pytest.mark.slow
@pytest.mark.parametrize("change", BEFORE, ids=name_of)
def test_a_fault_before_the_blocks_is_found_there(
    change: Change, embedded_bundle: Bundle, tmp_path: Path
) -> None:
    candidate = planted.planted(embedded_bundle, change, tmp_path / "planted")
    found = localize(candidate, embedded_bundle, backend="ort", golden=embedded_bundle.golden_path)
    assert found.sentence.startswith("the patch embedding: SQNR falls from ")


@pytest.mark.slow
@pytest.mark.parametrize("change", BEHIND, ids=name_of)
def test_a_fault_behind_the_blocks_is_found_there(
    change: Change, embedded_bundle: Bundle, tmp_path: Path
) -> None:
    candidate = planted.planted(embedded_bundle, change, tmp_path / "planted")
    found = localize(candidate, embedded_bundle, backend="ort", golden=embedded_bundle.golden_path)
    assert found.sentence.startswith("after block 7, the final norm or the head: SQNR falls from ")


@pytest.fixture(scope="module")
def int8_bundle(export_once: Exporter, shared_data: Path) -> Bundle:
    """vit-cifar10 in INT8, calibrated and gated on CIFAR-10."""
    return export_once(*trained_on_cifar10("int8", shared_data))


LOUD: list[tuple[Change, str]] = [
    (planted.dropped_bias, "fc1"),
    (planted.overflow, "fc2"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("change", "step"), LOUD, ids=name_of)
def test_a_fault_louder_than_quantization_is_caught_and_found_in_int8(
    change: Change,
    step: str,
    int8_bundle: Bundle,
    embedded_bundle: Bundle,
    tmp_path: Path,
) -> None:
    candidate = planted.planted(int8_bundle, change, tmp_path / "planted")
    sound, broken = (verdict(bundle, int8_bundle) for bundle in (int8_bundle, candidate))
    assert sound.verdict == PASS
    quiet, loud = (worst_sqnr_db(found) for found in (sound, broken))
    assert loud < quiet - 3
    if loud < 20:
        assert broken.verdict == FAIL
    found = localize(candidate, embedded_bundle, backend="ort", golden=int8_bundle.golden_path)
    assert found.sentence.startswith(f"block {planted.BLOCK}, {step}: ")


def worst_sqnr_db(found: Run) -> float:
    return min(r.summary["sqnr_centred_db"] for r in found.comparisons if r.output == "logits")
