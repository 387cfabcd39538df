"""Every statistic is that of its definition, whatever the order and size of the batches."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import special, stats

from vit_edge.parity.logits import LogitComparison, rank, rank_correlation, top_margin
from vit_edge.parity.statistics import LARGEST_DB, Difference, Repeats, cosine, kl_divergence

requires = ("scipy",)

Array = NDArray[Any]


def compared(
    found: Array, expected: Array, labels: Array | None = None, batches: Iterable[Array] = ()
) -> LogitComparison:
    comparison = LogitComparison()
    for indices in list(batches) or [np.arange(len(found))]:
        known = None if labels is None else labels[indices]
        comparison.add(indices, found[indices], expected[indices], known)
    return comparison


def drawn(seed: int, images: int, classes: int, noise: float = 0.3) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    expected = 3 * rng.standard_normal((images, classes)) + 5 * rng.standard_normal(classes)
    return expected + noise * rng.standard_normal(expected.shape), expected


def test_the_divergence_is_that_of_scipy() -> None:
    found, expected = drawn(0, 20, 7, noise=2.0)
    p, q = special.softmax(expected, axis=1), special.softmax(found, axis=1)
    np.testing.assert_allclose(kl_divergence(expected, found), stats.entropy(p, q, axis=1), 1e-9)


def test_the_divergence_of_huge_logits_is_finite() -> None:
    found, expected = np.array([[1e30, -1e30]]), np.array([[-3e4, 3e4]])
    assert kl_divergence(expected, found) == pytest.approx(2e30)


def test_signal_to_noise_is_that_of_the_definition_with_and_without_the_mean() -> None:
    found, expected = drawn(1, 31, 6)
    noise = ((found - expected) ** 2).sum()
    summary = compared(found, expected).summary()
    varying = ((expected - expected.mean(axis=0)) ** 2).sum()
    assert summary["sqnr_db"] == pytest.approx(10 * np.log10((expected**2).sum() / noise))
    assert summary["sqnr_centred_db"] == pytest.approx(10 * np.log10(varying / noise))


def test_a_large_constant_part_does_not_cancel_in_the_centred_ratio() -> None:
    found, expected = drawn(2, 40, 5, noise=0.01)
    small = compared(found, expected).summary()["sqnr_centred_db"]
    halves = [np.arange(20), np.arange(20, 40)]
    large = compared(found + 1e6, expected + 1e6, batches=halves).summary()["sqnr_centred_db"]
    assert large == pytest.approx(small, abs=1e-6)


def test_agreement_flips_and_margins_are_those_of_a_loop_over_the_images() -> None:
    found, expected = drawn(3, 200, 9, noise=4.0)
    flips, near, margins = 0, 0, []
    for ours, theirs in zip(found, expected, strict=True):
        flips += int(np.argmax(ours) != np.argmax(theirs))
        near += int(np.argmax(theirs) in np.argsort(-ours)[:5])
        margins.append(theirs.max() - theirs[np.argmax(ours)])
    spread = np.sqrt(((expected - expected.mean(axis=0)) ** 2).mean())
    summary = compared(found, expected).summary()
    assert summary["flips"] == flips > 0
    assert summary["top1_agreement"] == 1 - flips / 200
    assert 0.5 < summary["top5_agreement"] == near / 200 < 1
    assert summary["flip_margin_max"] == pytest.approx(max(margins) / spread)
    assert summary["margin_weighted_flips"] == pytest.approx(np.mean(margins) / spread)
    assert summary["worst_flips"][0]["image"] == int(np.argmax(margins))


def test_the_reference_margin_is_first_minus_second() -> None:
    logits = np.array([[1.0, 4.0, 2.5], [0.0, 0.0, -1.0]])
    assert top_margin(logits).tolist() == [1.5, 0.0]
    assert top_margin(logits[:, :1]).tolist() == [0.0, 0.0]


def test_of_equal_logits_the_first_class_leads() -> None:
    assert rank(np.zeros((3, 3)), np.array([0, 1, 2])).tolist() == [0, 1, 2]


def test_accuracy_counts_labelled_images_only() -> None:
    expected = np.eye(4)  # answers 0, 1, 2, 3
    found = expected[[0, 1, 3, 2]]
    summary = compared(found, expected, labels=np.array([0, -1, 2, 2])).summary()
    assert summary["labelled"] == 3
    assert summary["reference_accuracy"] == pytest.approx(2 / 3)
    assert summary["accuracy"] == pytest.approx(2 / 3)
    assert (summary["lost"], summary["won"], summary["accuracy_drop"]) == (1, 1, 0)
    assert summary["mcnemar_p"] == 1


def test_without_labels_there_is_no_accuracy() -> None:
    found, expected = drawn(4, 5, 3)
    assert "accuracy" not in compared(found, expected).summary()
    assert "accuracy" not in compared(found, expected, labels=np.full(5, -1)).summary()


def test_identical_answers_are_perfect_in_every_statistic() -> None:
    _, expected = drawn(5, 12, 8)
    summary = compared(expected, expected).summary()
    assert summary["top1_agreement"] == summary["top5_agreement"] == 1
    assert summary["kl_max"] == summary["max_abs_diff"] == summary["margin_weighted_flips"] == 0
    assert summary["sqnr_db"] == summary["sqnr_centred_db"] == LARGEST_DB
    assert summary["cosine_min"] == pytest.approx(1, abs=1e-12)
    assert summary["worst_flips"] == []


def test_one_image_has_no_centred_ratio() -> None:
    found, expected = drawn(6, 1, 8)
    summary = compared(found, expected).summary()
    assert summary["sqnr_centred_db"] is None
    assert summary["sqnr_db"] is not None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_answer_that_is_not_finite_agrees_with_nothing_and_fits_into_json(bad: float) -> None:
    found, expected = drawn(7, 6, 4, noise=0.0)
    found[2, 1] = bad
    summary = compared(found, expected).summary()
    assert summary["non_finite"] == 1
    assert summary["top1_agreement"] == 5 / 6
    assert summary["cosine_min"] == 0
    assert summary["sqnr_db"] == -LARGEST_DB
    assert summary["kl_mean"] is summary["kl_max"] is summary["relative"] is None
    assert summary["worst_flips"][0]["candidate_class"] == -1
    assert summary["worst_image"] == summary["kl_worst_image"] == 2
    json.dumps(summary, allow_nan=False)


def test_the_median_image_is_not_moved_by_the_worst() -> None:
    found, expected = drawn(7, 5, 4, noise=0.0)
    found[2] += 100
    summary = compared(found, expected).summary()
    assert summary["relative"] > 1
    assert summary["relative_median"] == 0
    found = expected + np.abs(expected).max() * 1e-3
    assert compared(found, expected).summary()["relative_median"] == pytest.approx(1e-3)


def test_equal_logits_rank_nothing_as_the_reference_does() -> None:
    expected = np.random.default_rng(0).standard_normal((400, 1000))
    ranked = rank_correlation(np.zeros_like(expected), expected)
    assert abs(ranked.mean()) < 0.1
    assert rank_correlation(np.zeros((1, 10)), -np.arange(10.0)[None]) == 1  # the first class leads


@given(seed=st.integers(0, 2**32), images=st.integers(1, 12), classes=st.integers(1, 9))
def test_statistics_stay_in_their_ranges(seed: int, images: int, classes: int) -> None:
    found, expected = drawn(seed, images, classes, noise=10.0 ** (seed % 5 - 3))
    summary = compared(found, expected).summary()
    low, high = summary["top1_agreement_interval"]
    assert 0 <= low <= summary["top1_agreement"] <= high <= 1
    assert summary["top1_agreement"] <= summary["top5_agreement"] <= 1
    assert 0 <= summary["kl_median"] <= summary["kl_max"]
    assert 0 <= summary["kl_mean"] <= summary["kl_max"]
    assert -1 - 1e-12 <= summary["cosine_min"] <= summary["cosine_mean"] + 1e-12 <= 1 + 2e-12
    assert summary["flips"] == round(images * (1 - summary["top1_agreement"]))


def none_as_nan(value: Any) -> Array:
    return np.array(value, dtype=np.float64)


@given(seed=st.integers(0, 2**32), cuts=st.lists(st.integers(0, 30), max_size=6))
def test_neither_order_nor_size_of_the_batches_matters(seed: int, cuts: list[int]) -> None:
    found, expected = drawn(seed, 30, 5, noise=1.0)
    labels = np.random.default_rng(seed).integers(-1, 5, 30)
    order = np.random.default_rng(seed).permutation(30)
    batches = [batch for batch in np.split(order, sorted(cuts)) if len(batch)]
    whole = compared(found, expected, labels).summary()
    parts = compared(found, expected, labels, batches).summary()
    assert parts.keys() == whole.keys()
    for name, value in whole.items():
        if name == "worst_flips":
            assert [f["image"] for f in parts[name]] == [f["image"] for f in value]
        else:
            np.testing.assert_allclose(none_as_nan(parts[name]), none_as_nan(value), 1e-9, 1e-9)


@given(seed=st.integers(0, 2**32), shift=st.floats(-50, 50))
def test_a_constant_added_to_an_images_logits_changes_no_divergence(
    seed: int, shift: float
) -> None:
    found, expected = drawn(seed, 4, 6)
    moved = kl_divergence(expected, found + shift)
    np.testing.assert_allclose(moved, kl_divergence(expected, found), atol=1e-12)


def test_an_image_that_comes_again_counts_once_but_its_worst_answer_is_seen() -> None:
    found, expected = drawn(8, 4, 3, noise=0.0)
    comparison = compared(found, expected)
    comparison.add(np.array([0]), found[:1] + 2.0, expected[:1])
    summary = comparison.summary()
    assert summary["images"] == 4
    assert summary["sqnr_db"] == LARGEST_DB
    assert summary["max_abs_diff"] == pytest.approx(2.0)
    assert summary["worst_image"] == 0


def test_tokens_are_compared_as_one_vector_per_image() -> None:
    found, expected = drawn(9, 6, 24)
    flat, shaped = Difference(), Difference()
    flat.add(np.arange(6), found, expected)
    shaped.add(np.arange(6), found.reshape(6, 4, 6), expected.reshape(6, 4, 6))
    assert flat.summary() == shaped.summary()


def test_the_cosine_of_a_zero_answer_is_zero() -> None:
    assert cosine(np.zeros((1, 3)), np.ones((1, 3))).tolist() == [0.0]


def test_repeats_tell_how_far_a_second_answer_lies_from_the_first() -> None:
    repeats = Repeats()
    assert repeats.add(np.array([3, 5]), np.zeros((2, 2), np.float32)) == 0
    assert repeats.add(np.array([5]), np.full((1, 2), 0.5, np.float32)) == 0.5
    assert repeats.add(np.array([3]), np.full((1, 2), np.nan, np.float32)) == math.inf


def test_repeats_keep_a_copy_of_an_answer_that_its_owner_overwrites() -> None:
    repeats, buffer = Repeats(), np.zeros((1, 2), np.float32)
    repeats.add(np.array([0]), buffer)
    buffer += 1
    assert repeats.add(np.array([0]), buffer) == 1
