"""The Linears that hurt most are found, kept in float until the target holds, and no further."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.quantize.workbench import no_progress
from vit_edge.errors import ParityError
from vit_edge.parity.targets import parse_target
from vit_edge.quantize.search.journal import Journal
from vit_edge.quantize.search.sensitivity import (
    Share,
    by_cost,
    disproportionate,
    modest,
    search,
    shares,
    tries,
)

requires = ("torch", "onnx", "onnxscript", "onnxruntime")

NOISE = {"a": 1.0, "b": 6.0, "c": 2.0, "d": 1.0}


class FakeJudge:
    """Noise adds up; agreement falls by 1 % with every unit of it."""

    def __init__(self) -> None:
        self.measured: list[list[str]] = []

    def noises(self, base: Sequence[str], images: int) -> Callable[[Sequence[str]], float]:
        assert base == []

        def noise(model: Sequence[str]) -> float:
            self.measured.append(list(model))
            return sum(NOISE[name] for name in model)

        return noise

    def summary(self, model: Sequence[str]) -> dict[str, Any]:
        lost = sum(NOISE[name] for name in model)
        return {"top1_agreement": 1 - lost / 100, "reference_margin_median": 1.0}


def run(goal: str, first: int, budget: int) -> list[Any]:
    target = parse_target(goal) if goal else None
    counts = tries([1.0] * len(NOISE), first, budget)
    return search(FakeJudge(), lambda n: n, list("bcad"), target, counts, no_progress)  # type: ignore[arg-type, return-value]


def test_the_worst_comes_first_with_its_share(tmp_path: Path) -> None:
    judge = FakeJudge()
    found = shares(judge, lambda n: n, list(NOISE), 8, Journal(None), no_progress)  # type: ignore[arg-type, return-value]
    assert [(share.name, share.share) for share in found[:2]] == [("b", 0.6), ("c", 0.2)]
    assert judge.measured == [["a"], ["b"], ["c"], ["d"]]


def test_a_stopped_search_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    first = Journal(path)
    first.add("a", 1.0)
    first.add("b", 6.0)
    with path.open("a") as file:
        file.write('{"name": "c", "va')  # killed while it wrote
    judge = FakeJudge()
    found = shares(judge, lambda n: n, list(NOISE), 8, Journal(path), no_progress)  # type: ignore[arg-type, return-value]
    assert judge.measured == [["c"], ["d"]]
    assert [share.name for share in found] == ["b", "c", "a", "d"]
    assert Journal(path).values == NOISE


def test_a_finished_search_leaves_nothing_behind(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "deep" / "journal.jsonl")
    journal.add("a", 1.0)
    journal.finish()
    assert Journal(tmp_path / "deep" / "journal.jsonl").values == {}


def test_no_more_is_kept_in_float_than_the_target_asks_for() -> None:
    trials = run("top1_agreement=0.965", 0, 4)
    assert [trial.kept_float for trial in trials] == [(), ("b",), ("b", "c")]
    assert not trials[-1].missed
    assert all(trial.missed for trial in trials[:-1])


def test_without_a_target_the_first_try_is_taken() -> None:
    assert [trial.kept_float for trial in run("", 1, 4)] == [("b",)]


def test_a_target_out_of_reach_is_refused_with_the_worst_named() -> None:
    with pytest.raises(ParityError, match=r"(?s)2 of 4 Linears.*top-1 agreement is 98\.00%.*b, c"):
        run("top1_agreement=0.999", 0, 2)


@pytest.mark.parametrize(
    ("noise", "expected"),
    [([6, 1, 1, 1, 1], 1), ([1, 1, 1, 1, 1], 0), ([99, 4, 1, 1, 1, 1], 2), ([0, 0], 0)],
)
def test_what_does_more_than_its_share_of_what_is_left_is_counted(
    noise: list[float], expected: int
) -> None:
    ranked = [Share(str(index), value, 0.0) for index, value in enumerate(noise)]
    assert disproportionate(ranked, 0.3, {}) == expected


def test_what_is_cheap_in_float_is_bought_first() -> None:
    ranked = [Share("dear", 6.0, 0.6), Share("cheap", 3.0, 0.3), Share("free", 1.0, 0.1)]
    costs = {"dear": 1.0, "cheap": 0.25, "free": 0.01}
    order = by_cost(ranked, costs)
    assert [share.name for share in order] == ["free", "cheap", "dear"]
    # 10 % of 10 for a hundredth; 33 % of 9 for a quarter; all of 6
    assert disproportionate(order, 0.5, costs) == 3
    assert disproportionate(order, 1.0, costs) == 2
    assert disproportionate(by_cost(ranked, {}), 0.65, {}) == 0


@pytest.mark.parametrize(
    ("costs", "expected"), [([1.0] * 8, 2), ([1.0] * 3, 0), ([0.1, 0.1, 1.0, 1.0], 2), ([], 0)]
)
def test_a_quarter_of_the_cost_is_modest(costs: list[float], expected: int) -> None:
    assert modest(costs) == expected


@pytest.mark.parametrize(
    ("costs", "first", "budget", "expected"),
    [
        ([1.0] * 4, 0, 2, [0, 1, 2]),
        ([1.0] * 4, 3, 2, [2]),  # what the budget allows, however much does harm
        ([0.1, 0.1, 1.0, 0.3], 0, 1, [0, 2]),
        ([0.1, 0.1, 1.0, 0.3], 1, 2, [1, 2, 3, 4]),
        ([0.1, 0.2], 0, 4, [0, 2]),
        ([0.1, 0.2], 0, 0, [0]),
    ],
)
def test_each_try_spends_one_unit_more_and_none_exceeds_the_budget(
    costs: list[float], first: int, budget: int, expected: list[int]
) -> None:
    assert tries(costs, first, budget) == expected


@pytest.mark.parametrize("place", ["file/below.jsonl", "folder"])
def test_a_journal_that_cannot_be_written_keeps_nothing_and_stops_nobody(
    place: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    journal = Journal(tmp_path / place)
    journal.add("a", 1.0)
    journal.add("b", 2.0)
    assert journal.values == {"a": 1.0, "b": 2.0}
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "XDG_CACHE_HOME" in caplog.text
    journal.finish()
