"""Reports of runs: what they say, what they refuse, and that the committed ones are current."""

from __future__ import annotations

import copy
import json
import math
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.bench.report_runs import ROOFLINE, full_run, machines, made_entry, made_run
from tests.support.altered import altered
from vit_edge.bench import __main__ as bench
from vit_edge.bench.report.cells import NOISY, interval, mb, ms, table
from vit_edge.bench.report.markdown import escaped, markdown
from vit_edge.bench.results import results
from vit_edge.bench.results.results import read_runs
from vit_edge.errors import InputError

HOSTILE = "a|b</td><script>alert(1)</script>`*[x](y)\n# h\x1b[2J"


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Write runs to a file of their own."""

    def save(*runs: Any, name: str = "r.json") -> Path:
        path = tmp_path / name
        path.write_text(json.dumps({"schema_version": 1, "runs": list(runs)}))
        return path

    return save


def reported(*runs: Any) -> str:
    return markdown(machines(list(runs)))


def table_of(*runs: Any) -> str:
    """A report without the explanation of its signs."""
    return reported(*runs).partition("\n## ")[2]


def row_of(text: str, *words: str) -> list[str]:
    """The cells of the one row that begins with these."""
    start = f"| {' | '.join(words)} |"
    (row,) = [line for line in text.splitlines() if line.startswith(start)]
    return [cell.strip() for cell in row.strip("|").split(" | ")]


# Markdown


def test_the_numbers_of_a_row_are_those_of_the_summary() -> None:
    run = made_run(made_entry("int8", count=400))
    (group,) = machines([run])[0].groups
    found = group.lines[0].numbers
    text = reported(run)
    row = row_of(text, "base-patch16-224-int8", "int8", "ort", "1")
    value, low, high = found.latency_ms["p50"]
    assert row[4] == f"{value:.2f} ({low:.2f} to {high:.2f})"
    assert row[5] == f"{found.latency_ms['p90'].value:.2f}"
    assert row[6] == f"{found.latency_ms['p99'].value:.2f}"  # of 1,200 samples
    assert row[-1] == "hold, 25 dB (top-1 100 %)"


def test_a_percentile_without_enough_samples_is_left_out() -> None:
    text = reported(made_run(made_entry(count=50), made_entry(batch=2, count=400)))
    assert row_of(text, "base-patch16-224-int8", "int8", "ort", "1")[6] == "-"
    assert row_of(text, "base-patch16-224-int8", "int8", "ort", "2")[6] != "-"


def test_the_same_runs_make_the_same_text_whatever_the_order_of_the_files(
    saved: Callable[..., Path],
) -> None:
    runs = [full_run(), full_run(cpu="Cortex-A78AE"), made_run(made_entry(), started="2027")]
    paths = [saved(run, name=f"{place}.json") for place, run in enumerate(runs)]
    texts = {
        markdown(machines(read_runs(random.Random(seed).sample(paths, k=3)))) for seed in range(5)
    }
    assert len(texts) == 1


def test_a_run_that_is_in_two_files_counts_once(saved: Callable[..., Path]) -> None:
    paths = [saved(full_run(), name=name) for name in ("a.json", "b.json")]
    assert len(read_runs(paths)) == 1


def test_an_incomplete_run_says_so_before_its_numbers() -> None:
    run = made_run(made_entry()) | {"complete": False, "interrupted": "after 2 processes"}
    before, _, _ = reported(run).partition("| bundle |")
    assert "**INCOMPLETE:** interrupted after 2 processes" in before


def test_warnings_of_a_run_stand_before_the_numbers_and_noisy_rows_are_marked() -> None:
    run = full_run()
    before, _, _ = reported(run).partition("| bundle |")
    assert "**Warning:** other processes used 34% of the CPUs" in before
    text = reported(run)
    noisy = [line for line in text.splitlines() if line.startswith("| ") and NOISY in line]
    assert len(noisy) == 1
    assert noisy[0].startswith("| base-patch16-224-fp32 | fp32 | ort | 1 |")


@pytest.mark.parametrize("count", [1, 8])
def test_one_sentence_counts_the_noisy_rows_and_their_warnings_are_folded_at_the_end(
    count: int,
) -> None:
    entries = [made_entry(batch=batch) for batch in range(1, 11)]
    run = made_run(*entries)
    run["warnings"] = [f"{entry['name']}: its processes differ by 9%" for entry in entries[:count]]
    before, _, after = reported(run).rpartition("\n| ")[0].partition("| bundle |")
    assert f"{NOISY} marks {count} of 10 rows" in before
    assert "differ by" not in before
    rows, _, folded = after.partition(f"<details><summary>{NOISY} {count} warning")
    assert rows.count(NOISY) == count
    assert "differ by" not in rows
    assert folded.count("differ by 9%") == count


def test_without_noisy_rows_nothing_is_said_of_the_mark() -> None:
    assert NOISY not in reported(made_run(made_entry()))


def test_answers_that_do_not_hold_are_called_wrong() -> None:
    row = row_of(reported(full_run()), "tiny-patch16-224-int4", "int4", "ort", "1")
    assert row[-1].startswith("WRONG: logits: top-1 agreement is 0.2")


@pytest.mark.parametrize(
    ("parity", "words"),
    [
        (None, "not looked at"),
        ({"problems": [], "sqnr_centred_db": None, "relative": 0.0}, "exact"),
        ({"problems": [], "sqnr_centred_db": None, "relative": None}, "hold"),  # no logits
    ],
)
def test_exact_is_said_of_answers_without_any_difference_only(parity: Any, words: str) -> None:
    assert (
        row_of(reported(made_run(made_entry() | {"parity": parity})), "base-patch16-224-int8")[-1]
        == words
    )


def test_what_failed_is_listed_with_its_reason() -> None:
    text = reported(full_run())
    name = "base-patch16-224-fp32 ort batch 32 single-stream"
    assert row_of(text, name) == [name, "killed by signal 9"]


def test_every_machine_has_a_section_and_its_facts_are_folded() -> None:
    text = reported(full_run(), full_run(cpu="Cortex-A78AE"))
    assert "## A: AMD EPYC, 2 CPUs, 25.3 GB" in text
    assert "## B: Cortex-A78AE, 2 CPUs, 25.3 GB" in text
    assert text.count("<details><summary>Run of") == 2
    assert text.count("<details>") == text.count("</details>")


def test_machines_of_one_kind_are_told_apart_by_what_differs() -> None:
    runs = [made_run(made_entry(), governor=name) for name in ("powersave", "performance")]
    found = sorted(machine.title.partition("25.3 GB")[2] for machine in machines(runs))
    assert found == [", governor performance", ", governor powersave"]


def test_of_a_configuration_the_newest_run_counts() -> None:
    old, new = made_run(made_entry(), started="2026-01"), made_run(made_entry(), started="2026-02")
    new["configurations"][0]["bundle"]["model_bytes"] = 777 * 10**6
    (machine,) = machines([old, new])
    assert [line.entry.model.model_bytes for line in machine.lines] == [777 * 10**6]


def test_a_complete_run_counts_before_a_newer_one_that_was_interrupted() -> None:
    complete, newer = made_run(made_entry(), started="2026-01"), made_run(made_entry())
    newer |= {"complete": False, "started": "2027"}
    (machine,) = machines([complete, newer])
    assert [line.run.started for line in machine.lines] == ["2026-01"]
    older = newer | {"started": "2025"}
    (machine,) = machines([older, newer])
    assert [line.run.started for line in machine.lines] == ["2027"]


def test_a_run_that_was_interrupted_does_not_hide_what_an_older_one_measured() -> None:
    unfinished = made_entry() | {"processes": []}
    (machine,) = machines([made_run(made_entry()), made_run(unfinished, started="2027")])
    assert len(machine.lines) == 1


def test_two_runs_that_agree_within_their_intervals_are_not_warned_of_and_others_are() -> None:
    first, same, other = made_entry("fp32"), made_entry("fp32"), made_entry("fp32")
    for process in other["processes"]:
        process["latencies_ms"] = [1.1 * one for one in process["latencies_ms"]]
    later = "2026-01-02T09:00:00+00:00"
    assert NOISY not in table_of(made_run(first), made_run(same, started=later))
    text = table_of(made_run(first), made_run(other, started=later))
    assert "+10.0 % against the run of 2026-01-02T03:04:05+00:00" in text
    assert f"{NOISY} (" in text
    another_model = copy.deepcopy(other)
    another_model["bundle"]["model_sha256"] = "6" * 64
    assert NOISY not in table_of(made_run(first), made_run(another_model, started=later))


def test_versions_that_differ_between_runs_of_a_machine_are_told() -> None:
    other = made_run(made_entry(batch=2), started="2027")
    other["configurations"][0]["facts"]["runtime"] = "ort 2"
    text = reported(made_run(made_entry()), other)
    assert "**Warning:** the runs differ in runtime of ort: ort 1, ort 2" in text
    assert "the runs differ" not in reported(made_run(made_entry()))


@pytest.mark.parametrize("stage", ["model", "end-to-end"])
def test_kinds_of_queries_do_not_share_a_table(stage: str) -> None:
    server = made_entry() | {"scenario": "server", "queries_per_second": 10.0, "stage": stage}
    text = reported(made_run(made_entry(), server | {"name": "server"}))
    assert "### base-patch16-224, 224 px, single-stream" in text
    assert "### base-patch16-224, 224 px, server, 10 queries/s" in text
    assert ("end-to-end" in text) is (stage == "end-to-end")


def test_what_sensors_and_builds_tell_has_columns_only_where_there_is_any() -> None:
    plain, told = made_entry(), made_entry(batch=2)
    told["built"] = {
        "build_s": 12.5, "engine_bytes": 5 * 10**6, "download_bytes": None,
        "build_memory_bytes": {"anonymous": 1, "peak": 300 * 10**6},
    }  # fmt: skip
    told["processes"][0]["sensors"] = {
        "energy_j_per_image": 0.25, "temperature_c": {"CPU": [40, 61.5]}, "throttled": ["hot"],
        "gpu_memory_bytes": None,
    }  # fmt: skip
    (machine,) = machines([made_run(plain, told)])
    heading, rows = table(machine.lines)
    found = dict(zip(heading, rows[1], strict=True))
    assert [found[name].text for name in ("J/image", "highest °C", "throttled", "build s")] == [
        "0.250", "61.50", "hot", "12.50",
    ]  # fmt: skip
    assert [found[name].text for name in ("build MB", "engine MB")] == ["300", "5.0"]
    assert NOISY in found["p50 ms"].text
    assert not {"download MB", "GPU MB"} & set(heading)
    assert heading[-1] == "answers"


def test_the_limits_of_a_machine_are_read_beside_its_runs_and_not_shown() -> None:
    run, limits = made_run(made_entry("fp32")), made_run() | {"roofline": ROOFLINE}
    text = reported(run | {"roofline": ROOFLINE}, limits | {"started": "2030"})
    assert row_of(text, "base-patch16-224-fp32", "fp32", "ort", "1")
    assert "GMAC/s" not in text


def test_no_text_of_a_result_becomes_markup_or_breaks_a_table() -> None:
    run = full_run(cpu=HOSTILE)
    run |= {"title": HOSTILE, "started": HOSTILE, "command": [HOSTILE], "warnings": [HOSTILE]}
    for entry in run["configurations"]:
        entry["bundle"] |= {"name": HOSTILE, "variant": HOSTILE, "precision": HOSTILE}
        entry |= {"facts": {HOSTILE: HOSTILE}, "options": {HOSTILE: HOSTILE}}
        entry["name"] = HOSTILE + entry["name"]
    text = reported(run)
    assert "<script" not in text
    assert "\x1b" not in text
    rows = [line.replace("\\|", "") for line in text.splitlines() if line.startswith("| ")]
    heading = next(row for row in rows if row.startswith("| bundle"))
    widths = {row.count("|") for row in rows if "int8" in row or "dB" in row}
    assert heading.count("|") in widths
    assert not [line for line in text.splitlines() if line.startswith("# h")]


@pytest.mark.parametrize("text", ["|", "a\nb", "<b>", "`", "*a*", "[a](b)", "\\|"])
def test_escaped_text_holds_no_markup(text: str) -> None:
    found = escaped(text)
    assert "\n" not in found
    assert "<" not in found
    assert all(found[at - 1] == "\\" for at, c in enumerate(found) if c in "|*`[]")


def test_nothing_measured_makes_a_report_that_says_so() -> None:
    assert "Nothing was measured" in reported()
    assert "| bundle |" not in reported(made_run())


@pytest.mark.parametrize(
    ("value", "text"), [(0.0123, "0.012"), (1.234, "1.23"), (123.4, "123"), (0, "0")]
)
def test_a_time_has_the_digits_that_matter(value: float, text: str) -> None:
    assert ms(value) == text


def test_an_interval_of_times_does_not_reach_below_nothing() -> None:
    assert interval(-3, 5) == "0 to 5.00"
    assert mb(7_310_000) == "7.3"


# Files


def wrong_runs() -> dict[str, Any]:
    """What is wrong -> a run with it."""

    def entry(**changes: Any) -> Any:
        return made_run(made_entry() | changes)

    process = made_entry()["processes"][0]
    bundle = made_entry()["bundle"]
    return {
        "it lacks 'title'": {k: v for k, v in made_run().items() if k != "title"},
        "warnings[0] is 3, expected a text": made_run() | {"warnings": [3]},
        "configurations[0] is 3, expected an object": made_run() | {"configurations": [3]},
        "batch is True": entry(batch=True),
        "configurations[0] has no bundle, and did not fail": entry(bundle=None),
        "configurations[0].bundle image_hw is [0, 1]": entry(bundle=bundle | {"image_hw": [0, 1]}),
        "model_bytes is None": entry(bundle=bundle | {"model_bytes": None}),
        "sqnr_centred_db is nan": entry(
            parity={"problems": [], "top1_agreement": 1, "sqnr_centred_db": math.nan, "relative": 1}
        ),
        "processes[0].latencies_ms is [1.0, nan]": entry(
            processes=[process | {"latencies_ms": [1.0, math.nan]}]
        ),
        "latencies_ms is ['x'], expected a list of positive numbers": entry(
            processes=[process | {"latencies_ms": ["x"]}]
        ),
        "seconds is 0": entry(processes=[process | {"seconds": 0}]),
        "cold_s lacks 'load'": entry(processes=[process | {"cold_s": {"import": 1}}]),
        "memory_bytes.peak is inf": entry(
            processes=[process | {"memory_bytes": process["memory_bytes"] | {"peak": math.inf}}]
        ),
        "temperature_c['CPU'] is [1], expected two numbers": entry(
            processes=[process | {"sensors": {"temperature_c": {"CPU": [1]}}}]
        ),
        "built is 3": entry(built=3),
        "multiply_adds is 'x'": entry(bundle=bundle | {"multiply_adds": "x"}),
        "roofline is 3, expected an object": made_run() | {"roofline": 3},
        "roofline lacks 'limits'": made_run() | {"roofline": {"peaks": []}},
        "roofline limits: fp32 is 0": made_run()
        | {"roofline": {"peaks": [], "limits": {"fp32": 0}}},
        "peaks[0] is 3, expected an object": made_run()
        | {"roofline": {"peaks": [3], "limits": {}}},
        "peaks[0] lacks 'kind'": made_run() | {"roofline": {"peaks": [{}], "limits": {}}},
    }


@pytest.mark.parametrize("words", wrong_runs())
def test_a_value_of_another_kind_is_refused_with_its_place(
    words: str, saved: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(made_run(made_entry()), wrong_runs()[words])
    assert bench.main(["report", str(path)]) == 3
    said = capsys.readouterr()
    assert f"{path}: run 2: " in said.err
    assert words in said.err
    assert said.out == ""


def test_every_problem_of_every_file_is_told(saved: Callable[..., Path]) -> None:
    paths = [saved(run, name=f"{i}.json") for i, run in enumerate(wrong_runs().values())]
    with pytest.raises(results.ResultsError, match=r"and \d+ more") as caught:
        read_runs(paths)
    assert str(caught.value).count("run 1: ") == 10


@pytest.mark.parametrize("wrong", [None, {"<b>": []}, [[]], "x" * 100, 1e39, -5, True])
def test_a_value_of_another_kind_is_refused_or_can_be_shown(
    wrong: Any, saved: Callable[..., Path]
) -> None:
    whole = made_run(made_entry(count=5, processes=2)) | {"roofline": ROOFLINE}
    for run in altered(whole, wrong):
        try:
            found = read_runs([saved(run)])
        except InputError:
            continue
        assert markdown(machines(found))


def test_the_report_is_written_whole_or_not_at_all(
    saved: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, page = tmp_path / "REPORT.md", tmp_path / "page.html"
    arguments = ["report", str(saved(full_run())), "--markdown", str(target)]
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "jinja2", None)
        assert bench.main([*arguments, "--html", str(page)]) == 2
    assert not target.exists()
    assert not page.exists()
    assert bench.main(arguments) == 0
    assert target.read_text() == reported(full_run())


def test_markdown_needs_no_package_beside_those_of_the_core(
    saved: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("matplotlib", "jinja2"):
        monkeypatch.setitem(sys.modules, package, None)
    assert bench.main(["report", str(saved(full_run()))]) == 0
    assert capsys.readouterr().out == reported(full_run())
    html = ["--html", str(saved(full_run()).with_suffix(".html"))]
    assert bench.main(["report", str(saved(full_run())), *html]) == 2
    assert "pip install 'vit-edge[report]'" in capsys.readouterr().err


def test_out_is_written_by_its_suffix(
    saved: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = str(saved(full_run()))
    page = tmp_path / "page.md"
    assert bench.main(["report", results, "-o", str(page)]) == 0
    assert page.read_text() == reported(full_run())
    assert capsys.readouterr().out == ""
    for wrong in (["-o", "page.pdf"], ["-o", "page.md", "--markdown", "b.md"]):
        assert bench.main(["report", results, *wrong]) == 2
        assert f"--out {wrong[1]}" in capsys.readouterr().err


def test_what_was_said_against_numbers_that_a_newer_run_replaced_is_not_repeated() -> None:
    name = made_entry()["name"]
    early = made_run(made_entry(), made_entry("fp32"), started="2026-01-01")
    early["warnings"] = [f"{name}: was noisy", f"{made_entry('fp32')['name']}: is noisy"]
    late = made_run(made_entry(), started="2026-01-02")
    text = reported(early, late)
    assert "was noisy" not in text
    assert "is noisy" in text


def test_the_size_that_a_model_is_named_after_comes_first() -> None:
    sides = (192, 224, 1024, 384)
    run = made_run(*(made_entry(size=side) | {"name": f"at {side}"} for side in sides))
    titles = [line for line in reported(run).splitlines() if line.startswith("### base")]
    assert [title.split(", ")[1] for title in titles] == ["224 px", "192 px", "384 px", "1024 px"]
