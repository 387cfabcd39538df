"""A CLIP tower with a zero-shot head, from the command line to the predictor, in any precision."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image

from tests.checkpoints.test_hf_clip import drawn, saved
from tests.checkpoints.test_zero_shot import TOKENS
from tests.support.bundles import Exporter
from vit_edge import Bundle, Predictor, inspect
from vit_edge.errors import UsageError
from vit_edge.export.__main__ import main

requires = ("torch", "onnx", "onnxscript", "onnxruntime", "safetensors", "transformers")

LABELS = tuple(f"a photo of {index}" for index in range(len(TOKENS)))


@pytest.fixture(scope="module")
def model() -> Any:
    """A CLIPModel whose answers depend on image and text, as those of trained weights do."""
    found = drawn("CLIPModel")
    found.vision_model.embeddings.patch_embedding.weight.data.mul_(5)
    found.text_model.embeddings.token_embedding.weight.data.mul_(10)
    return found


@pytest.fixture(scope="module")
def arguments(model: Any, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What the command line needs to know of it."""
    folder = tmp_path_factory.mktemp("clip")
    source = saved(model, folder / "model")
    with torch.no_grad():
        texts = model.get_text_features(TOKENS)
    np.save(folder / "texts.npy", getattr(texts, "pooler_output", texts).numpy())
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in LABELS))
    return [
        *("--checkpoint", source, "--max-batch", "3"),
        *("--text-embeddings", str(folder / "texts.npy"), "--labels", str(folder / "labels.txt")),
    ]  # fmt: skip


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(5).integers(0, 256, (50, 70, 3), np.uint8))


def scores_of_transformers(model: Any) -> NDArray[np.float32]:
    """As its zero-shot pipeline computes them, of one image."""
    processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    pixels = processor(picture(), return_tensors="pt").pixel_values
    with torch.no_grad():
        logits = model(input_ids=TOKENS, pixel_values=pixels).logits_per_image
    return logits.softmax(dim=-1)[0].numpy()


def assert_same_scores(bundle: Bundle, model: Any, absolute: float, backend: str = "ort") -> None:
    with Predictor(bundle.path, backend=backend) as predictor:
        ranked = predictor.predict(picture(), top_k=len(LABELS)).top
    found = {entry.label: entry.score for entry in ranked}
    expected = dict(zip(LABELS, scores_of_transformers(model).tolist(), strict=True))
    assert found == pytest.approx(expected, abs=absolute)


@pytest.mark.parametrize("recipe", ["cpu-fp32", pytest.param("gpu-fp32", marks=pytest.mark.slow)])
def test_the_predictor_gives_the_scores_of_transformers(
    recipe: str, arguments: list[str], model: Any, export_once: Exporter
) -> None:
    bundle = export_once(*arguments, "--recipe", recipe)
    assert_same_scores(bundle, model, 1e-5)
    manifest = bundle.manifest
    assert manifest.scores == "softmax"
    assert manifest.architecture is not None
    assert manifest.architecture.logit_scale == pytest.approx(np.exp(3.1), rel=1e-6)
    assert "texts.npy" in manifest.checkpoint.sha256
    graph = onnx.load(bundle.model_path).graph
    operators = Counter(node.op_type for node in graph.node if "readout.head" in node.name)
    assert operators == {"ReduceL2": 1, "Div": 1, "MatMul": 1}
    (head,) = (tensor for tensor in graph.initializer if tensor.name == "readout.head.weight")
    lengths = np.linalg.norm(onnx.numpy_helper.to_array(head), axis=0)
    np.testing.assert_allclose(lengths, manifest.architecture.logit_scale, rtol=1e-6)


def test_inspect_tells_what_the_classes_are(
    arguments: list[str], export_once: Exporter, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = export_once(*arguments, "--recipe", "cpu-fp32")
    assert inspect.main([str(bundle.path)]) == 0
    said = capsys.readouterr().out
    assert "7, cosines with texts, times 22.2, scores by softmax" in said
    assert "image 32x32 px, projected to 24" in said


def test_the_reference_of_a_bundle_answers_as_the_graph(
    arguments: list[str], model: Any, export_once: Exporter
) -> None:
    """The eager backend has the folded matrix alone."""
    bundle = export_once(*arguments, "--recipe", "cpu-fp32")
    assert_same_scores(bundle, model, 1e-5, backend="eager")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "more"),
    [
        ("fp16", ["--recipe", "gpu-fp16"]),
        ("int8", []),
        ("int8-dynamic", []),
        ("int4", ["--set", "block_size=16"]),
    ],
    ids=["fp16", "int8", "int8-dynamic", "int4"],
)
def test_every_precision_passes_the_gate(
    precision: str, more: list[str], arguments: list[str], model: Any, export_once: Exporter
) -> None:
    calibration = ["--calibration", "random", "--calibration-images", "32"]
    bundle = export_once(*arguments, "--precision", precision, *more, *calibration)
    parity = json.loads((bundle.path / "parity.json").read_text())
    assert parity["passed"]
    assert_same_scores(bundle, model, 0.05)
    names = {node.name for node in onnx.load(bundle.model_path).graph.node}
    assert {"readout.head/ReduceL2", "readout.head/MatMul"} <= names


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (["--onnx", "x.onnx", "--preprocess", "deit"], "--text-embeddings"),
        (["--text-embeddings", "x.npy"], "--labels"),
        (["--logit-scale", "5"], "--text-embeddings"),
    ],
    ids=["of a graph", "without labels", "a scale alone"],
)
def test_half_a_request_is_wrong_usage(
    wrong: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rest = ["--text-embeddings", "x.npy"] if "--onnx" in wrong else ["--checkpoint", "seeded:0"]
    rest += [] if "--onnx" in wrong else ["--variant", "testing"]
    assert main([*wrong, *rest]) == UsageError.exit_code
    assert words in capsys.readouterr().err


def test_a_tower_without_texts_says_how_to_get_a_head(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments[:4], "--out", "never"]) == UsageError.exit_code
    said = capsys.readouterr().err
    assert "--outputs features" in said
    assert "--text-embeddings FILE.npy --labels FILE" in said
