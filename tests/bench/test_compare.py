"""What may be said of two measurements: planted slowdowns are found, and small ones not claimed."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from roofline import shares

from tests.bench.planted import process
from tests.bench.report_runs import ROOFLINE, machines, made_entry, made_run, typed, typed_entry
from tests.support.altered import places
from vit_edge.bench.report.markdown import markdown
from vit_edge.bench.results import judge, results, table
from vit_edge.bench.results.compare import Comparison, same_machine
from vit_edge.bench.results.compare import compared as compared_runs
from vit_edge.errors import ResourceError, UsageError, VitEdgeError
from vit_edge.parity.targets import parse_target
from vit_edge.recommend.offers import Terms, from_results

HOUR = "one run each: what differs from hour to hour is not in the intervals"
OF_IT: Any = SimpleNamespace(path=Path("b"), model_sha256=made_entry()["bundle"]["model_sha256"])


def entry(name: str, level: float, seed: int, processes: int = 5, spread: float = 0.01) -> Any:
    random = np.random.default_rng(seed)
    levels = level * np.exp(random.normal(0, spread, processes))
    return made_entry() | {
        "name": name,
        "processes": [process(each + random.exponential(0.02 * level, 60)) for each in levels],
    }


def run(*entries: Any, **facts: str) -> Any:
    return made_run(*entries, **facts)


def compared(entry: Any, other: Any, run: Any, base: Any) -> Comparison:
    """As compare.compared, of JSON; of one run if both are the same."""
    ours = typed(run)
    theirs = ours if run is base else typed(base)
    return compared_runs(typed_entry(entry), typed_entry(other), ours, theirs)


def checked(tmp_path: Path, now: Any, base: Any, *more: str) -> int:
    """What `check` exits with."""
    for name, one in (("now", now), ("base", base)):
        (tmp_path / f"{name}.json").unlink(missing_ok=True)
        kept(tmp_path / f"{name}.json", one)
    files = [str(tmp_path / "now.json"), "--baseline", str(tmp_path / "base.json")]
    return judge.main(["check", *files, *more])


def kept(path: Path, *runs: Any) -> Path:
    with results.appending(path) as save:
        for one in runs:
            save(typed(one))
    return path


@pytest.mark.parametrize("seed", range(5))
def test_a_planted_slowdown_of_ten_per_cent_is_found_with_its_size(seed: int) -> None:
    base, slower = run(entry("a", 10, seed)), run(entry("a", 11, 100 + seed))
    found = compared(slower["configurations"][0], base["configurations"][0], slower, base)
    assert found.decided
    assert found.ratio.low < 1.1 < found.ratio.high
    assert "slower than a, 95 %" in str(found)


@pytest.mark.parametrize(
    ("factor", "spread", "least", "most"),
    [(1.01, 0.01, 0, 0), (1.04, 0.01, 0, 5), (1.04, 0.03, 0, 5), (1.1, 0.01, 98, 100)],
)
def test_check_finds_a_slowdown_of_10_per_cent_and_hardly_ever_claims_one_below_5(
    factor: float,
    spread: float,
    least: int,
    most: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of 100 pairs of runs; a true 4 % is over 5 % by its point estimate in many of them."""
    runs: dict[str, Any] = {}
    monkeypatch.setattr(results, "last", lambda path: typed(runs[path.name]))
    found = []
    for seed in range(100):
        runs["base"] = run(entry("a", 10, seed, spread=spread))
        runs["now"] = run(entry("a", 10 * factor, 1000 + seed, spread=spread))
        found.append(judge.main(["check", "now", "--baseline", "base"]))
    assert set(found) <= {0, 4}
    assert least <= found.count(4) <= most


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
    base = run(entry("a", 10, 0), entry("b", 10, 1))
    assert checked(tmp_path, run(entry("a", 10, 2), entry("b", 10, 3)), base) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[2:] == ["no regression over 5% in 2 configurations"]
    slow = run(entry("a", 10, 4), entry("b", 11, 5))
    assert checked(tmp_path, slow, base) == 4
    said = capsys.readouterr()
    assert "1 of 2 configurations got slower by more than 5%" in said.err
    assert "b is 1." in said.err
    assert f"slower in {tmp_path / 'now.json'} than in {tmp_path / 'base.json'}" in said.out
    assert checked(tmp_path, slow, base, "--max-regression", "0.2") == 0


def test_what_may_be_too_slow_is_told_as_open(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = run(entry("a", 10.5, 1))
    assert checked(tmp_path, slow, run(entry("a", 10, 0))) == 0
    said = capsys.readouterr()
    assert "open: a: up to 1.06" in said.err
    assert "open: " not in said.out


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"failed": "killed by SIGKILL"}, "it failed: killed by SIGKILL"),
        ({"processes": []}, "nothing was measured"),
        ({}, "it is absent"),
    ],
)
def test_what_the_baseline_measured_and_the_new_run_did_not_is_exit_code_4(
    change: dict[str, Any], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = run(entry("a", 10, 0), entry("b", 10, 1))
    now = run(entry("a", 10, 0), *([entry("b", 10, 1) | change] if change else []))
    assert checked(tmp_path, now, base) == 4
    assert f"\n  b: {reason}" in capsys.readouterr().err
    assert checked(tmp_path, base, now) == 0  # the baseline has nothing to hold it against
    said = capsys.readouterr().err
    assert f"not compared: b: in {tmp_path / 'base.json'} {reason}" in said


def test_a_run_in_which_everything_died_is_exit_code_4(tmp_path: Path) -> None:
    dead = entry("a", 10, 0) | {"failed": "it died", "processes": []}
    assert checked(tmp_path, run(dead), run(entry("a", 10, 0))) == 4


def test_an_interrupted_run_is_exit_code_4_and_an_interrupted_baseline_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run(entry("a", 10, 0))
    stopped = whole | {"complete": False, "interrupted": "after 3 processes"}
    assert checked(tmp_path, stopped, whole) == 4
    assert "its newest run was interrupted" in capsys.readouterr().err
    assert checked(tmp_path, whole, stopped) == 0
    told = f"{tmp_path / 'base.json'}: INCOMPLETE: interrupted after 3 processes"
    assert told in capsys.readouterr().err


def test_the_warnings_of_both_runs_are_told_with_their_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, now = (run(entry("a", 10, 0)) | {"warnings": [word]} for word in ("cold", "hot\x1b[2J"))
    assert checked(tmp_path, now, base) == 0
    said = capsys.readouterr().err
    assert f"{tmp_path / 'base.json'}: warning: cold" in said
    assert f"{tmp_path / 'now.json'}: warning: hot\ufffd[2J" in said


def test_a_slower_tail_is_found_at_its_percentile_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, now = entry("a", 10, 0), entry("a", 10, 0)
    for taken in now["processes"]:
        fastest_last = sorted(taken["latencies_ms"], reverse=True)
        taken["latencies_ms"] = [
            1.5 * ms if place < 12 else ms for place, ms in enumerate(fastest_last)
        ]
    assert checked(tmp_path, run(now), run(base)) == 0
    capsys.readouterr()
    assert checked(tmp_path, run(now), run(base), "--percentile", "0.9") == 4
    assert "slower at p90 in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("percentile", "words"),
    [("0.99", "needs 1,000 samples over all processes"), ("1", "between 0 and 1"),
     ("nan", "between 0 and 1")],
)  # fmt: skip
def test_a_percentile_without_enough_samples_is_refused(
    percentile: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = run(entry("a", 10, 0))
    assert checked(tmp_path, one, one, "--percentile", percentile) == 2
    said = capsys.readouterr().err
    assert words in said
    assert ("now.json: a: 300" in said) is (percentile == "0.99")


def test_another_machine_is_not_compared_without_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here, there = run(entry("a", 10, 0), cpu="x"), run(entry("a", 20, 0), cpu="y")
    assert not same_machine(here["facts"], there["facts"])
    assert checked(tmp_path, there, here) == 3
    assert "cpu: y against x" in capsys.readouterr().err
    assert judge.main(["compare", str(tmp_path / "base.json"), str(tmp_path / "now.json")]) == 0
    said = capsys.readouterr()
    assert "differs: cpu: y against x" in said.err
    assert "differs" not in said.out
    assert checked(tmp_path, there, here, "--across-machines") == 4


def test_what_any_pair_differs_in_is_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = "abc"
    base = run(*(entry(name, 10, 0) for name in names), vit_edge="1.0")
    now = run(*(entry(name, 10, 0) for name in names), vit_edge="1.1")
    for found in now["configurations"][1:]:
        found["facts"] |= {"threads": "1", "execution_precision": "bf16", "provider": "CUDA"}
        found["bundle"] |= {"model_sha256": "7" * 64}
    now["sampling"]["images"] = "photos"
    assert checked(tmp_path, now, base) == 0
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if line.startswith("differs")] == [
        "differs: vit_edge: 1.1 against 1.0", "differs: images: photos against None",
        "differs: threads: 1 against 2", "differs: execution_precision: bf16 against None",
        "differs: provider: CUDA against None",
        "differs: another model: 777777777777 against 555555555555",
    ]  # fmt: skip
    assert said.count(HOUR) == 1


def test_the_configurations_of_one_run_are_compared_in_pairs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = kept(tmp_path / "r.json", run(*(entry(n, 10 + i, i) for i, n in enumerate("abc"))))
    assert judge.main(["compare", str(path), "--json"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert [(one["against"], one["name"]) for one in found] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert HOUR not in said.err


@pytest.mark.parametrize(
    "other",
    [
        {"batch": 2}, {"scenario": "offline"}, {"queries_per_second": 3.0}, {"stage": "end-to-end"},
        {"bundle": made_entry()["bundle"] | {"variant": "tiny-patch16-224"}},
        {"bundle": made_entry()["bundle"] | {"image_hw": [384, 384]}},
    ],
)  # fmt: skip
def test_what_does_not_do_the_same_work_is_not_compared(
    other: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    apart = [entry("a", 10, 0), entry("b", 10, 1) | other]
    path = kept(tmp_path / "1.json", run(*apart))
    assert judge.main(["compare", str(path)]) == 3
    assert "no two configurations of the same variant" in capsys.readouterr().err
    path = kept(tmp_path / "2.json", run(*apart, entry("c", 10, 2)))
    assert judge.main(["compare", str(path)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert "c against a" in line or "than a" in line


@pytest.mark.parametrize(("level", "code"), [(10, 0), (12, 4)])
def test_json_is_json_whatever_is_to_be_told(
    level: float, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = run(entry("a", 10, 0), entry("b", 10, 0, processes=1), python="3.10")
    now = run(entry("a", level, 0), entry("b", 10, 0, processes=1))
    assert checked(tmp_path, now, base, "--json") == code
    said = capsys.readouterr()
    first, second = json.loads(said.out, parse_constant=pytest.fail)
    assert first["ratio"][0] == pytest.approx(level / 10, rel=0.02)
    assert second["ratio"][2] is None
    assert "differs: python" in said.err
    assert ("no regression" in said.err) is (code == 0)


def test_a_ratio_beyond_all_numbers_is_null(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, now = (
        run(made_entry() | {"processes": [process([ms] * 20)] * 2}) for ms in (1e-300, 1e17)
    )
    assert checked(tmp_path, now, base, "--json") == 4
    assert json.loads(capsys.readouterr().out)[0]["ratio"] == [None] * 3


@pytest.mark.parametrize(
    ("level", "words"),
    [(10.042, "a is 1.004x slower in B than in A, 95 % 1.00"), (9.9, "a is 1.010x faster in B"),
     (10, "a, B against A: cannot tell, 1.000x the time, 95 % 0.9")],
)  # fmt: skip
def test_four_digits_are_told_and_which_side_is_which(level: float, words: str) -> None:
    runs = []
    for seed, factor in enumerate((10, level)):
        random = np.random.default_rng(seed)
        noise = np.exp(random.normal(0, 1e-4, 5))
        made = made_entry() | {"name": "a"}
        runs.append(run(made | {"processes": [process([factor * x] * 20) for x in noise]}))
    base, now = runs
    found = compared(now["configurations"][0], base["configurations"][0], now, base)
    assert words in found.of_files("B", "A")


def test_a_name_neither_steers_the_terminal_nor_adds_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = run(entry("a\x1b[2J\nno regression", 10, 0))
    assert checked(tmp_path, one, one) == 0
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err
    assert len(said.out.splitlines()) == 2  # it, and the verdict


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
    names = [one.configurations[0].name for one in results.read(path)]
    assert names == ["a", "b"]
    assert path.read_text().startswith(before.rstrip("\n]}"))
    assert results.last(path).configurations[0].samples[0][0] > 1.5


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"schema_version": 99, "runs": []}', '{"schema_version": 1}',
                '{"schema_version": 1, "runs": [3]}', '{"schema_version": 1, "runs": {}}',
                '{"schema_version": 1, "runs": [{"configurations": [{}]}]}',
                "[" * 10**5 + "]" * 10**5],
    ids=str.__len__,
)  # fmt: skip
def test_a_file_of_something_else_is_refused_and_left_alone(content: str, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(content)
    with pytest.raises(results.ResultsError, match=r"r\.json"):
        results.read(path)
    with pytest.raises(results.ResultsError, match=r"r\.json"), results.appending(path):
        pass
    assert path.read_text() == content


def test_every_reader_names_the_place_of_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = run(entry("a", 10, 0))
    wrong["configurations"][0]["processes"][1]["latencies_ms"][3] = float("nan")
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"schema_version": 1, "runs": [run(), wrong]}))
    words = f"{path}: run 2: configurations[0].processes[1].latencies_ms"
    for command in (["compare", str(path)], ["check", str(path), "--baseline", str(path)]):
        assert judge.main(command) == 3
        assert words in capsys.readouterr().err
    with pytest.raises(results.ResultsError, match=r"processes\[1\]\.latencies_ms"):
        from_results([path], [], {}, Terms())


@pytest.mark.parametrize("wrong", [None, {"x": []}, [[]], "x" * 100, 1e39, 1e-300, -5, True, []])
def test_what_is_edited_by_hand_is_refused_or_can_be_read_by_all(
    wrong: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of every value in a run, changed or taken away; what is no VitEdgeError is our bug."""
    entries = [made_entry(count=60, processes=2) | {"name": name} for name in "ab"]
    whole = made_run(*entries) | {"roofline": ROOFLINE}
    base, path = kept(tmp_path / "base.json", whole), tmp_path / "r.json"
    terms = Terms(target=parse_target("top1_agreement=0.9,relative=0.1"))
    for way in places(whole):
        for remove in (False, True):
            edited = copy.deepcopy(whole)
            place: Any = edited
            for key in way[:-1]:
                place = place[key]
            if remove:
                del place[way[-1]]
            else:
                place[way[-1]] = wrong
            path.write_text(json.dumps({"schema_version": 1, "runs": [edited]}))
            assert judge.main(["compare", str(path)]) in {0, 2, 3}
            check = ["check", str(path), "--baseline", str(base), "--across-machines", "--json"]
            assert judge.main(check) in {0, 2, 3, 4}
            try:
                found = results.last(path)
                shares.shares_of(
                    found, typed(made_run() | {"facts": found.facts, "roofline": ROOFLINE})
                )
                from_results([path], [OF_IT], dict(edited["facts"]), terms)
            except VitEdgeError:
                continue
    capsys.readouterr()


def test_what_cannot_be_written_again_is_refused_before_anything_is_measured(
    tmp_path: Path,
) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"schema_version": 1, "runs": [run() | {"mine": float("inf")}]}))
    with (
        pytest.raises(results.ResultsError, match="cannot be appended to"),
        results.appending(path),
    ):
        pass


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_measured() -> None:
    with (
        pytest.raises(ResourceError, match="/proc: cannot be written"),
        (
            results.appending(Path("/proc/r.json"))  # not even by root
        ),
    ):
        pass


def test_a_run_of_a_model_without_a_head_can_be_read_again(tmp_path: Path) -> None:
    headless = made_entry() | {"parity": {"problems": []}}
    path = kept(tmp_path / "r.json", run(headless))
    assert markdown(machines(results.read(path)))
    kept(path, run(headless))


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
    rows = table.rows(typed(run(made, failed)))
    assert rows[1][3] != "-"
    assert rows[1][5] == "-"
    assert rows[1][-1] == "hold, 44 dB"
    assert rows[2][-1] == "it died"
    assert len({len(row) for row in rows}) == 1
