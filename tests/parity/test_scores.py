"""Statistics follow what makes scores of the logits: softmax, a sigmoid of each, or nothing."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import special

from vit_edge.parity import judge
from vit_edge.parity.limits import LIMITS, limit_for
from vit_edge.parity.logits import LogitComparison, largest_decision_flip
from vit_edge.parity.result import Row
from vit_edge.parity.statistics import Repeats, decision_divergence
from vit_edge.parity.tables import exact_table, statistics_table
from vit_edge.parity.targets import Target, parse_target
from vit_edge.parity.witness import Witness

requires = ("scipy",)

Array = NDArray[Any]


def compared(candidate: Array, expected: Array, scores: Any = "sigmoid") -> LogitComparison:
    comparison = LogitComparison(scores, repeats=Repeats())
    for start in range(0, len(expected), 7):
        indices = np.arange(start, min(start + 7, len(expected)))
        labels = np.zeros(len(indices), np.int64)
        comparison.add(indices, candidate[indices], expected[indices], labels)
    return comparison


def drawn(seed: int, images: int, classes: int, noise: float) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    expected = 3 * rng.standard_normal((images, classes))
    return expected + noise * rng.standard_normal(expected.shape), expected


def test_the_divergence_is_that_of_independent_decisions() -> None:
    candidate, expected = drawn(0, 20, 6, 1.0)
    p, q = special.expit(expected), special.expit(candidate)
    wanted = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean(axis=1)
    np.testing.assert_allclose(decision_divergence(expected, candidate), wanted, 1e-9)


def test_the_divergence_of_huge_logits_is_finite_and_that_of_nan_is_not() -> None:
    expected = np.array([[-3e4, 3e4], [1.0, 2.0]])
    candidate = np.array([[1e30, -1e30], [np.nan, 2.0]])
    divergence = decision_divergence(expected, candidate)
    assert divergence[0] == pytest.approx(1e30)
    assert divergence[1] == np.inf


def test_agreement_flips_and_margins_are_those_of_a_loop_over_the_decisions() -> None:
    candidate, expected = drawn(1, 60, 4, 1.0)
    spread = np.sqrt(((expected - expected.mean(axis=0)) ** 2).mean())
    margins, same = [], 0
    for ours, theirs in zip(candidate, expected, strict=True):
        wrong = [abs(t) for o, t in zip(ours, theirs, strict=True) if (o >= 0) != (t >= 0)]
        same += not wrong
        margins += [max(wrong)] if wrong else []
    summary = compared(candidate, expected).summary()
    assert 0 < summary["flips"] == len(margins) == 60 - same
    assert summary["top1_agreement"] == same / 60
    assert summary["flip_margin_max"] == pytest.approx(max(margins) / spread)
    assert summary["margin_weighted_flips"] == pytest.approx(sum(margins) / spread / 60)
    nearest = np.median(np.abs(expected).min(axis=1))
    assert summary["reference_margin_median"] == pytest.approx(nearest / spread)
    assert summary["scores"] == "sigmoid"
    assert "top5_agreement" not in summary
    assert "accuracy" not in summary  # a folder names one class of several
    json.dumps(summary, allow_nan=False)


def test_a_flip_says_which_class_and_which_way() -> None:
    expected = np.array([[2.0, -1.0, 3.0], [2.0, -1.0, 3.0], [2.0, -1.0, 3.0]])
    candidate = np.array([[-0.1, -1.0, 3.0], [2.0, 0.1, 3.0], [2.0, np.nan, 3.0]])
    flips = compared(candidate, expected).flips
    assert [flip[1:] for flip in flips] == [(0, -1, 2.0), (-1, 1, 1.0), (2, -1, 3.0)]
    assert largest_decision_flip(expected[0], expected[0]) == (-1, 0.0)


def test_a_single_logit_flips_where_its_sign_does_which_argmax_never_sees() -> None:
    rng = np.random.default_rng(2)
    expected = 2 * rng.standard_normal((400, 1))
    flipped = expected.copy()
    flipped[:40] *= -1
    found = compared(flipped, expected).summary()
    assert found["top1_agreement"] == 0.9
    assert compared(flipped, expected, "softmax").summary()["top1_agreement"] == 1.0
    assert limit_for("int8", "sigmoid").problems("logits", found)


@pytest.mark.parametrize("precision", sorted(LIMITS))
def test_a_shift_of_every_logit_is_seen_in_sigmoid_scores_at_any_precision(precision: str) -> None:
    # Softmax scores do not see it, nor does the largest logit.
    _, expected = drawn(3, 64, 5, 0.0)
    healthy = compared(expected, expected).summary()
    assert limit_for(precision, "sigmoid").problems("logits", healthy | {"batch_relative": 0}) == []
    shifted = compared(expected + 2.5, expected).summary()
    assert limit_for(precision, "sigmoid").problems("logits", shifted | {"batch_relative": 0})


@pytest.mark.parametrize("precision", sorted(LIMITS))
def test_values_are_judged_as_numbers_alone(precision: str) -> None:
    limit = limit_for(precision, "none")
    candidate, expected = drawn(4, 64, 1, 1e-7)
    summary = compared(candidate, expected, "none").summary()
    assert not {"top1_agreement", "kl_median", "flips", "accuracy"} & summary.keys()
    assert limit.problems("logits", summary) == []
    broken = compared(expected + 3.0, expected, "none").summary()
    assert limit.problems("logits", broken)
    nan = compared(np.full_like(expected, np.nan), expected, "none").summary()
    assert "NaN" in limit.problems("logits", nan)[0]


def rows_of(comparison: LogitComparison) -> tuple[Row, ...]:
    return (Row("logits", 1, {"allowed_relative": 1e-5, **comparison.summary()}),)


def test_tables_name_what_agrees() -> None:
    candidate, expected = drawn(5, 40, 3, 1.5)
    rows = rows_of(compared(candidate, expected))
    text = "\n".join(statistics_table(rows, limit_for("int8", "sigmoid"), None))
    assert "agreement on every class" in text
    assert "top-1" not in text
    assert "flip at batch 1" in text
    assert "-> none" in text or "none ->" in text
    assert "agreement on every class" in next(exact_table(rows))
    values = rows_of(compared(candidate, expected, "none"))
    text = "\n".join(statistics_table(values, limit_for("int8", "none"), None))
    assert "agreement" not in text
    assert "KL" not in text


def test_a_target_on_classes_is_missed_by_values_with_the_reason() -> None:
    candidate, expected = drawn(6, 40, 3, 0.0)
    rows = rows_of(compared(candidate, expected, "none"))
    target = parse_target("top1_agreement=0.9,sqnr_centred_db=20")
    wrong = judge.problems(rows, judge.findings(rows, limit_for("fp16", "none"), target))
    assert len(wrong) == 1
    assert "no such statistic" in wrong[0]
    assert target.of_values() == Target((("sqnr_centred_db", 20.0),))
    accuracy = Target((("accuracy", 0.5),)).missed(compared(candidate, expected).summary())
    assert "scores are by sigmoid" in accuracy[0]


def test_a_report_shows_the_flip_of_a_class_that_is_not_the_first() -> None:
    expected = np.array([[5.0, 1.0], [5.0, -1.0]])
    candidate = np.array([[5.0, -0.5], [5.0, -1.0]])
    comparison = compared(candidate, expected)
    seen = Witness(2, "sigmoid")
    seen.add(np.arange(2), candidate, expected)
    images = seen.images(["a", "b"], comparison)
    assert [image.relative_margin != 0 for image in images] == [True, False]
    assert images[0].kl == pytest.approx(float(decision_divergence(expected, candidate)[0]))
    values = Witness(2, "none")
    values.add(np.arange(2), candidate, expected)
    assert values.images(["a", "b"], None) == ()
    assert len(values.scatter().reference) == 4


def test_limits_of_classes_are_as_they_were() -> None:
    for precision, limit in LIMITS.items():
        assert limit_for(precision) is limit
        assert limit_for(precision, "sigmoid") is limit
        of_values = limit_for(precision, "none")
        assert of_values == dataclasses.replace(
            limit, logits=limit.logits.of_values(), top1_agreement=None
        )
        assert of_values.logits.bounds  # something is left to hold
