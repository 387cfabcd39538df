"""vit_edge.export(...): every kind of source, and every wrong argument by its own name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vit_edge
from vit_edge import Bundle, Predictor, RecipeError, UsageError, VitEdgeError
from vit_edge.checkpoints import Request
from vit_edge.export.__main__ import main
from vit_edge.export.plan import ForeignFile
from vit_edge.export.recipe import find_recipe

requires = ("torch", "onnx", "onnxruntime")


def test_it_makes_what_the_command_makes(testing_bundle: Bundle, tmp_path: Path) -> None:
    made = vit_edge.export("seeded:0", variant="testing", max_batch=4, out=tmp_path / "out")
    assert made.model_path.read_bytes() == testing_bundle.model_path.read_bytes()
    assert made.manifest.recipe == testing_bundle.manifest.recipe
    assert made.labels == testing_bundle.labels
    with pytest.raises(UsageError, match="exists; force replaces it"):
        vit_edge.export("seeded:0", variant="testing", out=tmp_path / "out")
    assert vit_edge.export(
        "seeded:0", variant="testing", out=tmp_path / "out", force=True, max_batch=2
    ).manifest.max_batch == 2  # fmt: skip


def test_labels_sizes_and_precision_are_taken_as_python_has_them(tmp_path: Path) -> None:
    labels = [f"class {index}" for index in range(10)]
    made = vit_edge.export(
        "seeded:0",
        variant="testing",
        precision="BF16",
        image_size=96,
        labels=labels,
        outputs=["logits"],
        max_batch=2,
        out=str(tmp_path / "out"),
    )
    assert made.labels == tuple(labels)
    assert made.manifest.precision == "bf16"
    assert made.manifest.preprocessing.crop_hw == (96, 96)
    assert [output.name for output in made.manifest.outputs] == ["logits"]


def test_a_module_in_memory_becomes_a_bundle_that_answers_alike(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs transformers")
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        image_size=32, patch_size=16, id2label={0: "cat", 1: "dog", 2: "owl"},
    )  # fmt: skip
    torch.manual_seed(0)
    model = ViTForImageClassification(config).train()
    processor = ViTImageProcessorPil(size={"height": 32, "width": 32})
    made = vit_edge.export(model, processor=processor, out=tmp_path / "out", max_batch=2)
    assert model.training
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    with Predictor(made) as predictor:
        ours = predictor.predict(image)
    with torch.no_grad():
        theirs = model.eval()(**processor(image, return_tensors="pt")).logits[0]
    np.testing.assert_allclose(ours.logits, theirs.numpy(), atol=1e-5)
    assert ours.label == config.id2label[int(theirs.argmax())]


def test_a_processor_is_an_object_a_table_a_file_or_a_name(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from torch import nn

    from vit_edge.export.processors import live_module

    module, timm = nn.Linear(1, 1), {
        "input_size": (3, 224, 224), "interpolation": "bicubic", "mean": (0.1, 0.2, 0.3),
        "std": (0.2, 0.2, 0.2), "crop_pct": 0.5, "crop_mode": "center",
    }  # fmt: skip
    torchvision = SimpleNamespace(
        crop_size=[224], resize_size=[256], mean=[0.4, 0.4, 0.4], std=[0.2, 0.2, 0.2],
        interpolation=SimpleNamespace(value="bilinear"),
    )  # fmt: skip
    for given, resize, mean in (
        (timm, (64, 64), (0.1, 0.2, 0.3)),
        (torchvision, (37, 37), (0.4, 0.4, 0.4)),
        ("google-vit", (32, 32), (0.5, 0.5, 0.5)),
    ):
        live = live_module(module, given, tmp_path)
        assert live.preprocessing is not None
        steps = live.preprocessing((32, 32))
        assert (steps.resize_hw, steps.crop_hw, steps.mean) == (resize, (32, 32), mean)
    hugging = SimpleNamespace(to_dict=lambda: {"image_processor_type": "ViTImageProcessor"})
    for given in (hugging, SimpleNamespace(image_processor=hugging)):
        live = live_module(module, given, tmp_path)
        assert live.processor is not None
        assert json.loads(live.processor.read_text())["image_processor_type"]
        assert live.preprocessing is None


def test_another_exporters_file_takes_a_processor(foreign_file: Any, tmp_path: Path) -> None:
    path = foreign_file("timm-torchscript-17")
    with pytest.raises(UsageError, match=r"^an \.onnx file needs a processor"):
        vit_edge.export(path, out=tmp_path / "out")
    with pytest.raises(UsageError, match="variant, image_size cannot be had with an .onnx file"):
        vit_edge.export(path, processor="google-vit", variant="testing", image_size=32)


@pytest.mark.parametrize(
    ("options", "arguments", "said"),
    [
        (["--variant", "testing"], {"variant": "testing"}, "variant cannot be had"),
        (["--logit-scale", "0"], {"request": Request(logit_scale=0)}, "logit-scale cannot be had"),
        (["--outputs", "logits,features"], {"outputs": "logits,features"}, "has one output"),
        (
            ["--labels", "x.txt", "--outputs", "features"],
            {"labels": ["one"], "outputs": "features"},
            "features has none; give one",
        ),
    ],
)
def test_what_an_onnx_file_cannot_have_is_refused_on_both_routes(
    options: list[str],
    arguments: dict[str, Any],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    with pytest.raises(UsageError, match=said):
        vit_edge.export("model.onnx", processor="google-vit", out=out, **arguments)
    call = ["--onnx", "model.onnx", "--preprocess", "google-vit", *options, "--out", str(out)]
    assert main(call) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"labels": ["one"]}, "labels: a ForeignFile says that itself"),
        ({"processor": "deit", "outputs": "logits"}, "processor, outputs: a ForeignFile"),
    ],
)
def test_what_a_foreign_file_says_is_not_said_beside_it(
    arguments: dict[str, Any], said: str, tmp_path: Path
) -> None:
    file = ForeignFile(tmp_path / "model.onnx", "google-vit")
    with pytest.raises(UsageError, match=said):
        vit_edge.export(file, out=tmp_path / "out", **arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"source": 3}, UsageError, "source must be a module, a path or an id, not int"),
        ({"source": None}, UsageError, "name a source, a variant, or both"),
        ({"precision": 8}, UsageError, "precision must be text, not 8"),
        ({"precision": "int9"}, UsageError, "no precision 'int9'"),
        ({"precision": "int8"}, UsageError, "needs to see what the model sees"),
        ({"target": 0.99}, UsageError, "target must be text, not 0.99"),
        ({"input": "float16"}, UsageError, "input must be float32 or uint8, not 'float16'"),
        ({"scores": "argmax"}, UsageError, "scores must be softmax or sigmoid or none"),
        ({"outputs": []}, UsageError, "outputs must name some of"),
        ({"outputs": "probabilities"}, UsageError, "outputs must name some of"),
        ({"image_size": "384"}, UsageError, "image_size: '384' is no size"),
        ({"image_size": (32, -32)}, UsageError, "is no size"),
        ({"image_size": 33}, UsageError, "^image_size: image height 33 px is no multiple"),
        ({"max_batch": 0}, RecipeError, "max_batch must lie in"),
        ({"processor": "google-vit"}, UsageError, "processor is for a module or an .onnx file"),
        ({"labels": ["one"]}, VitEdgeError, "labels: 1 labels"),
        ({"calibration": "/nowhere", "precision": "int8"}, VitEdgeError, "/nowhere"),
        ({"calibration": "/nowhere"}, UsageError, "^calibration: nothing of fp32 is chosen on"),
        ({"golden_images": "/nowhere"}, VitEdgeError, "/nowhere"),
        ({"recipe": find_recipe(None, None), "precision": "int8"}, UsageError, "recipe makes fp32"),
        ({"request": Request(revision="a"), "revision": "b"}, UsageError, "given twice"),
        ({"variant": "nonsense"}, UsageError, "nonsense"),
    ],
)
def test_a_wrong_argument_is_refused_by_its_name(
    arguments: dict[str, Any], error: type[VitEdgeError], message: str, tmp_path: Path
) -> None:
    call = {"source": "embedded", "out": tmp_path / "out", **arguments}
    with pytest.raises(error, match=message) as caught:
        vit_edge.export(call.pop("source"), **call)
    said = str(caught.value).replace("--list-variants", "")  # a command to type
    assert "--" not in said.partition("such as")[0]
    assert not (tmp_path / "out").exists()


def test_a_bare_name_of_the_hub_is_asked_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    from vit_edge.checkpoints import hub

    asked = []

    def fetch(source: str, repository: str, *rest: Any) -> Any:
        asked.append((source, repository))
        raise vit_edge.HubError("nobody is there")

    monkeypatch.setattr(hub, "fetch", fetch)
    for source in ("google/vit-base-patch16-224", "hf:google/vit-base-patch16-224"):
        with pytest.raises(vit_edge.HubError):
            vit_edge.export(source)
    assert asked == [("hf", "google/vit-base-patch16-224")] * 2
