"""Timing: calls are repeated."""

from __future__ import annotations

from vit_edge.bench.run.measure import repeated


def test_a_call_is_repeated_until_time_and_runs_are_reached() -> None:
    calls: list[int] = []
    taken = repeated(lambda: calls.append(1), at_least_s=0.0, at_least_runs=7, warmup_runs=2)
    assert len(taken) == 7
    assert len(calls) == 9
    long = repeated(lambda: sum(range(1000)), at_least_s=0.02, at_least_runs=1, warmup_runs=0)
    assert sum(long) >= 0.02
