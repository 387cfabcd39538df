"""A graph whose output is an embedding is asked about, and published as what it is."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from tests.support.foreign_graphs import Shape, TimmViT, with_random_weights
from vit_edge import Bundle, Predictor, UsageError
from vit_edge.errors import CheckpointError
from vit_edge.export.__main__ import main as export
from vit_edge.export.foreign.source import foreign_source
from vit_edge.images.preprocess import preprocess
from vit_edge.parity.run import compare

requires = ("torch", "onnx", "onnx_ir", "onnxruntime")

SHAPE = Shape(heads=3, depth=1)


class Ending(nn.Module):
    """A ViT with something else than its head at the end."""

    def __init__(self, last: nn.Module, after: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.vit = TimmViT(SHAPE)
        self.vit.head = last
        self.after = after

    def forward(self, pixels: Tensor) -> Tensor:
        found: Tensor = self.vit(pixels)
        return found if self.after is None else self.after(found)


def normalised(values: Tensor) -> Tensor:
    return values / values.norm(dim=-1, keepdim=True)


class Heads(nn.Module):
    """Several heads, and what becomes one answer of theirs."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor], bias: bool = True) -> None:
        super().__init__()
        self.first, self.second = (nn.Linear(48, 6, bias=bias) for _ in range(2))
        self.join = join

    def forward(self, features: Tensor) -> Tensor:
        return self.join(self.first(features), self.second(features))


ENDINGS: dict[str, Callable[[], nn.Module]] = {
    "class-token": lambda: Ending(nn.Identity()),
    "projection": lambda: Ending(nn.Linear(48, 24, bias=False)),
    "normalised": lambda: Ending(nn.Linear(48, 24), normalised),
    "pooler": lambda: Ending(nn.Linear(48, 48), torch.tanh),
    "head": lambda: Ending(nn.Linear(48, 6)),
    "averaged-heads": lambda: Ending(Heads(lambda a, b: (a + b) / 2)),
    "stacked-heads": lambda: Ending(Heads(lambda a, b: torch.stack([a, b]).mean(0))),
    "heads-side-by-side": lambda: Ending(Heads(lambda a, b: torch.cat([a, b], dim=-1))),
    "temperature": lambda: Ending(nn.Linear(48, 6), lambda found: found / 1.5),
    "averaged-projections": lambda: Ending(Heads(lambda a, b: (a + b) / 2, bias=False)),
    "residual": lambda: Ending(Heads(lambda a, b: a + b.tanh())),
    "one-logit": lambda: Ending(nn.Linear(48, 1)),
    "imagenet": lambda: Ending(nn.Linear(48, 1000)),
    "sigmoid": lambda: Ending(nn.Linear(48, 6), torch.sigmoid),
}


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    folder = tmp_path_factory.mktemp("graphs")

    def make(ending: str, name: str = "output") -> Path:
        path = folder / f"{ending}-{name}.onnx"
        if not path.exists():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.onnx.export(
                    with_random_weights(ENDINGS[ending]()), (torch.zeros(2, 3, 32, 32),), path,
                    dynamo=False, opset_version=17, input_names=["pixels"], output_names=[name],
                    dynamic_axes={"pixels": {0: "batch"}, name: {0: "batch"}},
                )  # fmt: skip
        return path

    return make


def opened(path: Path, scratch: Path, **more: Any) -> Any:
    labels = more.pop("labels", None)
    return foreign_source(path, "google-vit", labels, scratch, **more).facts


@pytest.mark.parametrize(
    "ending",
    [
        *("class-token", "projection", "normalised", "pooler"),
        *("averaged-projections", "residual"),
    ],
)
def test_an_embedding_is_asked_about_with_every_answer(
    graph: Callable[..., Path], tmp_path: Path, ending: str
) -> None:
    path = graph(ending)
    with pytest.raises(UsageError, match="--outputs features.*--labels.*--outputs logits"):
        opened(path, tmp_path / "asked")
    facts = opened(path, tmp_path / "features", output="features")
    assert [output.name for output in facts.outputs] == ["features"]
    assert facts.labels == ()
    assert not facts.labels_invented
    facts = opened(path, tmp_path / "logits", output="logits")
    assert facts.outputs[0].name == "logits"
    assert facts.labels[0].startswith("class_0")
    assert facts.labels_invented
    width = facts.outputs[0].shape[1]
    labels = tmp_path / "labels.txt"
    labels.write_text("".join(f"kind {index}\n" for index in range(width)))
    facts = opened(path, tmp_path / "labels", labels=labels)
    assert facts.labels[-1] == f"kind {width - 1}"
    assert not facts.labels_invented


@pytest.mark.parametrize("name", ["image_embeds", "pooler_output", "features", "Embedding"])
def test_a_name_of_embeddings_counts_more_than_a_head(
    graph: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    for ending in ("head", "imagenet"):
        with pytest.raises(UsageError, match="looks like an embedding"):
            opened(graph(ending, name), tmp_path / ending)


def test_a_head_is_taken_and_its_labels_are_marked_invented(
    graph: Callable[..., Path], tmp_path: Path
) -> None:
    facts = opened(graph("head"), tmp_path / "a")
    assert facts.labels == tuple(f"class_{index}" for index in range(6))
    assert facts.labels_invented
    assert opened(graph("class-token", "logits"), tmp_path / "b").labels_invented
    facts = opened(graph("imagenet"), tmp_path / "c")
    assert facts.labels[281] == "tabby, tabby cat"
    assert not facts.labels_invented


@pytest.mark.parametrize(
    "ending", ["averaged-heads", "stacked-heads", "heads-side-by-side", "temperature"]
)
def test_several_heads_are_a_head(graph: Callable[..., Path], tmp_path: Path, ending: str) -> None:
    """As of timm's distilled DeiT: (head(x) + head_dist(y)) / 2."""
    assert opened(graph(ending), tmp_path).labels_invented


def test_scores_are_said_or_read_from_the_config(
    graph: Callable[..., Path], tmp_path: Path
) -> None:
    path = graph("head")
    assert opened(path, tmp_path / "a").scores == "softmax"
    assert opened(path, tmp_path / "b", scores="sigmoid").scores == "sigmoid"
    config = tmp_path / "config.json"
    names = {str(index): f"kind {index}" for index in range(6)}
    config.write_text(json.dumps({"id2label": names, "problem_type": "multi_label_classification"}))
    assert opened(path, tmp_path / "c", labels=config).scores == "sigmoid"
    assert opened(path, tmp_path / "d", labels=config, scores="none").scores == "none"
    config.write_text(json.dumps({"id2label": names, "problem_type": "other"}))
    with pytest.raises(CheckpointError, match="problem_type: 'other'"):
        opened(path, tmp_path / "e", labels=config)


def test_a_single_logit_must_be_told(graph: Callable[..., Path], tmp_path: Path) -> None:
    path = graph("one-logit")
    with pytest.raises(UsageError, match="--scores sigmoid.*--scores none"):
        opened(path, tmp_path / "a")
    assert opened(path, tmp_path / "b", scores="none").scores == "none"
    with pytest.raises(UsageError, match="always 1"):
        opened(path, tmp_path / "c", scores="softmax")


def run(*arguments: object) -> tuple[int, str]:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        return export([str(argument) for argument in arguments]), out.getvalue()


def test_a_graph_that_ends_in_a_sigmoid_is_told_what_to_say(graph: Callable[..., Path]) -> None:
    code, printed = run("--onnx", graph("sigmoid"), "--preprocess", "google-vit")
    assert code == 3
    assert "--scores sigmoid" in printed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--outputs", "tokens"), "--outputs logits or --outputs features"),
        (("--outputs", "features", "--labels", "x.txt"), "--outputs features has none"),
        (("--outputs", "features", "--scores", "sigmoid"), "has no logits"),
    ],
)
def test_contradicting_options_are_refused(
    graph: Callable[..., Path], options: tuple[str, ...], words: str
) -> None:
    code, printed = run("--onnx", graph("class-token"), "--preprocess", "google-vit", *options)
    assert code == 2
    assert words in printed


def test_a_bundle_of_an_embedding_gives_its_values(
    graph: Callable[..., Path], tmp_path: Path, photos: list[Path]
) -> None:
    path, out = graph("class-token"), tmp_path / "bundle"
    code, printed = run(
        "--onnx", path, "--preprocess", "google-vit", "--outputs", "features", "--out", out,
        "--max-batch", 2,
    )  # fmt: skip
    assert code == 0, printed
    bundle = Bundle.read(out)
    assert bundle.labels == ()
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    pixels = preprocess(photos[0], bundle.manifest.preprocessing)[None]
    (expected,) = session.run(None, {"pixels": pixels})
    with Predictor(bundle) as predictor:
        np.testing.assert_allclose(predictor.features(photos[:1]), expected, atol=1e-4)
        with pytest.raises(UsageError, match="no head"):
            predictor.predict(photos[0])
    (verdict,) = compare(bundle.path).runs
    assert verdict.verdict == "pass", verdict.problems
