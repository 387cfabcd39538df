"""Timing: turns, and ratios whose intervals hold what they should."""

from __future__ import annotations

import numpy as np
import pytest
from timing import ratio, report, timings


def test_candidates_take_turns() -> None:
    order: list[str] = []
    found = timings({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3, warmup=1)
    assert "".join(order) == "abababab"
    assert {name: len(taken) for name, taken in found.items()} == {"a": 3, "b": 3}


def test_a_ratio_is_that_of_the_medians_and_lies_in_its_interval() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(1.0, 0.05, 41)
    found = ratio(list(0.5 * base), list(base))
    assert found.value == pytest.approx(0.5)
    assert found.low <= 0.5 <= found.high


@pytest.mark.parametrize("seed", range(5))
def test_what_a_slow_machine_does_to_both_cancels_out(seed: int) -> None:
    """Rounds that are slow for all leave a narrow interval; unpaired noise does not."""
    rng = np.random.default_rng(seed)
    slow = rng.uniform(1, 3, 31)
    paired = ratio(list(0.8 * slow * rng.normal(1, 0.01, 31)), list(slow))
    loose = ratio(list(0.8 * rng.permutation(slow)), list(slow))
    assert paired.high - paired.low < 0.5 * (loose.high - loose.low)


def test_the_report_names_the_bar() -> None:
    text = report({"base": [1.0, 1.0], "fast": [0.5, 0.5]}, "base", bar=0.75)
    assert "fast" in text
    assert "0.500" in text
    assert text.endswith("bar: at most 0.75 x base")
