"""Percentiles, their intervals, and how many samples they need."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vit_edge.bench.results.percentiles import mean, percentile, samples_needed, student


@pytest.mark.parametrize(
    ("q", "strict", "count"),
    # the strict ones are MLPerf's table of query counts (arXiv:1911.02549, table 4)
    [(0.5, False, 20), (0.9, False, 100), (0.99, False, 1000),
     (0.9, True, 24_576), (0.95, True, 57_344), (0.99, True, 270_336)],
)  # fmt: skip
def test_a_percentile_needs_so_many_samples(q: float, strict: bool, count: int) -> None:
    assert samples_needed(q, strict=strict) == count


@given(
    st.lists(st.lists(st.floats(0.1, 100), min_size=1, max_size=30), min_size=1, max_size=6),
    st.sampled_from([0.5, 0.9, 0.99]),
)
def test_an_interval_holds_its_value(processes: list[list[float]], q: float) -> None:
    value, low, high = percentile(processes, q)
    assert low <= value <= high
    assert min(map(min, processes)) <= value <= max(map(max, processes))


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Processes that differ by 3 %: what samples alone would tell is far too narrow."""
    random = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        levels = 10 * np.exp(random.normal(0, 0.03, 5))
        processes = [level + random.exponential(0.1, 50) for level in levels]
        _, low, high = percentile([p.tolist() for p in processes], 0.5)
        held += low <= 10 + 0.1 * np.log(2) <= high
    assert 0.91 <= held / 300 <= 0.99


def test_a_tail_that_no_process_alone_could_show_is_that_of_all_samples() -> None:
    """20 processes of 50: the middle of their own p99 would be 3.9 for 4.6."""
    random = np.random.default_rng(0)
    found = [percentile(random.exponential(1.0, (20, 50)).tolist(), 0.99).value for _ in range(100)]
    assert np.mean(found) == pytest.approx(-np.log(0.01), rel=0.03)


def test_intervals_of_tails_hold_the_truth_nearly_as_often() -> None:
    random = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        _, low, high = percentile(random.exponential(1.0, (5, 20)).tolist(), 0.9)
        held += low <= -np.log(0.1) <= high
    assert held / 300 >= 0.9


def test_one_process_still_has_an_interval_wider_for_what_comes_in_waves() -> None:
    random = np.random.default_rng(0)
    waves = 10 + np.repeat(random.normal(0, 1, 20), 50)
    mixed = random.permutation(waves)
    wide, narrow = percentile([waves.tolist()], 0.5), percentile([mixed.tolist()], 0.5)
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_nothing_measured_is_an_error() -> None:
    with pytest.raises(ValueError, match="no samples"):
        mean([[], []])


def test_students_quantiles_fall_to_the_normal_one() -> None:
    assert student(1) == 12.706
    assert 1.96 < student(1000) < student(30) < student(20) < 2.1
