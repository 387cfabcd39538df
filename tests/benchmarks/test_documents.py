"""This repository's documents: what their tables show, and that the committed ones are current."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import documents
import pytest
from documents import TABLES, markers, with_tables

from tests.bench.report_runs import full_run, machines, made_entry, made_process, made_run
from tests.bench.test_report import HOSTILE, row_of
from tests.support.altered import altered
from vit_edge.bench.report.cells import NOISY
from vit_edge.bench.report.markdown import markdown
from vit_edge.bench.results.results import read_runs
from vit_edge.errors import InputError

BEGIN, END = markers("bench")
OTHERS = "\n".join(markers("bench others"))
TOOLS = "\n".join(markers("bench tools"))


@pytest.mark.parametrize("wrong", [None, {"<b>": []}, [[]], "x" * 100, 1e39, -5, True])
def test_a_value_of_another_kind_is_refused_or_can_be_shown(wrong: Any, tmp_path: Path) -> None:
    whole, file = made_run(made_entry(count=5, processes=2)), tmp_path / "r.json"
    for run in altered(whole, wrong):
        file.write_text(json.dumps({"schema_version": 1, "runs": [run]}))
        try:
            read = read_runs([file])
        except InputError:
            continue
        assert with_tables(f"{BEGIN}\n{END}", machines(read))


# README


def test_the_readme_gets_the_fastest_of_each_precision_whose_answers_hold() -> None:
    made = with_tables(f"before\n{BEGIN}\nstale\n{END}\nafter", machines([full_run()]))
    assert "stale" not in made
    assert made.startswith(f"before\n{BEGIN}\n")
    assert made.endswith(f"{END}\nafter")
    rows = [line for line in made.splitlines() if line.startswith("| base-patch16-224")]
    assert [row.split(" | ")[1:3] for row in rows] == [
        ["fp32", "openvino"], ["bf16", "openvino"], ["int8", "ort threads=4"], ["int4", "openvino"],
    ]  # fmt: skip
    assert "| tiny-patch16-224 | int4" not in made  # its answers do not hold


def test_the_readme_shows_models_at_the_image_size_they_are_named_after() -> None:
    run = made_run(made_entry(), made_entry("fp32", size=384), made_entry(variant="testing"))
    text = with_tables(f"{BEGIN}\n{END}", machines([run]))
    assert text.count("| base-patch16-224 | int8 |") == text.count("| testing | int8 |") == 1
    assert "fp32" not in text


@pytest.mark.parametrize(
    "against",
    [
        {"warnings": ["other processes used 34% of the CPUs"]},
        {"complete": False},
        {"warnings": [f"{made_entry()['name']}: its processes differ by 9%"]},
        {},
    ],
)
def test_the_readme_marks_what_a_run_warned_of_and_says_what_the_mark_means(
    against: dict[str, Any],
) -> None:
    text = with_tables(f"{BEGIN}\n{END}", machines([made_run(made_entry()) | against]))
    (row,) = [line for line in text.splitlines() if line.startswith("| base-patch16-224")]
    assert (NOISY in row) is bool(against)
    assert text.count(f"\n\n{NOISY}: the run warned of it") == bool(against)


def test_a_competitor_is_not_what_the_readme_recommends() -> None:
    peer = made_entry("int8", "openvino") | {"name": "peer", "backend": "peer:openvino"}
    peer["bundle"] |= {"name": "openvino nncf-int8", "model_bytes": 0}
    found = machines([made_run(made_entry("int8"), peer)])
    assert "peer:" not in with_tables(f"{BEGIN}\n{END}", found)
    assert row_of(markdown(found), "openvino nncf-int8", "int8", "peer:openvino", "1")[-2] == "-"


def test_making_the_rows_anew_changes_nothing() -> None:
    once = with_tables(f"{BEGIN}\n{END}\n", machines([full_run()]))
    assert with_tables(once, machines([full_run()])) == once


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("text", ["", "{0}", "{1}", "{1}\n{0}", "{0}{0}{1}", "{0}{1}{1}"])
def test_a_document_without_a_place_for_a_table_is_refused(text: str, name: str) -> None:
    with pytest.raises(InputError, match="write .*two .*lines"):
        with_tables(text.format(*markers(name)), [])


# Against others


def made_peer(name: str, level_ms: float, **more: Any) -> dict[str, Any]:
    """A competitor with base's weights; ours take 90 ms in fp32, 30 in int8."""
    peer = made_entry("fp32") | {"name": f"{name} batch 1 single-stream", "backend": "peer:x"}
    peer["bundle"] |= {"name": name}
    return peer | {"processes": [made_process(level_ms, 1, seed) for seed in range(3)]} | more


def others_rows(*runs: Any) -> list[list[str]]:
    text = with_tables(OTHERS, machines(list(runs)))
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in text.splitlines()
        if line.startswith("| ") and not line.startswith("|  |")
    ]


def test_others_are_set_against_our_fastest_whose_answers_hold() -> None:
    wrong = made_entry("int4") | {"processes": made_peer("", 15.0)["processes"]}
    wrong["parity"] |= {"problems": ["centred SQNR is 3.1 dB"]}
    run = made_run(
        made_entry("fp32"), made_peer("torch", 60.0), wrong, made_entry("int8"),
        made_peer("fast", 10.0),
    )  # fmt: skip
    rows = others_rows(run)
    expected = [
        ("fast", 1 / 3), ("base-patch16-224-int4, ort", 0.5), ("base-patch16-224-int8, ort", 1),
        ("torch", 2), ("base-patch16-224-fp32, ort", 3),
    ]  # fmt: skip
    assert [row[0] for row in rows] == [name for name, _ in expected]
    assert [float(row[2]) for row in rows] == pytest.approx([x for _, x in expected], rel=0.05)
    assert rows[1][-1].startswith("WRONG: centred SQNR")
    assert rows[2][2:4] == ["1", ""]


def test_queries_of_another_kind_have_a_table_of_their_own() -> None:
    run = made_run(
        made_entry("int8"), made_peer("torch", 60.0), made_entry("fp32") | {"stage": "end-to-end"},
        made_peer("pipeline", 90.0, stage="end-to-end"), made_entry("fp32", batch=8),
    )  # fmt: skip
    text = with_tables(OTHERS, machines([run]))
    assert text.count("against ort with") == 2  # nobody else ran eights
    assert "batch 8" not in text


def test_the_newest_run_with_others_counts_and_without_any_there_is_no_table() -> None:
    alone = made_run(made_entry("int8"))
    assert with_tables(OTHERS, machines([alone])) == OTHERS
    early = made_run(made_entry("int8"), made_peer("early", 60.0), started="2026-01-01")
    late = made_run(made_entry("int8"), made_peer("late", 60.0), started="2026-01-02")
    text = with_tables(OTHERS, machines([early, late, alone]))
    assert "| late |" in text
    assert "early" not in text


def test_of_others_that_could_not_be_measured_the_reason_is_told() -> None:
    dead = made_peer("vit.cpp", 1.0, failed="no binary", processes=[])
    text = with_tables(OTHERS, machines([made_run(made_entry(), made_peer("a", 9.0), dead)]))
    assert "Not measured: vit.cpp batch 1 single-stream: no binary" in text


def test_a_run_that_warned_of_itself_is_marked_in_the_table_of_others_too() -> None:
    run = made_run(made_entry("int8"), made_peer("torch", 60.0))
    assert NOISY not in with_tables(OTHERS, machines([run]))
    text = with_tables(OTHERS, machines([run | {"complete": False}]))
    assert text.count(f") {NOISY} |") == 2
    assert text.count(f"\n\n{NOISY}: the run warned of it") == 1


def tool_rows(*runs: Any) -> list[list[str]]:
    text = with_tables(TOOLS, machines(list(runs)))
    rows = [line for line in text.splitlines() if line.startswith("| **")]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]


def test_each_tool_has_its_fastest_that_holds_and_beside_it_what_is_faster_and_wrong() -> None:
    wrong = made_peer("torch int8", 10.0)
    wrong["parity"] |= {"problems": ["centred SQNR is 3.1 dB"], "sqnr_centred_db": 3.1}
    run = made_run(
        made_entry("fp32"), made_entry("int8"), made_peer("torch eager", 60.0), wrong,
        made_peer("timm dynamic", 20.0), made_peer("timm fp32", 70.0),
    )  # fmt: skip
    rows = tool_rows(run)
    assert [row[0] for row in rows] == [
        "**timm** dynamic", "**vit_edge** int8, ort", "**torch** eager", "**vit_edge** fp32, ort",
    ]  # fmt: skip
    assert [bool(row[-1]) for row in rows] == [False, False, True, False]
    assert rows[2][-1].startswith("int8: ")
    assert rows[2][-1].endswith(", 3 dB")


def test_another_model_is_no_tool_to_compare_with_and_nor_is_one_that_is_always_wrong() -> None:
    other = made_peer("cnn resnet50", 5.0)
    other["bundle"] |= {"variant": "resnet50"}
    wrong = made_peer("torch int8", 10.0)
    wrong["parity"] |= {"problems": ["centred SQNR is 3.1 dB"]}
    rows = tool_rows(made_run(made_entry("int8"), other, wrong, made_peer("timm fp32", 70.0)))
    assert [row[0].split(" ")[0] for row in rows] == ["**vit_edge**", "**timm**"]
    assert with_tables(TOOLS, machines([made_run(made_entry("int8"))])) == TOOLS


def test_what_others_are_called_cannot_break_the_page() -> None:
    hostile = made_peer(HOSTILE, 9.0)
    dead = made_peer("dead", 9.0, failed=HOSTILE, processes=[])
    text = with_tables(f"{OTHERS}\n{TOOLS}", machines([made_run(made_entry(), hostile, dead)]))
    assert "<script>" not in text
    assert "\x1b" not in text
    assert "\n# h" not in text


# What is committed


def test_the_committed_documents_are_current(repository: Path) -> None:
    for name, text in documents.documents(repository).items():
        committed = (repository / name).read_text(encoding="utf-8")
        assert committed == text, f"{name} is not current; type: {documents.COMMAND}"


def test_documents_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    report = tmp_path / documents.REPORT
    folder = tmp_path / documents.RESULTS
    folder.mkdir(parents=True)
    (folder / "r.json").write_text(json.dumps({"schema_version": 1, "runs": [full_run()]}))
    for name in documents.WITH_TABLES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no markers")
    with pytest.raises(InputError, match="no place for a table"):
        documents.run(tmp_path)
    assert not report.exists()
    for name in documents.WITH_TABLES:
        (tmp_path / name).write_text(f"{BEGIN}\n{END}\n")
    assert documents.run(tmp_path) == 0
    assert report.read_text() == markdown(machines([full_run()]))
    assert "| base-patch16-224 | int8 |" in (tmp_path / "README.md").read_text()
