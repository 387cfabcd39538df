"""Completion for the shell: every verb and option, at no cost to whoever does not use it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vit_edge import cli
from vit_edge.cli.completion import completion
from vit_edge.cli.verbs import LINES, VERBS, parser_of

requires = ("shtab",)

ASK = """
source ./script
words=({words})
COMP_WORDS=(vit-edge "${{words[@]}}") COMP_CWORD=${{#words[@]}} COMPREPLY=()
_shtab_vit_edge
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "script"
    path.write_text(completion("bash"))
    return path


def completed(script: Path, *words: str) -> set[str]:
    """What bash offers for the last of these words."""
    quoted = " ".join(f'"{word}"' for word in words)
    done = subprocess.run(
        ["bash", "-c", ASK.format(words=quoted)], cwd=script.parent, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    return set(done.stdout.split())


def test_bash_completes_verbs_and_what_stands_behind_them(script: Path) -> None:
    assert completed(script, "") >= set(VERBS)
    assert completed(script, "ex") == {"export"}
    for verb in LINES:
        first, _, second = verb.partition(" ")
        if second:
            assert second in completed(script, first, second[:3])


@pytest.mark.parametrize("verb", LINES)
def test_bash_completes_every_option(script: Path, verb: str) -> None:
    offered = completed(script, *verb.split(), "--")
    options = parser_of(verb).options()
    assert {flag for flag in options if flag.startswith("--")} <= offered
    assert not {flag for flag in parser_of(verb).old if flag in offered}


def test_bash_completes_backends_and_folders(script: Path) -> None:
    (script.parent / "bundles").mkdir(exist_ok=True)
    assert {"ort", "openvino", "trt"} <= completed(script, "predict", "--backend", "")
    assert completed(script, "inspect", "bun") == {"bundles"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_a_script_is_printed_for_each_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--completion", shell]) == 0
    text = capsys.readouterr().out
    assert "vit-edge" in text
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=text, text=True, check=True)


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--completion", "fish"], ["--completion"]):
        assert cli.main(words) == 2
        assert "bash, zsh, tcsh" in capsys.readouterr().err


def test_without_shtab_it_is_told_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert cli.main(["--completion", "bash"]) == 2
    assert "pip install 'vit-edge[completion]'" in capsys.readouterr().err


def test_who_does_not_use_it_does_not_wait_for_it() -> None:
    code = """
import sys
from vit_edge import cli
try:
    cli.main(["inspect", "--help"])
except SystemExit:
    pass
assert not {"shtab", "vit_edge.cli.completion"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
