"""A trained DINOv2 from Hugging Face, and the same weights as a plain ViT: the same features."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from tests.support.bundles import Exporter
from vit_edge import Predictor
from vit_edge.backends import ort
from vit_edge.bundle import Bundle

requires = ("torch", "onnx", "onnxscript", "onnxruntime", "transformers", "safetensors")

# What transformers' Dinov2Model answers in float64: 16 channels of the class token, and its norm.
RECORDED = json.loads(
    Path(__file__).parents[1].joinpath("data", "dinov2_features.json").read_text(encoding="utf-8")
)["photos"]


@pytest.fixture(scope="module")
def bundles(dinov2: Path, export_once: Exporter) -> tuple[Bundle, Bundle]:
    """The float32 bundles of the two folders."""
    rest = ("--outputs", "features", "--max-batch", "2")
    dino, plain = (
        export_once("--checkpoint", f"hf:{dinov2 / name}", *rest)
        for name in ("dinov2-small", "dinov2-small-as-vit")
    )
    return dino, plain


@pytest.mark.slow
def test_a_trained_dinov2_answers_as_transformers_does(
    bundles: tuple[Bundle, Bundle], photos: list[Path]
) -> None:
    dino, _ = bundles
    moved = dino.manifest.checkpoint.position_interpolation
    assert moved is not None
    assert (moved.method, moved.from_grid_hw, moved.to_grid_hw) == ("bicubic", (37, 37), (16, 16))
    named = [photo for photo in photos if photo.name in RECORDED]
    assert len(named) == len(RECORDED) == 3
    with Predictor(dino, backend="ort") as predictor:
        found = predictor.features(named)
    for photo, features in zip(named, found, strict=True):
        recorded = RECORDED[photo.name]
        np.testing.assert_allclose(features[:16], recorded["features"], atol=2e-4)
        np.testing.assert_allclose(np.linalg.norm(features), recorded["norm"], rtol=1e-5)


@pytest.mark.slow
def test_the_same_weights_as_a_plain_vit_answer_alike(bundles: tuple[Bundle, Bundle]) -> None:
    """On pixels, since the two folders' processors crop differently."""
    pixels = np.random.default_rng(0).standard_normal((2, 3, 224, 224), dtype=np.float32)
    answers = []
    for bundle in bundles:
        with closing(ort.load(bundle)) as backend:
            answers.append(backend.run(pixels)["features"])
    largest = np.abs(answers[0]).max()
    assert np.abs(answers[0] - answers[1]).max() < 1e-5 * largest
