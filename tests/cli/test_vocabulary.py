"""One word for one idea on every command line, and what each of them has."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vit_edge import __version__, cli
from vit_edge.cli.verbs import GROUPS, LINES, parser_of

# idea -> its option, and every spelling that it must not have on any command line
IDEAS = {
    "what the answers must reach": ("--target", {"--parity-target", "--accuracy-target"}),
    "how many images at a time": ("--batch", {"--batches", "--batch-size", "--bs"}),
    "where to write": (
        "--out", {"--output", "--output-dir", "--save", "--engines-dir", "--dest", "--to"},
    ),
    "where images are": (
        "--images", {"--data", "--golden-images", "--photos", "--dataset", "--folder"},
    ),
    "a golden file": ("--golden", {"--golden-file", "--golden-set", "--reference"}),
    "a result for programs": ("--json", {"--as-json", "--format", "--machine-readable"}),
    "what runs it": ("--backend", {"--backends", "--runtime", "--provider", "--device"}),
    "images to choose ranges on": ("--calibration", {"--calib", "--calibration-data"}),
    "replace what is there": ("--force", {"--overwrite", "--yes", "--replace"}),
    "a limit of memory": ("--memory-limit", {"--max-memory", "--ram"}),
}  # fmt: skip
SHORT = {"-h": "--help", "-o": "--out", "-m": "--model", "-b": "--backend"}
# what writes a file or a directory that the user names
WRITERS = (
    "export", "build", "predict", "parity", "parity record", "parity merge", "bench",
    "bench report", "recommend", "probes",
)  # fmt: skip
OLD = {
    "export": {"--parity-target": "--target", "--golden-images": "--images"},
    "build": {"--parity-target": "--target", "--batches": "--batch", "--engines-dir": "--out"},
    "recommend": {"--parity-target": "--target"},
    "parity": {"--save": "--out"},
    "evaluate": {"--data": "--images"},
}


@pytest.mark.parametrize("verb", LINES)
def test_one_idea_has_one_name(verb: str) -> None:
    options = parser_of(verb).options()
    for name, others in IDEAS.values():
        wrong = {flag for flag in options if flag in others}
        assert not wrong, f"{verb} has {wrong} where others have {name}"
    for short, long in SHORT.items():
        if short in options:
            assert long in options[short].option_strings
        assert long not in options or short in options[long].option_strings, f"{long} of {verb}"


@pytest.mark.parametrize("verb", WRITERS)
def test_what_writes_has_out(verb: str) -> None:
    assert {"-o", "--out"} <= parser_of(verb).options().keys()


@pytest.mark.parametrize("verb", OLD)
def test_an_old_spelling_works_is_told_and_is_not_taught(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = parser_of(verb)
    assert parser.old == OLD[verb]
    needed = [] if verb in ("export",) else ["BUNDLE"]
    for old, new in OLD[verb].items():
        assert old not in parser.options()
        assert not re.search(rf"{old}(?![-\w])", parser.format_help())
        for words in ([old, "7"], [f"{old}=7"]):
            renewed = [new, *words[1:]] if len(words) == 2 else [f"{new}=7"]
            capsys.readouterr()
            given = parser.parse_args([*needed, *words])
            assert capsys.readouterr().err == f"{old} is called {new} now\n"
            assert given == parser.parse_args([*needed, *renewed])
            assert not capsys.readouterr().err


@pytest.mark.parametrize("verb", LINES)
def test_a_command_line_is_called_as_it_is_typed(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = parser_of(verb)
    help = parser.format_help()
    assert parser.verb == verb
    assert help.startswith(f"usage: vit-edge {verb} ")
    assert "python -m" not in help
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith(f"vit-edge {__version__}\nPython ")


@pytest.mark.parametrize("verb", LINES)
def test_no_option_is_abbreviated(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = parser_of(verb)
    for flag in parser.options():
        if len(flag) < 7:
            continue
        with pytest.raises(SystemExit) as stopped:
            parser.parse_args([flag[:-2]])
        assert stopped.value.code == 2
        assert flag[:-2] in capsys.readouterr().err


def test_the_overview_lists_every_verb_by_what_one_does_with_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for words in ([], ["-h"], ["--help"]):
        assert cli.main(words) == 0
        lines = capsys.readouterr().out.splitlines()
        for group, verbs in GROUPS.items():
            start = lines.index(group)
            for offset, (verb, text) in enumerate(verbs.items(), 1):
                name, what = lines[start + offset].strip().split("  ", 1)
                assert (name, what.strip()) == (verb, text)
    assert {verb for verb in LINES if " " not in verb} == set(cli.VERBS)


def test_versions_are_told_and_parsers_are_made_without_loading_a_runtime() -> None:
    code = """
import sys
from vit_edge import cli
from vit_edge.cli.verbs import LINES, parser_of
assert cli.main(["--version"]) == 0
for verb in LINES:
    parser_of(verb).format_help()
heavy = {
    "torch", "onnx", "onnx_ir", "onnxruntime", "openvino", "tensorrt", "huggingface_hub",
    "transformers", "safetensors", "matplotlib", "jinja2", "shtab",
} & sys.modules.keys()
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first == f"vit-edge {__version__}"
    assert second.startswith("Python 3.")


def test_precisions_and_backends_are_read_in_any_case() -> None:
    for verb in LINES:
        for flag, action in parser_of(verb).options().items():
            if flag in ("--precision", "--backend"):
                assert action.type is str.lower, verb


def test_a_folder_that_is_called_like_a_verb_is_no_bundle(tmp_path: Path) -> None:
    def usage() -> str:
        paths = os.pathsep.join([str(Path(cli.__file__).parents[2]), *sys.path])
        done = subprocess.run(
            [sys.executable, "-m", "vit_edge", "export", "--help"], cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout

    (tmp_path / "export").mkdir()
    assert usage().startswith("usage: vit-edge export ")
    (tmp_path / "export/manifest.json").touch()
    assert usage().startswith("usage: vit-edge predict ")


@pytest.mark.parametrize(
    "words", [["vit_edge", "--help"], ["vit_edge.predict", "--help"], ["vit_edge", "predict", "-h"]]
)
def test_python_m_goes_on_working(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *words], capture_output=True, text=True, check=True,
        env={**os.environ, "COLUMNS": "80"},
    )  # fmt: skip
    assert done.stdout.startswith("usage: vit-edge predict ")
