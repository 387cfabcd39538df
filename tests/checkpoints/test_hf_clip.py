"""CLIP's vision half in transformers' files: equal to transformers itself, whatever was saved."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.utils import logging as transformers_logging

from tests.checkpoints.foreign import write_json
from vit_edge.checkpoints import Checkpoint, Request, load_checkpoint
from vit_edge.errors import CheckpointError
from vit_edge.images.preprocess import preprocess
from vit_edge.models.vit import Outputs, vit_from_weights

requires = ("torch", "safetensors", "transformers")

transformers_logging.disable_progress_bar()

VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 50,
    "max_position_embeddings": 8,
    "bos_token_id": 48,
    "eos_token_id": 49,
}
KINDS = ("CLIPVisionModel", "CLIPVisionModelWithProjection", "CLIPModel")
# Their vision halves are CLIP's, their text halves are not.
KIN = (
    *("MetaClip2Model", "MetaClip2VisionModel", "MetaClip2VisionModelWithProjection"),
    *("ChineseCLIPModel", "ChineseCLIPVisionModel"),
)
PROCESSOR = {
    "crop_size": 32,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 32,
}


def drawn(kind: str, **vision: Any) -> Any:
    """A model of transformers far from its initial weights, in eval mode."""
    vision = {**VISION, **vision}
    model_class = getattr(transformers, kind)
    if "Vision" in kind:
        config = model_class.config_class(**vision, projection_dim=24)
    else:
        config = model_class.config_class(vision_config=vision, text_config=TEXT, projection_dim=24)
    model = model_class(config).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        offset = 0.5 if parameter.ndim == 1 else 0.0
        values = torch.randn(parameter.shape, generator=generator) * 0.3 + offset
        parameter.data.copy_(torch.tensor(3.1) if name == "logit_scale" else values)
    return model


def saved(model: Any, folder: Path, names: str = "5") -> str:
    """A folder as transformers 5 writes it, or with the names of 4; or a torch.save beside it."""
    model.save_pretrained(folder)
    write_json(folder / "preprocessor_config.json", PROCESSOR)
    if names == "5":
        return f"hf:{folder}"
    (folder / "model.safetensors").unlink()
    state = dict(model.state_dict())
    if names == "4":  # every class had the level, and the first ones a buffer
        state = {
            name if "." not in name or name.startswith(("vision", "visual", "text")) else
            f"vision_model.{name}": tensor
            for name, tensor in state.items()
        }  # fmt: skip
        state["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
        if "logit_scale" in state:
            state["text_model.embeddings.position_ids"] = torch.arange(8)[None]
    torch.save(state, folder / "pytorch_model.bin")
    return f"hf:{folder}"


def pixels(size_px: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 3, size_px, size_px, dtype=torch.float64, generator=generator)


def ours(checkpoint: Checkpoint, images: Tensor) -> Outputs:
    vit = vit_from_weights(checkpoint.architecture, dict(checkpoint.weights))
    found: Outputs = vit.to(images.dtype)(images)
    return found


def theirs(model: Any, images: Tensor, **options: Any) -> Tensor:
    """The pooled output, or image_embeds where there is a projection; not normalised."""
    model = model.to(images.dtype)
    with torch.no_grad():
        if hasattr(model, "get_image_features"):
            found = model.get_image_features(images, **options)
            return getattr(found, "pooler_output", found)
        found = model(images, **options)
    return found.pooler_output if not hasattr(found, "image_embeds") else found.image_embeds


def assert_close(found: Tensor, expected: Tensor, relative: float) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).abs().max() / expected.abs().max()) <= relative


@pytest.mark.parametrize("names", ["5", "4", "torch.save"])
@pytest.mark.parametrize("kind", KINDS)
def test_features_equal_those_of_transformers(kind: str, names: str, tmp_path: Path) -> None:
    model = drawn(kind)
    checkpoint = load_checkpoint(saved(model, tmp_path, names), Request())
    assert checkpoint.architecture.features_dim == (32 if kind == "CLIPVisionModel" else 24)
    assert_close(ours(checkpoint, pixels()).features, theirs(model, pixels()), 1e-9)
    single = pixels().float()
    assert_close(ours(checkpoint, single).features, theirs(model, single), 1e-5)


@pytest.mark.parametrize("kind", KIN)
def test_kin_with_the_same_vision_half_are_read(kind: str, tmp_path: Path) -> None:
    model = drawn(kind)
    checkpoint = load_checkpoint(saved(model, tmp_path), Request())
    assert_close(ours(checkpoint, pixels()).features, theirs(model, pixels()), 1e-9)
    if not kind.endswith("VisionModel"):
        state = load_file(tmp_path / "model.safetensors")
        del state["visual_projection.weight"]
        save_file(state, tmp_path / "model.safetensors")
        with pytest.raises(CheckpointError, match=r"missing \(1\):\n.*visual_projection"):
            load_checkpoint(f"hf:{tmp_path}", Request())


@pytest.mark.parametrize("changes", [{"hidden_act": "gelu"}, {"layer_norm_eps": 1e-3}], ids=str)
def test_what_config_json_says_is_computed(changes: dict[str, Any], tmp_path: Path) -> None:
    model = drawn("CLIPModel", **changes)
    source = saved(model, tmp_path)
    found = ours(load_checkpoint(source, Request()), pixels()).features
    assert_close(found, theirs(model, pixels()), 1e-9)
    config = json.loads((tmp_path / "config.json").read_text())
    config["vision_config"] |= dict.fromkeys(changes)  # null is no value of these fields
    for name in changes:
        del config["vision_config"][name]
    write_json(tmp_path / "config.json", config)
    other = ours(load_checkpoint(source, Request()), pixels()).features
    with pytest.raises(AssertionError):  # the comparison above can fail
        assert_close(other, theirs(model, pixels()), 1e-5)


def test_positions_are_resized_as_there(tmp_path: Path) -> None:
    model = drawn("CLIPVisionModelWithProjection")
    checkpoint = load_checkpoint(saved(model, tmp_path), Request(image_hw=(48, 48)))
    expected = theirs(model, pixels(48), interpolate_pos_encoding=True)
    assert_close(ours(checkpoint, pixels(48)).features, expected, 1e-6)


def test_the_text_half_is_left_out_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        load_checkpoint(saved(drawn("CLIPModel"), tmp_path), Request())
    said = [record.message for record in caplog.records if "text half" in record.message]
    assert len(said) == 1
    assert "text_model, text_projection" in said[0]


@pytest.mark.parametrize("wrapper", ["module.", "model._orig_mod.", "clip."])
def test_a_wrapper_around_the_whole_model_is_taken_off(wrapper: str, tmp_path: Path) -> None:
    model = drawn("CLIPModel")
    source = saved(model, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save({wrapper + name: t for name, t in state.items()}, tmp_path / "pytorch_model.bin")
    checkpoint = load_checkpoint(source, Request())
    assert_close(ours(checkpoint, pixels()).features, theirs(model, pixels()), 1e-9)


def test_a_weight_file_beside_its_config_is_recognised(tmp_path: Path) -> None:
    model = drawn("CLIPVisionModel")
    saved(model, tmp_path)
    checkpoint = load_checkpoint(str(tmp_path / "model.safetensors"), Request())
    assert_close(ours(checkpoint, pixels()).features, theirs(model, pixels()), 1e-9)


BASE = {
    "width": 768, "depth": 12, "heads": 12, "mlp_dim": 3072, "patch_px": 32,
    "image_hw": (224, 224), "activation": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip


@pytest.mark.parametrize(
    "config",
    [
        {"vision_config": {"num_hidden_layers": 1, "hidden_size": 24, "intermediate_size": 8}},
        {
            "vision_config": {"patch_size": 8, "num_hidden_layers": 3},
            "vision_config_dict": {
                "num_hidden_layers": 1, "hidden_size": 24, "intermediate_size": 8,
            },
        },
        {
            "vision_config": {"num_hidden_layers": 1, "hidden_size": 24, "intermediate_size": 8},
            "vision_config_dict": None,
        },
    ],
    ids=["differences alone", "vision_config_dict decides", "null decides nothing"],
)  # fmt: skip
def test_what_a_config_leaves_out_is_as_the_class_has_it(
    config: dict[str, Any], tmp_path: Path
) -> None:
    """As CLIPConfig of the installed transformers reads the same file."""
    config = {"architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": 8, **config}
    model = transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(
            **{**transformers.CLIPConfig(**config).vision_config.to_dict(), "projection_dim": 8}
        )
    )
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    write_json(tmp_path / "config.json", config)
    architecture = load_checkpoint(f"hf:{tmp_path}", Request()).architecture
    expected = {**BASE, "width": 24, "depth": 1, "mlp_dim": 8}
    assert {name: getattr(architecture, name) for name in expected} == expected


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    shapes = ((45, 33), (33, 60), (32, 32), (131, 40))
    return [Image.fromarray(rng.integers(0, 256, (*hw, 3), np.uint8)) for hw in shapes]


@pytest.mark.parametrize("form", ["old file", "new file", "inside processor_config", "no file"])
def test_images_become_the_pixels_of_transformers(form: str, tmp_path: Path) -> None:
    source = saved(drawn("CLIPVisionModel"), tmp_path)
    file = tmp_path / "preprocessor_config.json"
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    judge = transformers.CLIPImageProcessorPil(**sizes)
    if form == "new file":
        judge.save_pretrained(tmp_path)
    if form in ("inside processor_config", "no file"):
        file.unlink()
    if form == "inside processor_config":
        nested = {"image_processor": judge.to_dict(), "processor_class": "CLIPProcessor"}
        write_json(tmp_path / "processor_config.json", nested)
    preprocessing = load_checkpoint(source, Request()).preprocessing
    for picture in pictures():
        expected = np.asarray(judge(picture, return_tensors="np").pixel_values[0])
        np.testing.assert_array_equal(preprocess(picture, preprocessing), expected)


def test_a_processor_inside_processor_config_wins_as_there(tmp_path: Path) -> None:
    source = saved(drawn("CLIPVisionModel"), tmp_path)
    nested = {"image_processor": {**PROCESSOR, "resample": 2}}
    write_json(tmp_path / "processor_config.json", nested)
    assert load_checkpoint(source, Request()).preprocessing.interpolation == "bilinear"


def changed(folder: Path, kind: str = "CLIPModel", **tensors: Tensor | None) -> str:
    """A folder with tensors added, replaced, or (None) removed."""
    source = saved(drawn(kind), folder)
    state = load_file(folder / "model.safetensors") | tensors
    save_file({n: t for n, t in state.items() if t is not None}, folder / "model.safetensors")
    return source


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"classifier.weight": torch.zeros(5, 32)}, r"CLIPForImageClassification.*--onnx"),
        ({"visual_projection.weight": None}, r"missing \(1\):\n.*visual_projection.weight"),
        ({"visual_projection.weight": torch.zeros(24, 16)}, "another shape"),
        ({"vision_model.pre_layrnorm.bias": None}, r"missing \(1\):\n.*pre_layrnorm.bias"),
        ({"vision_model.strange": torch.zeros(1)}, r"not understood \(1\)"),
        ({"logit_scale": torch.zeros(2)}, "logit_scale: expected one number"),
        ({"logit_scale": torch.tensor(torch.nan)}, "logarithm of no scale"),
    ],
    ids=[
        "a classifier", "no projection", "a projection of another width", "no norm",
        "a stranger", "two scales", "NaN",
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(
    tensors: dict[str, Tensor | None], words: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(changed(tmp_path, **tensors), Request())


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"vision_config": 3}, "vision_config: expected an object"),
        ({"vision_config": VISION | {"hidden_act": "silu"}}, "hidden_act: 'silu' is not supp"),
        ({"vision_config": VISION | {"num_attention_heads": 5}}, "5 does not divide"),
        ({"vision_config": VISION | {"num_channels": 4}}, "num_channels: 4"),
        ({"model_type": "siglip"}, r"model_type: 'siglip' is another model.*clip.*--onnx"),
        ({"model_type": "clip_text_model"}, r"model_type: 'clip_text_model' is another model"),
    ],
    ids=["no object", "activation", "heads", "channels", "SigLIP", "the text half"],
)
def test_a_config_of_another_model_is_refused_by_name(
    config: dict[str, Any], words: str, tmp_path: Path
) -> None:
    source = saved(drawn("CLIPModel"), tmp_path)
    data = json.loads((tmp_path / "config.json").read_text())
    write_json(tmp_path / "config.json", data | config)
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(source, Request())
