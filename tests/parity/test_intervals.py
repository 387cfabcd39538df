"""Intervals agree with scipy and with the definitions, and keep their promise."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from vit_edge.parity.intervals import (
    mcnemar_interval,
    mcnemar_p_value,
    trials_to_prove,
    wilson_interval,
)

requires = ("scipy",)


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize(("successes", "trials"), [(0, 7), (3, 7), (16, 16), (1990, 2000)])
def test_wilsons_interval_is_that_of_scipy(successes: int, trials: int, confidence: float) -> None:
    expected = stats.binomtest(successes, trials).proportion_ci(confidence, "wilson")
    found = wilson_interval(successes, trials, confidence)
    assert found == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_without_trials_nothing_is_known() -> None:
    assert wilson_interval(0, 0) == (0, 1)
    assert mcnemar_interval(0, 0, 0) == (-1, 1)


@pytest.mark.parametrize(("rate", "bound"), [(0.995, 0.99), (1.0, 0.99), (0.98, 0.9), (0.5, 0.8)])
def test_the_trials_to_prove_are_the_first_whose_interval_excludes_the_bound(
    rate: float, bound: float
) -> None:
    needed = trials_to_prove(rate, bound)
    assert needed is not None

    def excludes(trials: int) -> bool:
        low, high = wilson_interval(rate * trials, trials)  # type: ignore[arg-type]
        return not low <= bound <= high

    assert excludes(needed)
    assert not excludes(needed - 1)


def test_a_rate_that_is_the_bound_can_never_be_told_from_it() -> None:
    assert trials_to_prove(0.99, 0.99) is None


def test_mcnemars_p_value_is_that_of_the_exact_binomial_test() -> None:
    for lost, won in itertools.product(range(8), range(8)):
        expected = stats.binomtest(lost, lost + won, 0.5).pvalue if lost + won else 1.0
        assert mcnemar_p_value(lost, won) == pytest.approx(expected, abs=1e-12)


def test_mcnemars_p_value_holds_for_many_images() -> None:
    expected = stats.binomtest(24_700, 50_000, 0.5).pvalue
    assert mcnemar_p_value(24_700, 25_300) == pytest.approx(expected, rel=1e-7)


def test_the_interval_of_a_drop_is_bonett_and_prices() -> None:
    # by hand from their equation 9: p12 = 13/102, p21 = 5/102, z = 1.959964
    half = 1.959964 * math.sqrt((18 / 102 - (8 / 102) ** 2) / 102)
    expected = (8 / 102 - half, 8 / 102 + half)
    assert mcnemar_interval(12, 4, 100) == pytest.approx(expected, abs=1e-7)


def test_swapping_reference_and_candidate_mirrors_the_interval() -> None:
    low, high = mcnemar_interval(9, 2, 300)
    assert mcnemar_interval(2, 9, 300) == pytest.approx((-high, -low), abs=1e-15)


@pytest.mark.parametrize(("lost_rate", "won_rate"), [(0.004, 0.004), (0.02, 0.01), (0.001, 0.0)])
def test_the_interval_of_a_drop_covers_the_truth_as_often_as_it_says(
    lost_rate: float, won_rate: float
) -> None:
    rng = np.random.default_rng(0)
    draws = rng.multinomial(2000, [lost_rate, won_rate, 1 - lost_rate - won_rate], size=4000)
    bounds = [mcnemar_interval(int(lost), int(won), 2000) for lost, won, _ in draws]
    covered = np.mean([low <= lost_rate - won_rate <= high for low, high in bounds])
    assert covered >= 0.94  # 95 % less three standard errors of 4,000 draws
