"""What one CPU reads of another's writing, and what is said where that changed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import pytest

from vit_edge.bench.device import noise
from vit_edge.bench.device.handover import handover_gb_s
from vit_edge.machine import cpus


@pytest.mark.skipif(len(cpus.allowed_cpus()) < 2, reason="one CPU hands nothing over")
def test_it_is_measured_and_binds_nobody_else() -> None:
    before = cpus.allowed_cpus()
    rate = handover_gb_s()
    assert rate is not None
    assert 0.1 < rate < 1000
    assert cpus.allowed_cpus() == before


@pytest.mark.parametrize("allowed", [[], [3]])
def test_one_cpu_has_nobody_to_hand_over_to(
    allowed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpus, "allowed_cpus", lambda: allowed)
    assert handover_gb_s() is None


@pytest.mark.parametrize("refused", [0, 1])
def test_where_threads_cannot_be_bound_nothing_is_told(
    refused: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bind(thread: int, to: set[int]) -> None:
        if refused in to:
            raise PermissionError

    monkeypatch.setattr(cpus, "allowed_cpus", lambda: [0, 1])
    monkeypatch.setattr(os, "sched_setaffinity", bind)
    monkeypatch.setattr("vit_edge.bench.device.handover._PATIENCE_S", 0.01)
    assert handover_gb_s() is None


def _told(rates: Sequence[float | None], latencies_ms: Sequence[float]) -> str:
    processes: list[dict[str, Any]] = [
        {"latencies_ms": [latency], "handover_gb_s": rate}
        for latency, rate in zip(latencies_ms, rates, strict=True)
    ]
    return "".join(noise.configuration_warnings("a", processes))


def test_a_cause_is_named_where_the_cpus_were_moved() -> None:
    told = _told([21.1, 6.7, 20.4], [8.8, 14.1, 8.9])
    assert "differ by 60%: in 1 of 3 the CPUs handed data over at 7 GB/s, not 21, as" in told
    assert "one thread" in told


@pytest.mark.parametrize("rates", [[None, None], [21.0, 19.0], [None, 7.0]])
def test_without_a_move_no_cause_is_named(rates: list[float | None]) -> None:
    told = _told(rates, [8.8, 14.1])
    assert "differ" in told
    assert "GB/s" not in told


def test_cpus_that_moved_without_consequence_are_no_warning() -> None:
    assert _told([21.0, 7.0], [8.8, 8.8]) == ""
