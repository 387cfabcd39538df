"""The command lines: help with an example, results on stdout, errors without tracebacks."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from vit_edge import __main__ as predict
from vit_edge import cli, inspect
from vit_edge.bundle import Bundle
from vit_edge.errors import (
    BundleError,
    ParityError,
    PredictionError,
    UsageError,
    VitEdgeError,
)

requires = ("onnxruntime",)


@pytest.mark.parametrize("verb", sorted(cli.VERBS))
def test_help_has_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(cli.VERBS[verb]).main(["--help"])
    assert stopped.value.code == 0
    assert "example" in capsys.readouterr().out


def test_the_help_of_predict_names_every_other_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        predict.main(["--help"])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "other verbs:" in line)
    assert {*line.partition(":")[2].replace(" ", "").split(","), "predict"} == {*cli.VERBS}


def test_the_console_script_dispatches(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    assert "export" in capsys.readouterr().out
    assert cli.main(["bake"]) == 2
    assert "no verb 'bake'" in capsys.readouterr().err
    assert cli.main(["verify", "nowhere"]) == 3


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("x"), 2),
        (BundleError("x"), 3),
        (PredictionError("x"), 3),
        (ParityError("x"), 4),
        (KeyboardInterrupt(), 130),
    ],
)
def test_our_errors_become_exit_codes(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> int:
        raise error

    assert cli.guarded(fail) == code
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    assert not printed.out


def test_a_bug_of_ours_keeps_its_traceback() -> None:
    def fail() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cli.guarded(fail)


def test_every_error_has_an_exit_code() -> None:
    def tree(kind: type[VitEdgeError]) -> list[type[VitEdgeError]]:
        return [kind, *(leaf for child in kind.__subclasses__() for leaf in tree(child))]

    assert {kind.exit_code for kind in tree(VitEdgeError)} == {1, 2, 3, 4}


def test_predicting_prints_labels_and_reports_bad_files_apart(
    testing_bundle: Bundle,
    photos: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad = tmp_path / "page.jpg"
    bad.write_text("<html>404</html>")
    arguments = [str(testing_bundle.path), str(photos[0]), str(bad), str(photos[1])]
    assert predict.main([*arguments, "--top-k", "2"]) == 3
    printed = capsys.readouterr()
    assert printed.out.count("%") == 4
    assert "page.jpg" in printed.err
    assert predict.main([*arguments, "--json"]) == 3
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [("error" in row) for row in rows] == [False, True, False]
    assert [row["image"] for row in rows] == arguments[1:]
    assert predict.main(arguments[:2]) == 0


def test_predicting_with_fast_decoding_answers_a_large_jpeg_a_little_differently(
    testing_bundle: Bundle, photos: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    answers = []
    for decoding in ("exact", "fast"):
        arguments = [str(testing_bundle.path), str(photos[0]), "--json", "--decoding", decoding]
        assert predict.main(arguments) == 0
        answers.append(json.loads(capsys.readouterr().out)["top"][0])
    assert answers[0]["label"] == answers[1]["label"]
    assert answers[0]["score"] != answers[1]["score"]


def test_inspect_says_what_is_in_a_bundle(
    testing_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inspect.main([str(testing_bundle.path)]) == 0
    text = capsys.readouterr().out
    for part in ("seeded:0", "opset 23", "1 to 4", "logits [10]", "2 Gelu", "none; "):
        assert part in text
    assert inspect.main([str(testing_bundle.path), "--json"]) == 0
    description = json.loads(capsys.readouterr().out)
    assert description["nodes"][""]["Attention"] == 1
    assert description["parameters"] > 100_000


def test_a_reader_that_goes_away_is_no_error(testing_bundle: Bundle, photos: list[Path]) -> None:
    code = f"""
import sys
from vit_edge.__main__ import main
sys.exit(main([{str(testing_bundle.path)!r}, *[{str(photos[0])!r}] * 40]))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 0
    assert b"Traceback" not in errors
