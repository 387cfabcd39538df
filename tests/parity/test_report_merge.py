"""Results read from files that anybody may have written, and put side by side."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.parity.report_results import (
    dead_run,
    failed_run,
    made_result,
    made_run,
    open_run,
    typed,
)
from vit_edge.bundle import Bundle
from vit_edge.errors import InputError, UsageError
from vit_edge.parity.__main__ import main
from vit_edge.parity.judge import open_questions
from vit_edge.parity.report import read
from vit_edge.parity.report.read import read_result, result_from_json
from vit_edge.parity.report.sections import devices, merged, overall
from vit_edge.parity.report.text import text_of
from vit_edge.parity.result import INCONCLUSIVE, Finding
from vit_edge.report.write import write_report
from vit_edge.strict import json_from_record


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Write a value to a file of its own."""

    def save(value: Any, name: str = "a.json") -> Path:
        path = tmp_path / name
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return path

    return save


def without(key: str) -> dict[str, Any]:
    result = made_result()
    del result[key]
    return result


@pytest.mark.parametrize(
    "runs", [(made_run(),), (failed_run(),), (open_run(),), (dead_run(), made_run("openvino"))]
)
def test_what_was_written_is_read_back(saved: Callable[..., Path], runs: tuple[Any, ...]) -> None:
    result = made_result(*runs)
    read_back = json_from_record(read_result(saved(result)))
    for run in read_back["runs"]:
        findings = run.pop("findings")  # which these files lack, as those of 0.1.0 do
        assert bool(findings) == bool(run["comparisons"])
    assert read_back == json_from_record(typed(result)) | {"runs": read_back["runs"]}
    for entry, run in zip(read_back["runs"], runs, strict=True):
        assert entry == {**run, "limit": entry["limit"], "memory": entry["memory"]}
        assert entry["limit"].items() >= run["limit"].items()
        assert entry["memory"].items() >= run["memory"].items()


def test_what_was_written_with_its_findings_is_read_back(saved: Callable[..., Path]) -> None:
    result = typed(made_result(failed_run(), open_run("b"), dead_run("c")))
    assert read_result(saved(json_from_record(result))) == result


def test_findings_are_read_and_not_judged_again(saved: Callable[..., Path]) -> None:
    written = json_from_record(typed(made_result(failed_run())))
    written["runs"][0]["findings"][0]["words"] = "as the child said"
    assert read_result(saved(written)).runs[0].findings[0].words == "as the child said"


@pytest.mark.parametrize(
    "text",
    ["", "{", "[" * 100_000, '{"schema_version": NaN}', "\x00", '{"a": "\\ud800"}', "1" * 5000],
)
def test_what_is_no_json_is_refused_with_the_name_of_the_file(
    saved: Callable[..., Path], text: str
) -> None:
    with pytest.raises(InputError, match="a.json: damaged, or no JSON: .*write it again"):
        read_result(saved(text))


def test_a_truncated_result_is_refused(saved: Callable[..., Path]) -> None:
    whole = json.dumps(made_result())
    for length in range(0, len(whole), len(whole) // 50):
        with pytest.raises(InputError, match="damaged"):
            read_result(saved(whole[:length]))


@pytest.mark.parametrize("version", [1, 2, 4, "3", None, True, 3.5])
def test_another_schema_version_is_refused(saved: Callable[..., Path], version: Any) -> None:
    with pytest.raises(InputError, match="a.json: a parity result of schema version .* reads 3"):
        read_result(saved(made_result() | {"schema_version": version}))


def test_the_parity_json_of_a_bundle_is_called_what_it_is(
    saved: Callable[..., Path],
) -> None:
    with pytest.raises(InputError, match="the parity.json inside a bundle"):
        read_result(saved({"schema_version": 2}))


@pytest.mark.parametrize("value", [1, "text", None, []])
def test_json_that_is_no_object_is_refused(saved: Callable[..., Path], value: Any) -> None:
    with pytest.raises(InputError, match="expected an object"):
        read_result(saved(json.dumps(value)))


def test_every_problem_of_a_file_is_listed(saved: Callable[..., Path]) -> None:
    result = without("machine")
    result["golden"]["images"] = -1
    result["runs"][0]["verdict"] = "perfect"
    result["runs"][0]["scatter"]["reference"].pop()
    with pytest.raises(InputError) as caught:
        read_result(saved(result))
    for words in ("lacks 'machine'", "golden.images is -1", "'perfect'", "scatter has 159 and 160"):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    "key", [*sorted(set(made_run()) - {"proofs"}), "bundle", "golden", "machine", "runs"]
)
def test_a_missing_key_is_named(key: str) -> None:
    result = made_result()
    place = result["runs"][0] if key in result["runs"][0] else result
    del place[key]
    assert any(f"lacks {key!r}" in problem for problem in result_from_json(result)[1])


@pytest.mark.parametrize(
    ("target", "changes", "problem"),
    [
        ({}, {"top1_agreement_interval": None}, "top1_agreement, but no top1_agreement_interval"),
        ({}, {"accuracy": 0.5, "accuracy_interval": [0, 1]}, "accuracy, but no labelled"),
        ({}, {"top1_agreement": None}, "reference_margin_median, but no top1_agreement"),
        (
            {"accuracy_drop": 5e-324},
            {"accuracy_drop": 0.0, "accuracy_drop_interval": [-0.1, 0.1], "labelled": 5},
            "rates or bounds that no comparison has",
        ),
    ],
)
def test_a_rate_that_cannot_be_judged_is_refused(
    target: dict[str, float], changes: dict[str, Any], problem: str
) -> None:
    result = made_result(made_run() | {"target": target})
    result["runs"][0]["comparisons"][1] |= {"reference_margin_median": 1.0} | changes
    (found,) = result_from_json(result)[1]
    assert problem in found


def test_a_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(InputError, match="pipe.json: no file"):
        read_result(tmp_path / "pipe.json")


def test_a_file_that_is_too_large_is_not_read(
    saved: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "LARGEST_BYTES", 1000)
    with pytest.raises(InputError, match="larger than"):
        read_result(saved(made_result()))


def test_all_unreadable_files_are_named_at_once(saved: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read.read_results([saved("{", "a.json"), saved(made_result(), "b.json"), tmp_path / "c"])
    assert "a.json" in str(caught.value)
    assert "c: no such file" in str(caught.value)
    assert "b.json" not in str(caught.value)


def test_the_same_result_twice_is_refused(saved: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match="a.json and .*b.json hold the same result"):
        read.read_results([saved(made_result(), "a.json"), saved(made_result(), "b.json")])


def test_results_of_one_model_share_a_table() -> None:
    (section,) = merged(
        [typed(made_result()), typed(made_result(made_run("openvino"), cpu="Cortex-A78AE"))]
    )
    assert [column.label for column in section.columns] == ["A ort", "B openvino"]


@pytest.mark.parametrize("key", [("bundle", "model_sha256"), ("golden", "sha256")])
def test_what_cannot_be_compared_stands_apart_and_that_is_said(key: tuple[str, str]) -> None:
    other = made_result(cpu="Cortex-A78AE")
    other[key[0]][key[1]] = "5" * 64
    results = [typed(made_result()), typed(other)]
    assert len(merged(results)) == 2
    assert any("their numbers are kept apart" in line for line in text_of(results))


def test_nothing_is_said_of_separate_sections_where_there_is_one() -> None:
    lines = text_of([typed(made_result()), typed(made_result(cpu="Cortex-A78AE"))])
    assert not any("kept apart" in line for line in lines)


def test_the_worst_verdict_is_the_verdict() -> None:
    assert overall([typed(made_result(made_run(), open_run("b")))]) == "inconclusive"
    assert overall([typed(made_result(made_run())), typed(made_result(failed_run()))]) == "fail"
    assert overall([typed(made_result(dead_run(), failed_run("b")))]) == "died"
    assert overall([typed(made_result())]) == "pass"


def test_a_result_without_runs_is_no_pass() -> None:
    assert overall([typed(made_result() | {"runs": []})]) == "fail"


def test_every_device_has_a_name_of_its_own() -> None:
    assert list(devices(1)) == [""]
    assert len(set(devices(100))) == 100


def test_what_is_alike_at_several_batch_sizes_is_said_once() -> None:
    judged = [
        Finding(output, batch, "sqnr_db", "target", INCONCLUSIVE, "open")
        for output, batch in (("logits", 1), ("other", 4), ("logits", 4))
    ]
    assert open_questions(judged) == ["logits, batch 1, 4: open", "other, batch 4: open"]


def test_no_text_of_a_result_can_steer_the_terminal(
    saved: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = failed_run("\x1b[2Jort")
    run |= {"problems": ["\x1b]0;title\x07"], "open_questions": ["\x9b31m"]}
    path = saved(made_result(run, cpu="\r\x1b[1A"))
    assert main(["merge", str(path)]) == 4
    path = saved(made_result(run) | {"machine": {"\x1b[2J": 1}, "created": ["\x1b[2J"]})
    assert main(["merge", str(path)]) == 3
    captured = capsys.readouterr()
    shown = captured.out + captured.err
    assert all(character.isprintable() for character in shown.replace("\n", ""))


def test_the_table_shows_what_failed_and_what_is_open() -> None:
    text = "\n".join(text_of([typed(made_result(failed_run(), open_run("b"), dead_run("c")))]))
    assert "dB FAILED" in text
    assert "100.00% open" in text
    assert "c FAILED: it needed more than its limit of 100 MiB" in text
    assert "b OPEN: logits, batch 1, 4: top-1 agreement" in text


@pytest.mark.parametrize(
    ("run", "arguments", "code"),
    [
        (made_run(), [], 0),
        (open_run(), [], 0),
        (open_run(), ["--strict"], 4),
        (failed_run(), [], 4),
        (dead_run(), [], 4),
    ],
)
def test_the_exit_code_is_that_of_the_worst_run(
    saved: Callable[..., Path], run: dict[str, Any], arguments: list[str], code: int
) -> None:
    other = saved(made_result(cpu="Cortex-A78AE"), "b.json")
    assert main(["merge", str(saved(made_result(run))), str(other), *arguments]) == code


def test_a_damaged_file_is_the_users_mistake(
    saved: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["merge", str(saved("{"))]) == 3
    assert "InputError: " in capsys.readouterr().err


def test_the_json_holds_the_sections_with_their_devices(
    saved: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [saved(made_result(cpu=cpu), f"{cpu}.json") for cpu in ("EPYC", "Cortex")]
    assert main(["merge", "--json", *map(str, paths)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "pass"
    (section,) = found["sections"]
    assert [run["machine"]["cpu"] for run in section["runs"]] == ["EPYC", "Cortex"]


@pytest.mark.parametrize("option", ["--junit", "--out"])
def test_junit_is_written_beside_the_table(
    saved: Callable[..., Path], tmp_path: Path, option: str
) -> None:
    path = tmp_path / "junit.xml"
    assert main(["merge", str(saved(made_result())), option, str(path)]) == 0
    assert path.read_text().startswith("<?xml")


def test_a_report_that_cannot_be_written_is_the_users_mistake(
    saved: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "missing" / "junit.xml"
    assert main(["merge", str(saved(made_result())), "--junit", str(path)]) == 3
    assert "junit.xml: cannot be written: No such file" in capsys.readouterr().err


def test_a_report_that_fails_half_way_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_report(path, "new \ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_bundle_that_was_not_compared_lends_no_pictures(
    saved: Callable[..., Path], bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--html", str(tmp_path / "page.html"), "--bundle", str(bundle.path)]
    assert main(["merge", str(saved(made_result())), *arguments]) == 3
    assert "none of the results is of this bundle's model" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()
