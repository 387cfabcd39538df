"""The command line of export: one source, however it is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from vit_edge.errors import UsageError
from vit_edge.export.__main__ import parser, read_source
from vit_edge.export.naming import named

KINDS = ("variant", "checkpoint", "onnx")


def read(*words: str) -> dict[str, str]:
    """What the options say once SOURCE and --model were read."""
    arguments = parser().parse_args(words)
    read_source(arguments)
    return {kind: str(getattr(arguments, kind)) for kind in KINDS if getattr(arguments, kind)}


@pytest.mark.parametrize(
    ("source", "meant"),
    [
        ("embedded", {"checkpoint": "embedded"}),
        ("seeded:0", {"checkpoint": "seeded:0"}),
        ("timm:vit_tiny_patch16_224", {"checkpoint": "timm:vit_tiny_patch16_224"}),
        ("google/vit-base-patch16-224", {"checkpoint": "hf:google/vit-base-patch16-224"}),
        ("base-patch16-224", {"variant": "base-patch16-224"}),
        ("model.onnx", {"onnx": "model.onnx"}),
        ("models/VIT.ONNX", {"onnx": "models/VIT.ONNX"}),
        ("weights/model.safetensors", {"checkpoint": "weights/model.safetensors"}),
        ("./google/vit", {"checkpoint": "./google/vit"}),
        ("/data/model", {"checkpoint": "/data/model"}),
        ("a/b/c", {"checkpoint": "a/b/c"}),
    ],
)
def test_a_source_means_what_it_looks_like(source: str, meant: dict[str, str]) -> None:
    assert read(source) == meant
    assert read("--model", source) == meant
    assert read("-m", source) == meant
    assert read(source, "--model", source) == meant  # said twice is said once


def test_what_lies_here_comes_before_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("google/vit", "base-patch16-224", "graph.onnx"):
        Path(folder).mkdir(parents=True)
        assert named(folder) == ("checkpoint", folder)
    Path("photos-model").mkdir()
    assert named("photos-model/") == ("checkpoint", "photos-model/")


def test_a_variant_gives_the_shape_and_a_source_the_weights() -> None:
    both = {"variant": "base-patch16-224", "checkpoint": "seeded:0"}
    assert read("seeded:0", "--variant", "base-patch16-224") == both
    assert read("base-patch16-224", "--checkpoint", "seeded:0") == both
    assert read("base-patch16-224", "--model", "seeded:0") == both
    assert read("--variant", "base-patch16-224", "--checkpoint", "seeded:0") == both
    assert read("google/vit", "--checkpoint", "hf:google/vit") == {"checkpoint": "hf:google/vit"}


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["embedded", "--model", "seeded:0"], ["SOURCE embedded", "--model seeded:0"]),
        (["embedded", "--checkpoint", "seeded:0"], ["SOURCE embedded", "--checkpoint seeded:0"]),
        (["-m", "embedded", "--checkpoint", "seeded:0"], ["--model embedded", "seeded:0"]),
        (["embedded", "--onnx", "a.onnx"], ["SOURCE embedded", "--onnx a.onnx"]),
        (["a.onnx", "--onnx", "b.onnx"], ["SOURCE a.onnx", "--onnx b.onnx"]),
        (["a.onnx", "--checkpoint", "embedded"], ["SOURCE a.onnx", "--checkpoint embedded"]),
        (["a.onnx", "--variant", "base-patch16-224"], ["SOURCE a.onnx", "--variant base"]),
        (["base-patch16-224", "--onnx", "a.onnx"], ["SOURCE base-patch16-224", "--onnx a.onnx"]),
        (["base-patch16-224", "--variant", "tiny-patch16-224"], ["SOURCE base", "--variant tiny"]),
        (["a.onnx", "-m", "embedded"], ["SOURCE a.onnx", "--model embedded"]),
    ],
)
def test_two_sources_that_contradict_each_other_are_named(
    words: list[str], names: list[str]
) -> None:
    with pytest.raises(UsageError, match="contradict") as refused:
        read(*words)
    assert all(name in str(refused.value) for name in names)


def test_a_hub_is_asked_in_so_many_words(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "vit_edge"):
        named("modles/mine")
    assert "modles/mine: no such path here, so it is taken for hf:modles/mine" in caplog.text


@pytest.mark.parametrize("text", ["INT8", "Int8", "int8"])
def test_a_precision_is_read_in_any_case(text: str) -> None:
    assert parser().parse_args(["embedded", "--precision", text]).precision == "int8"
