"""How workers share the CPUs."""

from __future__ import annotations

import pytest

from tests.support.cpus import share


@pytest.mark.parametrize(
    ("worker", "workers", "cpus", "expected"),
    [
        (None, 1, [0, 1], [0, 1]),
        ("gw0", 2, [0, 1], [0]),
        ("gw1", 2, [0, 1], [1]),
        ("gw1", 4, [2, 3, 5, 7, 8, 9], [3, 9]),
        ("gw2", 4, [0, 1], [0]),
        ("gw3", 4, [], []),
    ],
)
def test_workers_share_the_cpus(
    worker: str | None, workers: int, cpus: list[int], expected: list[int]
) -> None:
    assert share(worker, workers, cpus) == expected
