"""Bundles score logits as the checkpoint's own library does, from the config to every verb."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    pipeline,
)

from tests.checkpoints.foreign import SMALL, hf_config, weights_of, write_hf, write_json
from vit_edge import Bundle, Predictor
from vit_edge.__main__ import main as predict
from vit_edge.bundle.manifest import manifest_from_json
from vit_edge.checkpoints import Request, load_checkpoint
from vit_edge.errors import CheckpointError, UsageError
from vit_edge.evaluate.__main__ import main as evaluate
from vit_edge.export.__main__ import main as export
from vit_edge.export.recipe import find_recipe, target_for
from vit_edge.export.source import chosen_scores
from vit_edge.inspect import main as inspect
from vit_edge.parity.run import compare
from vit_edge.parity.targets import Target

requires = ("torch", "onnx", "onnxruntime", "transformers")

# kind of head -> its labels, and problem_type of config.json
LABELS = {"multi": ["cat", "dog", "ship"], "value": ["age"]}
PROBLEMS = {"multi": "multi_label_classification", "value": "regression"}


def small_model(kind: str) -> ViTForImageClassification:
    torch.manual_seed(0)
    labels = dict(enumerate(LABELS[kind]))
    config = ViTConfig(
        hidden_size=48, num_hidden_layers=1, num_attention_heads=3, intermediate_size=96,
        image_size=16, patch_size=8, num_labels=len(labels),
    )  # fmt: skip
    model = ViTForImageClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.15)
    model.config.id2label, model.config.label2id = labels, {v: k for k, v in labels.items()}
    model.config.problem_type = PROBLEMS[kind]
    return model


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 30, 3), np.uint8)
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray(pixels).save(path)
    return path


Published = dict[str, tuple[Bundle, dict[str, float]]]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, photo: Path) -> Published:
    """A bundle of each kind of head, and the scores of transformers' pipeline for the photo."""
    found: Published = {}
    for kind in LABELS:
        folder = tmp_path_factory.mktemp("scores") / kind
        model = small_model(kind)
        model.save_pretrained(folder)
        processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
        processor.save_pretrained(folder)
        code, printed = exported("--checkpoint", folder, "--out", folder / "out", "--max-batch", 2)
        assert code == 0, printed
        pipe = pipeline("image-classification", model=model, image_processor=processor)
        found[kind] = Bundle.read(folder / "out"), scored(pipe, photo)
        if kind == "value":  # the same head where the config does not say regression
            model.config.problem_type = None
            shutil.copytree(folder / "out", folder / "one")
            change(folder / "one", scores="sigmoid")
            found["one"] = Bundle.read(folder / "one"), scored(pipe, photo)
    return found


def exported(*arguments: object) -> tuple[int, str]:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        return export([str(argument) for argument in arguments]), out.getvalue()


def scored(pipe: Any, photo: Path) -> dict[str, float]:
    return {row["label"]: row["score"] for row in pipe(Image.open(photo), top_k=10)}


def change(bundle: Path, **fields: object) -> None:
    path = bundle / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize("kind", ["multi", "one", "value"])
def test_scores_are_those_of_transformers_pipeline(
    published: Published, photo: Path, kind: str
) -> None:
    bundle, expected = published[kind]
    with Predictor(bundle) as predictor:
        prediction = predictor.predict(photo)
    scores = {ranked.label: ranked.score for ranked in prediction.top}
    assert scores == pytest.approx(expected, abs=1e-5)
    assert prediction.scores == bundle.manifest.scores
    assert not bundle.manifest.labels_invented


@pytest.mark.parametrize(
    ("kind", "kept"),
    [("multi", "sigmoid"), ("one", "sigmoid"), ("value", "none")],
)
def test_every_verb_says_what_makes_the_scores(
    published: Published, photo: Path, capsys: pytest.CaptureFixture[str], kind: str, kept: str
) -> None:
    bundle, _ = published[kind]
    path = str(bundle.path)
    assert predict([path, str(photo)]) == 0
    printed = capsys.readouterr().out
    assert ("%" in printed) == (kept != "none")
    assert predict([path, str(photo), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scores"] == kept
    assert inspect([path]) == 0
    assert f"scores by {kept}" in capsys.readouterr().out


def test_a_stream_and_a_batch_score_alike(published: Published, photo: Path) -> None:
    bundle, _ = published["multi"]
    with Predictor(bundle) as predictor:
        one = predictor.predict(photo)
        for other in [*predictor.predict_batch([photo] * 3), *predictor.stream([photo] * 3)]:
            assert other.scores == "sigmoid"
            assert [r.score for r in other.top] == pytest.approx([r.score for r in one.top], 1e-4)


def test_parity_judges_decisions_and_values(published: Published) -> None:
    for kind, scores in (("multi", "sigmoid"), ("value", "none")):
        bundle, _ = published[kind]
        (run,) = compare(bundle.path).runs
        assert run.verdict == "pass", run.problems
        summaries = [row.summary for row in run.comparisons if row.output == "logits"]
        assert all(summary["scores"] == scores for summary in summaries)
        assert all(("top1_agreement" in s) == (scores == "sigmoid") for s in summaries)


def test_a_bundle_of_0_1_0_without_these_fields_scores_by_softmax(
    published: Published,
) -> None:
    bundle, _ = published["multi"]
    fields = json.loads((bundle.path / "manifest.json").read_text())
    assert fields.pop("scores") == "sigmoid"
    assert fields.pop("labels_invented") is False
    old = manifest_from_json(json.dumps(fields), "old")
    assert old == dataclasses.replace(bundle.manifest, scores="softmax")


def test_a_recipes_target_on_classes_is_dropped_for_values_and_said(
    published: Published, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = find_recipe(None, "int8").changed(parity_target="top1_agreement=0.99,sqnr_db=20")
    for kind in ("multi", "one"):
        assert target_for(recipe, published[kind][0].manifest) == recipe.target_bounds
    assert caplog.text == ""
    values = published["value"][0].manifest
    assert target_for(recipe, values) == Target((("sqnr_db", 20.0),))
    assert "top1_agreement" in caplog.text
    headless = dataclasses.replace(values, outputs=values.outputs[1:], scores="softmax")
    assert target_for(recipe.changed(parity_target="top1_agreement=0.99"), headless) is None


def folders(root: Path, *names: str) -> Path:
    rng = np.random.default_rng(1)
    for name in names:
        for number in range(3):
            file = root / name / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(file)
    return root


@pytest.mark.parametrize("names", [("age", "good"), ("1", "0"), ("age", "not age")])
def test_a_single_logit_is_a_yes_or_no_and_right_is_either(
    published: Published, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    names: tuple[str, str],
) -> None:  # fmt: skip
    bundle, _ = published["one"]
    data = folders(tmp_path, *names)
    with Predictor(bundle) as predictor:
        yes = [
            float(predictor.predict(f).logits[0]) >= 0 for f in sorted((data / names[0]).iterdir())
        ]
        no = [
            float(predictor.predict(f).logits[0]) < 0 for f in sorted((data / names[1]).iterdir())
        ]
    assert evaluate([str(bundle.path), "--data", str(data), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["top1"]["count"] == sum(yes) + sum(no)
    assert found["top1"]["count"] < 6  # argmax of one logit would always be "right"
    assert found["top5"] is None
    assert evaluate([str(bundle.path), "--data", str(data)]) == 0
    assert "yes from a score of 50 % on" in capsys.readouterr().out


def test_two_other_folders_beside_the_one_class_are_refused(
    published: Published, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, _ = published["one"]
    data = folders(tmp_path, "age", "good", "ages")
    assert evaluate([str(bundle.path), "--data", str(data)]) == 3
    assert "'ages'" in capsys.readouterr().err


def test_values_have_no_accuracy(
    published: Published, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, _ = published["value"]
    assert evaluate([str(bundle.path), "--data", str(folders(tmp_path, "age"))]) == 2
    assert "regression" in capsys.readouterr().err


def test_multi_label_accuracy_says_what_counts(
    published: Published, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, _ = published["multi"]
    assert evaluate([str(bundle.path), "--data", str(folders(tmp_path, "cat", "dog"))]) == 0
    assert "do not exclude each other" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("problem", "classes", "kept"),
    [
        ("multi_label_classification", 3, "sigmoid"),
        ("single_label_classification", 3, "softmax"),
        ("regression", 3, "none"),
        ("regression", 1, "none"),
        ("multi_label_classification", 1, "sigmoid"),
        (None, 1, "sigmoid"),
        (None, 3, None),
    ],
)
def test_the_config_tells(
    tmp_path: Path, problem: str | None, classes: int, kept: str | None
) -> None:
    head = dataclasses.replace(SMALL, num_classes=classes)
    labels = {str(index): f"LABEL_{index}" for index in range(classes)}
    write_hf(tmp_path, head, weights_of(head))
    config = hf_config(head, problem_type=problem, id2label=labels)
    write_json(tmp_path / "config.json", config)
    checkpoint = load_checkpoint(f"hf:{tmp_path}", Request())
    assert checkpoint.scores == kept
    assert checkpoint.labels_invented


@pytest.mark.parametrize(
    ("problem", "classes", "words"),
    [
        ("ranking", 3, "'ranking'"),
        ("single_label_classification", 1, "two classes or more"),
        (3, 2, "problem_type: 3"),
    ],
)
def test_an_unknown_problem_type_is_refused_by_name(
    tmp_path: Path, problem: Any, classes: int, words: str
) -> None:
    head = dataclasses.replace(SMALL, num_classes=classes)
    write_hf(tmp_path, head, weights_of(head))
    write_json(tmp_path / "config.json", hf_config(head, problem_type=problem))
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(f"hf:{tmp_path}", Request())


def test_what_is_asked_for_wins_and_a_single_logit_must_be_told() -> None:
    assert chosen_scores(None, None, 5, "x") == "softmax"
    assert chosen_scores("sigmoid", "softmax", 5, "x") == "sigmoid"
    assert chosen_scores(None, "none", 1, "x") == "none"
    assert chosen_scores(None, None, 0, "x") == "softmax"
    for asked, stated, classes in (
        (None, None, 1),
        ("softmax", "sigmoid", 1),
        ("sigmoid", None, 0),
    ):
        with pytest.raises(UsageError):
            chosen_scores(asked, stated, classes, "x")  # type: ignore[arg-type]
