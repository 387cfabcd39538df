"""The trained checkpoint, end to end on real images: the graph predicts what the reference does."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from vit_edge import Bundle, Failure, Predictor
from vit_edge.checkpoints import Request, load_checkpoint
from vit_edge.export.pipeline import export_bundle
from vit_edge.export.plan import ExportOptions
from vit_edge.export.recipe import load_recipe
from vit_edge.images.preprocess import preprocess
from vit_edge.models.reference import reference_outputs
from vit_edge.models.vit import vit_from_weights

requires = ("torch", "onnx", "onnxscript", "onnxruntime")


@lru_cache
def reference_logits(source: str, images: tuple[Path, ...]) -> NDArray[np.float32]:
    """float32[N, classes] of the reference; once a checkpoint, whatever it is exported to."""
    loaded = load_checkpoint(source, Request())
    vit = vit_from_weights(loaded.architecture, dict(loaded.weights))
    spec = loaded.preprocessing
    logits = []
    for start in range(0, len(images), 100):
        pixels = np.stack([preprocess(path, spec) for path in images[start : start + 100]])
        logits.append(reference_outputs(vit, pixels, "float32").logits.numpy())  # type: ignore[union-attr]
    return np.concatenate(logits)


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "every"), [("cpu-fp32", 1), ("gpu-fp32", 5)])
@pytest.mark.parametrize("checkpoint", ["vit-cifar10/hf", "vit-cifar10-outliers/hf"])
def test_the_exported_model_predicts_the_references_class_for_each_image(
    shared_data: Path, tmp_path: Path, checkpoint: str, recipe: str, every: int
) -> None:
    """The other form of the graph is held to every fifth image."""
    source = f"hf:{shared_data / 'checkpoints' / checkpoint}"
    images = sorted((shared_data / "images" / "cifar10" / "eval").rglob("*.jpg"))
    assert len(images) == 2000
    expected = reference_logits(source, tuple(images))[::every]
    bundle = export_bundle(ExportOptions(load_recipe(recipe), source, out=tmp_path / "bundle"))
    with Predictor(bundle) as predictor:
        outcomes = predictor.predict_batch(images[::every])
    found = np.stack([outcome.logits for outcome in outcomes if not isinstance(outcome, Failure)])
    assert np.array_equal(found.argmax(axis=1), expected.argmax(axis=1))
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_every_hostile_file_gets_an_answer_or_a_typed_error(
    shared_data: Path, embedded_bundle: Bundle
) -> None:
    files = sorted(path for path in (shared_data / "images/hostile").rglob("*") if path.is_file())
    assert len(files) == 350
    with Predictor(embedded_bundle) as predictor:
        outcomes = predictor.predict_batch(files, on_error="record")
    assert len(outcomes) == 350
    answered = [outcome for outcome in outcomes if not isinstance(outcome, Failure)]
    assert len(answered) > 200
    assert all(np.isfinite(outcome.logits).all() for outcome in answered)


def test_the_embedded_model_sees_the_cat(embedded_bundle: Bundle, photos: list[Path]) -> None:
    cat = next(photo for photo in photos if photo.name == "cat.jpg")
    with Predictor(embedded_bundle) as predictor:
        assert predictor.predict(cat).label == "cat"


def test_the_embedded_model_knows_every_example_that_the_demo_shows(
    embedded_bundle: Bundle, repository: Path
) -> None:
    examples = sorted((repository / "vit_edge" / "data" / "examples").glob("*.jpg"))
    assert "vit_edge/data/examples/*.jpg" in (repository / "scripts" / "demo").read_text()
    with Predictor(embedded_bundle) as predictor:
        answers = [prediction.label for prediction in predictor.predict_batch(examples)]
    assert answers == [path.stem for path in examples] != []
