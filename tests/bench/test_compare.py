"""What may be said of two measurements: planted slowdowns are found, and small ones not claimed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vit_edge.bench import judge, results, table
from vit_edge.bench.compare import compared, same_machine
from vit_edge.errors import ResourceError, UsageError

FACTS = {"cpu": "x", "cpus": "2", "python": "3.11.1"}


def process(latencies: Any) -> dict[str, Any]:
    found = [float(value) for value in latencies]
    return {
        "latencies_ms": found, "seconds": sum(found) / 1e3, "images": len(found),
        "warmup_runs": 20, "stable": True, "enough": True,
        "cold_s": {"import": 0.1, "load": 0.2, "first_answer": 0.05},
        "memory_bytes": {"anonymous": 50 * 10**6, "file": 10**6, "peak": 60 * 10**6},
    }  # fmt: skip


def entry(name: str, level: float, seed: int, processes: int = 5, spread: float = 0.01) -> Any:
    random = np.random.default_rng(seed)
    levels = level * np.exp(random.normal(0, spread, processes))
    return {
        "name": name, "failed": None, "facts": {"runtime": "r 1"}, "parity": None,
        "processes": [process(each + random.exponential(0.02 * level, 60)) for each in levels],
    }  # fmt: skip


def run(*entries: Any, **facts: str) -> Any:
    return {
        "schema_version": 1, "complete": True, "warnings": [], "facts": FACTS | facts,
        "configurations": list(entries),
    }  # fmt: skip


def kept(path: Path, *runs: Any) -> Path:
    with results.appending(path) as save:
        for one in runs:
            save(one)
    return path


@pytest.mark.parametrize("seed", range(5))
def test_ten_per_cent_are_found_and_one_is_not_claimed(seed: int) -> None:
    base = run(entry("a", 10, seed))
    slower, hardly = run(entry("a", 11, 100 + seed)), run(entry("a", 10.1, 200 + seed))
    found = compared(slower["configurations"][0], base["configurations"][0], slower, base)
    assert found.decided
    assert found.ratio.low < 1.1 < found.ratio.high
    assert "slower than a, 95 %" in str(found)
    found = compared(hardly["configurations"][0], base["configurations"][0], hardly, base)
    assert found.ratio.value < 1.05


def test_nothing_is_claimed_of_two_runs_of_the_same_more_often_than_said() -> None:
    claimed = 0
    for seed in range(200):
        first, second = run(entry("a", 10, seed)), run(entry("a", 10, 1000 + seed))
        found = compared(first["configurations"][0], second["configurations"][0], first, second)
        claimed += found.decided
    assert claimed <= 20  # 10 of them expected


def test_what_both_share_cancels_out_in_one_run() -> None:
    """A machine that slows down by a half meanwhile, and a candidate that is 3 % slower."""
    drift = [10, 11, 12, 13.5, 15]
    random = np.random.default_rng(0)
    entries = []
    for name, factor in (("a", 1.0), ("b", 1.03)):
        made = entry(name, 10, 0)
        made["processes"] = [
            process(factor * level * np.exp(random.normal(0, 0.002)) * np.ones(20))
            for level in drift
        ]
        entries.append(made)
    together = run(*entries)
    found = compared(entries[1], entries[0], together, together)
    assert found.paired
    assert found.decided
    apart = compared(entries[1], entries[0], together, run(entries[0]))
    assert not apart.paired
    assert not apart.decided
    assert "cannot tell" in str(apart)


def test_one_process_of_each_tells_nothing() -> None:
    first, second = run(entry("a", 10, 0, processes=1)), run(entry("a", 20, 1, processes=1))
    found = compared(first["configurations"][0], second["configurations"][0], first, second)
    assert not found.decided


def test_a_regression_has_exit_code_4_and_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = kept(tmp_path / "base" / "r.json", run(entry("a", 10, 0), entry("b", 10, 1)))
    same = kept(tmp_path / "same" / "r.json", run(entry("a", 10, 2), entry("b", 10, 3)))
    slow = kept(tmp_path / "slow" / "r.json", run(entry("a", 10, 4), entry("b", 11, 5)))
    assert judge.main(["check", str(same), "--baseline", str(base)]) == 0
    assert "no regression over 5% in 2 configurations" in capsys.readouterr().out
    assert judge.main(["check", str(slow), "--baseline", str(base)]) == 4
    said = capsys.readouterr().err
    assert "1 of 2 configurations got slower by more than 5%" in said
    assert "b is 1.1" in said
    arguments = ["check", str(slow), "--baseline", str(base), "--max-regression", "0.2"]
    assert judge.main(arguments) == 0


def test_another_machine_is_not_compared_without_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here, there = run(entry("a", 10, 0)), run(entry("a", 20, 0), cpu="y")
    assert not same_machine(here, there)
    first = kept(tmp_path / "1" / "r.json", here)
    second = kept(tmp_path / "2" / "r.json", there)
    assert judge.main(["check", str(second), "--baseline", str(first)]) == 3
    assert "cpu: y against x" in capsys.readouterr().err
    assert judge.main(["compare", str(first), str(second)]) == 0
    assert "differs: cpu: y against x" in capsys.readouterr().out
    arguments = ["check", str(second), "--baseline", str(first), "--across-machines"]
    assert judge.main(arguments) == 4


def test_the_configurations_of_one_run_are_compared_in_pairs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = kept(tmp_path / "r.json", run(*(entry(n, 10 + i, i) for i, n in enumerate("abc"))))
    assert judge.main(["compare", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(one["against"], one["name"]) for one in found] == [("a", "b"), ("a", "c"), ("b", "c")]


@pytest.mark.parametrize("text", ["5", "x", "-1%", "200%", ""])
def test_a_share_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no share"):
        judge.percent(text)


# Files


def test_runs_are_appended_and_what_was_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "new" / "r.json"
    kept(path, run(entry("a", 1, 0)))
    before = path.read_text()
    kept(path, run(entry("b", 1, 0)), run(entry("b", 2, 0)))
    names = [one["configurations"][0]["name"] for one in results.read(path)]
    assert names == ["a", "b"]
    assert path.read_text().startswith(before.rstrip("\n]}"))
    assert results.last(path)["configurations"][0]["processes"][0]["latencies_ms"][0] > 1.5


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"schema_version": 99, "runs": []}', '{"schema_version": 1}',
                '{"schema_version": 1, "runs": [3]}'],
)  # fmt: skip
def test_a_file_of_something_else_is_refused_and_left_alone(content: str, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(content)
    with pytest.raises(results.ResultsError, match=r"r\.json"), results.appending(path):
        pass
    assert path.read_text() == content


def test_two_at_a_time_are_refused(tmp_path: Path) -> None:
    with (
        results.appending(tmp_path / "r.json"),
        pytest.raises(ResourceError, match="another benchmark is being written"),
        results.appending(tmp_path / "r.json"),
    ):
        pass


def test_a_table_leaves_out_percentiles_with_too_few_samples() -> None:
    made = entry("a", 10, 0)
    made["parity"] = {"problems": [], "sqnr_centred_db": 44.2}
    failed = entry("b", 10, 0) | {"failed": "it died", "processes": []}
    rows = table.rows(run(made, failed))
    assert rows[1][3] != "-"
    assert rows[1][5] == "-"
    assert rows[1][-1] == "hold, 44 dB"
    assert rows[2][-1] == "it died"
    assert len({len(row) for row in rows}) == 1
