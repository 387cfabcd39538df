"""A target is read strictly, and says in words what it misses and what is not proven yet."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from vit_edge.errors import UsageError
from vit_edge.parity import judge
from vit_edge.parity.intervals import wilson_interval
from vit_edge.parity.limits import limit_for
from vit_edge.parity.logits import LogitComparison
from vit_edge.parity.result import FAIL, Row
from vit_edge.parity.statistics import Difference
from vit_edge.parity.targets import STATISTICS, parse_target


def agreeing(right: int, images: int) -> dict[str, Any]:
    """The summary of a candidate that changes the class of some images."""
    expected = np.tile([2.0, 1.0, 0.0], (images, 1)) + np.linspace(0, 1, images)[:, None]
    found = expected.copy()
    found[right:] = found[right:, ::-1]
    comparison = LogitComparison()
    comparison.add(np.arange(images), found, expected, np.zeros(images, np.int64))
    return comparison.summary()


def test_a_target_is_read_as_typed() -> None:
    target = parse_target("top1_agreement=0.99, sqnr_centred_db = 20")
    assert target.as_dict() == {"top1_agreement": 0.99, "sqnr_centred_db": 20.0}


def test_every_problem_of_a_target_is_listed() -> None:
    text = "top1_agreement=99,top2=1,kl_median=low,kl_max=1,kl_max=2,cosine_min,sqnr_db=inf,"
    with pytest.raises(UsageError) as caught:
        parse_target(text)
    message = str(caught.value)
    for problem in (
        "7 problem(s)", "99 is not in 0..1", "'top2' is no statistic; there are: top1_agreement",
        "'low' is no number", "kl_max is given twice", "'cosine_min' is not NAME=NUMBER",
        "sqnr_db: inf", "'' is not NAME=NUMBER",
    ):  # fmt: skip
        assert problem in message


def test_every_statistic_that_can_be_asked_for_is_in_a_summary() -> None:
    summary = agreeing(9, 10)
    assert STATISTICS.keys() <= summary.keys()
    assert {s.interval for s in STATISTICS.values() if s.interval} <= summary.keys()


@pytest.mark.parametrize(
    ("text", "missed"),
    [
        ("top1_agreement=0.9", []),
        ("top1_agreement=0.91", ["top-1 agreement is 90.00%, allowed at least 91.00%"]),
        ("flip_margin_max=0", ["the largest margin of a flip is 6.27, allowed at most 0"]),
        ("accuracy_drop=0.1", []),
        ("accuracy_drop=0.05", ["the drop in accuracy is +10.00%, allowed at most +5.00%"]),
        ("accuracy=1,cosine_min=1", 2),
    ],
)
def test_what_is_missed_is_said_with_found_and_allowed(text: str, missed: Any) -> None:
    found = parse_target(text).missed(agreeing(9, 10))
    assert (len(found) if isinstance(missed, int) else found) == missed


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("accuracy=0.5", "the images have no labels"),
        ("sqnr_centred_db=5", "it needs two images or more, there are 1"),
        ("kl_max=5", "there are NaN or Inf"),
    ],
)
def test_a_statistic_without_a_value_is_missed_with_the_reason(text: str, why: str) -> None:
    comparison = LogitComparison()
    bad = math.nan if "kl" in text else 1.0
    comparison.add(np.array([0]), np.array([[bad, 2.0]]), np.array([[1.0, 2.5]]))
    (problem,) = parse_target(text).missed(comparison.summary())
    assert problem.endswith(why)


def test_an_output_without_classes_misses_a_target_on_classes() -> None:
    difference = Difference()
    difference.add(np.arange(2), np.eye(2), np.eye(2))
    (problem,) = parse_target("top1_agreement=0.5").missed(difference.summary())
    assert problem.endswith("this output has no such statistic")


def test_a_rate_on_few_images_holds_without_being_proven() -> None:
    target, summary = parse_target("top1_agreement=0.98,kl_max=99"), agreeing(16, 16)
    assert target.missed(summary) == []
    (proof,) = target.proved(summary)
    assert not proof.holds
    assert proof.images_needed is not None
    assert wilson_interval(proof.images_needed, proof.images_needed)[0] > 0.98
    assert wilson_interval(proof.images_needed - 1, proof.images_needed - 1)[0] <= 0.98


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ("softmax", {"top5_agreement", "accuracy_drop", "kl_max", "relative"}),
        ("sigmoid", {"kl_max", "relative"}),
        ("none", {"relative"}),
    ],
)
def test_a_target_keeps_what_means_something_of_the_scores(scores: Any, kept: set[str]) -> None:
    target = parse_target("top5_agreement=0.9,accuracy_drop=0,kl_max=1,relative=1")
    assert target.for_scores(scores).as_dict().keys() == kept


def test_a_search_has_no_labels_and_one_batch() -> None:
    target = parse_target("accuracy=1,accuracy_drop=0,batch_relative=0,sqnr_db=20")
    assert target.on_calibration().as_dict() == {"sqnr_db": 20}


def test_agreement_of_features_is_missed_and_not_open() -> None:
    features = Difference()
    features.add(np.arange(4), np.eye(4), np.eye(4))
    target = parse_target("top1_agreement=0.9")
    row = Row("features", 1, features.summary())
    (found,) = judge.findings([row], limit_for("fp32"), target)[1:]
    assert (found.status, "no such statistic" in found.words) == (FAIL, True)


def test_a_rate_on_many_images_is_proven() -> None:
    (proof,) = parse_target("top1_agreement=0.98").proved(agreeing(1990, 2000))
    assert proof.holds
    assert proof.images_needed == 2000


def test_a_rate_below_its_bound_is_proven_by_no_number_of_images() -> None:
    (proof,) = parse_target("top1_agreement=0.98").proved(agreeing(9, 10))
    assert (proof.holds, proof.images_needed) == (False, None)


def test_a_drop_is_proven_by_the_upper_end_of_its_interval() -> None:
    summary = agreeing(1998, 2000)
    (proof,) = parse_target("accuracy_drop=0.002").proved(summary)
    assert summary["accuracy_drop"] == pytest.approx(0.001)
    assert not proof.holds
    assert proof.images_needed is not None
    assert proof.images_needed > 2000
    (proof,) = parse_target("accuracy_drop=0.01").proved(summary)
    assert proof.holds
