"""Queries: latencies are what they are, and warm-ups end."""

from __future__ import annotations

import statistics
import time
from types import SimpleNamespace

import pytest

from vit_edge.bench.run import scenarios
from vit_edge.bench.run.scenarios import Limits, one_after_another, timed, warmed_up


def sleeper(seconds: float) -> scenarios.Query:
    return lambda: time.sleep(seconds)


def test_samples_are_as_many_and_as_long_as_asked_for() -> None:
    found = one_after_another(sleeper(1e-3), 4, Limits(30, 0.0, 60.0))
    assert len(found.latencies_ms) == 30
    assert found.images == 120
    assert found.enough
    assert found.seconds == pytest.approx(sum(found.latencies_ms) / 1e3, rel=1e-6)
    found = one_after_another(sleeper(1e-3), 1, Limits(1, 0.05, 60.0))
    assert found.seconds >= 0.05


def test_a_query_is_timed_until_time_and_runs_are_reached() -> None:
    calls: list[int] = []
    latencies_ms, _ = timed(lambda: calls.append(1), Limits(7, 0.0, 60.0))
    assert len(latencies_ms) == len(calls) == 7
    latencies_ms, seconds = timed(lambda: sum(range(1000)), Limits(1, 0.02, 60.0))
    assert sum(latencies_ms) / 1e3 == pytest.approx(seconds)
    assert seconds >= 0.02


def test_a_process_that_takes_too_long_is_kept_and_marked() -> None:
    found = one_after_another(sleeper(5e-3), 1, Limits(10_000, 0.0, 0.2))
    assert not found.enough
    assert found.latencies_ms


def test_a_warm_up_lasts_until_it_gets_no_faster() -> None:
    taken = iter([5e-3] * 15 + [1e-3] * 10_000)
    runs, stable = warmed_up(lambda: time.sleep(next(taken)))
    assert stable
    assert runs > 25  # after 20 the last ten are not as the ten before


@pytest.mark.parametrize(
    ("taken_s", "runs", "stable"),
    [([1.0] * 99, 11, True), ([30.0] * 99, 4, True), ([20.0, 15.0, 10.0, 5.0], 4, False)],
    ids=["fewer than twenty fit", "one does not fit", "still getting faster"],
)
def test_slow_queries_come_to_rest_too(
    taken_s: list[float], runs: int, stable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, left = [0.0], iter(taken_s)

    def query() -> None:
        now[0] += next(left)

    monkeypatch.setattr(scenarios, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    assert warmed_up(query) == (runs, stable)


def test_what_never_comes_to_rest_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenarios, "_WARMUP_S", 0.3)
    ever = iter(x for n in range(10_000) for x in [1e-3 * (1 + n // 5)] * 1)
    runs, stable = warmed_up(lambda: time.sleep(next(ever)))
    assert not stable
    assert runs > 5


def test_the_loop_itself_costs_little() -> None:
    """Per query two looks at the clock and a list: far below 2 % of 1 ms."""
    found = one_after_another(lambda: None, 1, Limits(20_000, 0.0, 60.0))
    assert statistics.median(found.latencies_ms) < 0.01
