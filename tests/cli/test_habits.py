"""Habits of other tools and slips of the pen: what is printed is the whole command to type."""

from __future__ import annotations

import contextlib
import functools
import io
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_edge import cli
from vit_edge.cli.advice import refusal_of_verb
from vit_edge.cli.habits import CALIBRATED, HABITS, VALUE_HABITS, VERB_HABITS
from vit_edge.cli.parser import Parser
from vit_edge.cli.verbs import LINES, VERBS, parser_of


class Mistake(NamedTuple):
    """What somebody typed; what was printed until 0.1.0; what is to be typed instead."""

    typed: str
    before: str
    after: tuple[str, ...]


MISTAKES = (
    Mistake(
        "export google/vit-base-patch16-224 half=True imgsz=384",
        "error: unrecognized arguments: google/vit-base-patch16-224 half=True imgsz=384",
        (
            "vit-edge export google/vit-base-patch16-224 --precision fp16 --calibration DIR "
            "--image-size 384",
        ),
    ),
    Mistake(
        "export --checkpoint embedded --int8",
        "error: unrecognized arguments: --int8",
        ("vit-edge export --checkpoint embedded --precision int8 --calibration DIR",),
    ),
    Mistake(
        "export --checkpoint embedded format=engine half=True",
        "error: unrecognized arguments: format=engine half=True",
        (
            "vit-edge export --recipe gpu-fp16 --checkpoint embedded --calibration DIR --out "
            "bundles/mine",
            "vit-edge build bundles/mine --backend trt",
        ),
    ),
    Mistake(
        "export --variant base-patch16-224 --calibraton photos/",
        "error: unrecognized arguments: --calibraton photos/",
        ("vit-edge export --variant base-patch16-224 --calibration photos/",),
    ),
    Mistake(
        "export onnx --model google/vit-base-patch16-224 --task image-classification out/",
        "error: unrecognized arguments: onnx --model google/vit-base-patch16-224 --task "
        "image-classification out/",
        ("vit-edge export --model google/vit-base-patch16-224 --out out/",),
    ),
    Mistake(
        "export --onnx=vit.onnx --saveEngine=vit.plan --fp16 --minShapes=x:1x3x224x224 "
        "--optShapes=x:4x3x224x224 --maxShapes=x:8x3x224x224",
        "error: unrecognized arguments: --saveEngine=vit.plan --fp16 --minShapes=x:1x3x224x224 "
        "--optShapes=x:4x3x224x224 --maxShapes=x:8x3x224x224",
        (
            "vit-edge export --recipe gpu-fp16 --onnx vit.onnx --calibration DIR --max-batch 8 "
            "--out bundles/mine",
            "vit-edge build bundles/mine --backend trt",
        ),
    ),
    Mistake(
        "export timm:vit_tiny_patch16_224 --img-size 384 --dynamic --simplify --opset 17",
        "error: unrecognized arguments: timm:vit_tiny_patch16_224 --img-size 384 --dynamic "
        "--simplify",
        ("vit-edge export timm:vit_tiny_patch16_224 --image-size 384 --opset 17",),
    ),
    Mistake(
        "predict bundles/mine cat.jpg --device 0",
        "error: unrecognized arguments: --device 0",
        ("vit-edge predict bundles/mine cat.jpg --backend trt",),
    ),
    Mistake(
        "predict model=bundles/mine source=photos/ half=True",
        "error: the following arguments are required: IMAGE",
        (
            "vit-edge export SOURCE --precision fp16 --calibration DIR --out bundles/mine",
            "vit-edge predict bundles/mine photos/",
        ),
    ),
    Mistake(
        "exprot --checkpoint embedded",
        "UsageError: no verb 'exprot'; there are: predict, verify, inspect, export, build, parity, "
        "evaluate, bench, recommend, doctor",
        ("vit-edge export --checkpoint embedded",),
    ),
    Mistake(
        "optimize vit.safetensors",
        "UsageError: no verb 'optimize'; there are: predict, verify, inspect, export, build, "
        "parity, evaluate, bench, recommend, doctor",
        ("vit-edge export vit.safetensors --precision int8 --calibration DIR",),
    ),
    Mistake(
        "bundles/mine cat.jpg",
        "UsageError: no verb 'bundles/mine'; there are: predict, verify, inspect, export, build, "
        "parity, evaluate, bench, recommend, doctor",
        ("vit-edge predict bundles/mine cat.jpg",),
    ),
    Mistake(
        "val bundles/mine data=photos/ batch-size=16",
        "UsageError: no verb 'val'; there are: predict, verify, inspect, export, build, parity, "
        "evaluate, bench, recommend, doctor",
        ("vit-edge evaluate bundles/mine --images photos/ --batch 16",),
    ),
    Mistake(
        "export embedded --precision half -o b --no-such-thing",
        "error: unrecognized arguments: embedded -o b --no-such-thing",
        (),
    ),
)


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What is printed where a command line is refused: on stderr, with exit code 2."""
    try:
        code: object = cli.main(words)
    except SystemExit as stopped:
        code = stopped.code
    printed = capsys.readouterr()
    assert code == 2
    assert not printed.out
    assert "Traceback" not in printed.err
    return printed.err


@functools.cache
def parser(verb: str) -> Parser:
    """A parser is no state, and takes a while to make."""
    return parser_of(verb)


def refused_by(verb: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What is printed where the command line of one verb is refused."""
    with pytest.raises(SystemExit) as stopped:
        parser(verb).parse_args(words)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def instead(text: str) -> list[str]:
    """The commands that a refusal tells to type."""
    lines = text.splitlines()
    start = lines.index("type instead:") + 1 if "type instead:" in lines else len(lines)
    return [line.strip() for line in lines[start:] if line.startswith("  vit-edge ")]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.typed[:40])
def test_a_typical_mistake_is_answered_with_what_to_type(
    mistake: Mistake, capsys: pytest.CaptureFixture[str]
) -> None:
    text = refused(mistake.typed.split(), capsys)
    assert text.startswith("vit-edge")
    assert "error: " in text
    assert instead(text) == [*mistake.after]
    assert mistake.before not in text


@pytest.mark.parametrize("typed", ["reprot a.json -o p.html", "--json compare a.json", "cmpare a"])
def test_a_verb_behind_a_verb_is_understood(typed: str, capsys: pytest.CaptureFixture[str]) -> None:
    (command,) = instead(refused(["bench", *typed.split()], capsys))
    assert command.startswith(("vit-edge bench report a.json", "vit-edge bench compare a"))
    words = shlex.split(command)[2:]
    parser_of(f"bench {words[0]}").parse_args(words[1:])


def test_the_page_shows_what_is_printed(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (repository / "docs" / "command-line.md").read_text(encoding="utf-8")
    words = "export google/vit-base-patch16-224 format=engine half=True"
    assert f"`vit-edge {words}`" in page
    assert "\n".join(f"    {line}" for line in instead(refused(words.split(), capsys))) in page


def test_a_verb_that_others_give_a_checkpoint_says_what_to_type(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """As of a verb quantize that lowers the precision of a bundle."""
    asked = cli.Parser("quantize", "", "")
    for flag in ("--precision", "--calibration"):
        asked.add_argument(flag)
    asked.add_argument("bundle", metavar="BUNDLE")
    for words, command in (
        (["vit.pt"], "vit-edge export vit.pt --precision int8 --calibration DIR"),
        (
            ["a/b", "--precision", "int4", "--calibration", "d"],
            "vit-edge export a/b --precision int4 --calibration d",
        ),
    ):
        with pytest.raises(SystemExit):
            asked.parse_args(words)
        assert instead(capsys.readouterr().err) == [command]
    assert asked.parse_args([str(tmp_path)]).bundle == str(tmp_path)
    for bundle in ("hf:a/b", "bundles/missing", "missing", f"{tmp_path}/missing"):
        assert asked.parse_args([bundle]).bundle == bundle
    with pytest.raises(SystemExit):
        asked.parse_args([str(tmp_path), "half=True"])
    (command,) = instead(capsys.readouterr().err)
    assert command == f"vit-edge quantize {tmp_path} --precision fp16 --calibration DIR"


def test_what_is_none_of_ours_is_named_and_nothing_is_made_up(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = refused(["export", "embedded", "--wobble", "--half"], capsys)
    assert "no option --wobble" in text
    assert "--half: here it is --precision fp16" in text
    assert instead(text) == []


def test_an_option_of_another_verb_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    text = refused(["predict", "b", "a.jpg", "--calibration", "photos"], capsys)
    assert "--calibration: that is an option of vit-edge export" in text


# Every habit, on every verb: what it tells to type is taken by the command lines.

EXAMPLES = {"--precision": "float16", "--image-size": "3 320 448", "--backend": "cuda:0"}


def call_of(verb: str) -> list[str]:
    """The shortest right call of a verb, without the verb."""
    if verb == "export":
        return ["embedded"]
    positionals = [one for one in parser(verb).positionals() if one.nargs in (None, "+")]
    needed = ["." if one.metavar == "BUNDLE" else "b" for one in positionals]  # a folder
    required = [one for one in parser(verb).options().values() if one.required]
    flags = [word for one in dict.fromkeys(required) for word in (one.option_strings[-1], "f")]
    return [*(needed or ["b"] * (verb == "bench")), *flags]


@pytest.mark.parametrize("verb", LINES)
@pytest.mark.parametrize("form", ["--{}", "{}="])
def test_what_a_habit_is_told_to_type_is_taken(
    verb: str, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    call = call_of(verb)
    parser(verb).parse_args(call)  # it is right without the habit
    for habit in HABITS:
        option = habit.words[0] if habit.words else ""
        value = "" if habit.flag else EXAMPLES.get(option, "8").split()[-1]
        for name in habit.names:
            if f"--{name}" in parser(verb).options() | parser(verb).old:
                continue  # of ours, and right
            if form.endswith("="):
                words = [f"{name}={value or 'True'}"]
            else:
                words = [form.format(name), *([value] if value else [])]
            text = refused_by(verb, [*call, *words], capsys)
            commands = instead(text)
            if "that is an option of" in text or "nothing here" in text or "no place" in text:
                continue
            assert commands, text
            for command in commands:
                typed = shlex.split(command)[1:]
                two = " ".join(typed[:2]) in LINES
                other = " ".join(typed[: 2 if two else 1])
                parser(other).parse_args(typed[2 if two else 1 :])
            assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", VERB_HABITS)
def test_what_a_foreign_verb_is_told_to_type_is_taken(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if name in VERBS:
        pytest.skip("it has become a verb of ours")
    commands = instead(refused([name], capsys))
    assert commands
    for command in commands:
        words = shlex.split(command)[1:]
        if words[0].startswith("-"):
            assert cli.main(words) == 0
            continue
        verb = " ".join(words[:2]) if " ".join(words[:2]) in LINES else words[0]
        stand_ins = {"BUNDLE": "b", "SOURCE": "embedded"}
        rest = [stand_ins.get(word, word) for word in words[len(verb.split()) :]]
        if verb not in ("evaluate", "parity record"):  # which need images, too
            parser(verb).parse_args(rest)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("slip", ["swap", "drop", "double", "capital"])
def test_a_slip_of_the_pen_in_a_verb_is_understood(
    verb: str, slip: str, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = {
        "swap": verb[:2] + verb[3] + verb[2] + verb[4:],
        "drop": verb[:3] + verb[4:],
        "double": verb[:3] + verb[2:],
        "capital": verb.capitalize(),
    }[slip]
    if typed in VERBS:
        pytest.skip("the same word")
    text = refused([typed, "b"], capsys)
    assert f"did you mean {verb}?" in text
    assert instead(text)[0].startswith(f"vit-edge {verb} b")


@pytest.mark.parametrize("verb", LINES)
def test_a_slip_of_the_pen_in_any_option_is_understood(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = parser(verb).options()
    for flag, action in options.items():
        if not flag.startswith("--") or len(flag) < 7:
            continue
        values = [] if action.nargs == 0 else ["7"]
        for typed in (f"{flag[:-3]}{flag[-2:]}", flag.replace("-", "_").replace("__", "--", 1)):
            if typed in options or typed == flag:
                continue
            text = refused_by(verb, [*call_of(verb), typed, *values], capsys)
            assert any(f" {flag}" in command for command in instead(text)) or any(
                f"did you mean {other}?" in text for other in options
            ), text


@pytest.mark.parametrize("text", ["lr=0.1", "a=b"])
def test_a_file_with_an_equals_sign_is_a_file(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(text).touch()
    assert parser("export").parse_args([text]).source == text
    assert parser("export").parse_args([f"runs/{text}/vit.pt"]).source == f"runs/{text}/vit.pt"
    assert parser("export").parse_args(["--set", "block=8"]).set == ["block=8"]
    assert parser("export").parse_args(["--", "no=file"]).source == "no=file"


def test_the_precisions_that_need_images_are_the_quantizers() -> None:
    pytest.importorskip("onnx_ir")
    from vit_edge import quantize

    needing = {
        name for name in quantize.names()
        if name != quantize.FLOAT and quantize.module(name).CALIBRATION == "required"
    }  # fmt: skip
    assert set(CALIBRATED) == needing
    assert set(VALUE_HABITS["--precision"].values()) <= set(quantize.names())


def test_words_may_stand_in_any_order() -> None:
    words = (["b", "1.jpg", "--json", "2.jpg"], ["--json", "b", "1.jpg", "2.jpg"],
             ["b", "--json", "--", "1.jpg", "2.jpg"])  # fmt: skip
    for typed in words:
        read = parser("predict").parse_args(typed)
        assert (read.bundle, read.inputs, read.json) == ("b", ["1.jpg", "2.jpg"], True)
    read = parser("predict").parse_args(["--", "b", "-1.jpg", "--json"])
    assert read.inputs == ["-1.jpg", "--json"]
    assert parser("build").parse_args(["a", "--tune", "b"]).more == ["b"]
    assert parser("predict").parse_args(["b", "-bort", "x"]).backend == "ort"


WORDS = [
    "embedded", "b", "a.jpg", "half", "onnx", "-", "--", "-o", "--out", "x=", "=x", "-1", "--half",
    "--int8", "--precision", "--precision=half", "--calibration", "--max-batch", "--maxShapes",
    "--maxShapes=q", "--batch-size", "format=engine", "--format", "imgsz=", "model=m", "--set",
    "source=", "device=0", "--tune", "--no-such-thing", "-z", "-b", "--json=1", "mode=export", "",
]  # fmt: skip


@given(st.sampled_from([*LINES, "exprot", "quantize", "b", ""]), st.lists(st.sampled_from(WORDS)))
@settings(max_examples=60, deadline=None)
def test_no_words_end_in_a_traceback(verb: str, words: list[str]) -> None:
    if verb in LINES:
        with contextlib.suppress(SystemExit), contextlib.redirect_stderr(io.StringIO()):
            parser(verb).parse_args(words)
        return
    assert "error: " in refusal_of_verb([verb, *words])
