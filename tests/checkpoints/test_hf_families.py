"""The families beside the plain ViT: equal to transformers itself, from both kinds of names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.utils import logging as transformers_logging

from tests.checkpoints.foreign import write_json
from vit_edge.checkpoints import Checkpoint, Request, load_checkpoint
from vit_edge.checkpoints.hf_families import FAMILIES
from vit_edge.errors import CheckpointError
from vit_edge.models.vit import vit_from_weights
from vit_edge.variants import FAMILIES as TABLE

requires = ("torch", "safetensors", "transformers")

transformers_logging.disable_progress_bar()

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 5,
}
DINO = {**SMALL, "mlp_ratio": 2}
MAE = {
    **{f"decoder_{name}": value for name, value in SMALL.items()},
    **SMALL,
    "mask_ratio": 0.0,
    "decoder_hidden_size": 32,
}
# class of transformers, its configuration, pooling and tokens in front of the patches
CASES = {
    "deit with a teacher": ("DeiTForImageClassificationWithTeacher", SMALL, "class+distilled", 2),
    "deit": ("DeiTForImageClassification", SMALL, "class", 2),
    "deit without a head": ("DeiTModel", SMALL, "class", 2),
    "msn": ("ViTMSNForImageClassification", SMALL, "class", 1),
    "msn without a head": ("ViTMSNModel", SMALL, "class", 1),
    "mae": ("ViTMAEForPreTraining", MAE, "class", 1),
    "masked images": ("ViTForMaskedImageModeling", {**SMALL, "encoder_stride": 8}, "class", 1),
    "dinov2": ("Dinov2ForImageClassification", DINO, "class+mean", 1),
    "dinov2 without a head": ("Dinov2Model", DINO, "class", 1),
    "registers": ("Dinov2WithRegistersForImageClassification", DINO, "class+mean", 5),
    "registers without a head": ("Dinov2WithRegistersModel", DINO, "class", 5),
}


def drawn(name: str) -> Any:
    """A model of transformers far from its initial weights, where layer scales are alike."""
    model_class = getattr(transformers, CASES[name][0])
    model = model_class(model_class.config_class(**CASES[name][1])).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        offset = 0.5 if parameter.ndim == 1 else 0.0
        values = torch.randn(parameter.shape, generator=generator) * 0.3 + offset
        parameter.data.copy_(values)
    return model


def saved(model: Any, folder: Path, size_px: int = 32, *, pickled: bool = False) -> str:
    if pickled:
        model.config.save_pretrained(folder)
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    else:
        model.save_pretrained(folder)
    processor = {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": size_px},
        "crop_size": {"height": size_px, "width": size_px},
        "do_center_crop": True,
        "resample": 3,
    }
    write_json(folder / "preprocessor_config.json", processor)
    return f"hf:{folder}"


def relative_difference(model: Any, checkpoint: Checkpoint, size_px: int) -> float:
    """In float64, of the logits or, without a head, of the class token."""
    pixels = torch.randn(2, 3, size_px, size_px, dtype=torch.float64)
    vit = vit_from_weights(checkpoint.architecture, dict(checkpoint.weights)).double()
    ours = vit(pixels)
    model = model.double()
    with torch.no_grad():
        if ours.logits is not None:
            found, expected = ours.logits, model(pixels).logits
        else:
            body = getattr(model, "vit", model)
            found, expected = ours.features, body(pixels).last_hidden_state[:, 0]
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("pickled", [False, True], ids=["save_pretrained", "torch.save"])
@pytest.mark.parametrize("name", CASES)
def test_answers_equal_those_of_transformers(name: str, pickled: bool, tmp_path: Path) -> None:
    """1e-6, since layer scale and averaged heads are folded into weights of float32."""
    model = drawn(name)
    checkpoint = load_checkpoint(saved(model, tmp_path, pickled=pickled), Request())
    assert (checkpoint.architecture.pooling, checkpoint.architecture.prefix_tokens) == CASES[name][
        2:
    ]
    assert relative_difference(model, checkpoint, 32) <= 1e-6


@pytest.mark.parametrize("name", ["dinov2", "registers"])
def test_the_processor_decides_on_the_size_where_the_model_resizes_positions(
    name: str, tmp_path: Path
) -> None:
    model = drawn(name)
    checkpoint = load_checkpoint(saved(model, tmp_path, 48), Request())
    assert checkpoint.architecture.image_hw == (48, 48)
    assert relative_difference(model, checkpoint, 48) <= 1e-6


def test_positions_of_the_two_dinov2_are_resized_differently(tmp_path: Path) -> None:
    """The comparison above must be able to fail."""
    model = drawn("registers")
    source = saved(model, tmp_path, 48)
    other = load_checkpoint(source, Request(None, (48, 48), "bicubic"))
    assert relative_difference(model, other, 48) > 1e-4


def test_each_model_type_is_in_the_table_of_families() -> None:
    published = " ".join(family.published for family in TABLE)
    assert [name for name in FAMILIES if f"`{name}`" not in published] == []


def test_a_gated_mlp_is_refused(tmp_path: Path) -> None:
    model_class = transformers.Dinov2Model
    model = model_class(model_class.config_class(**DINO, use_swiglu_ffn=True))
    with pytest.raises(CheckpointError, match="SwiGLU"):
        load_checkpoint(saved(model, tmp_path), Request())


def test_a_layer_scale_that_is_missing_is_named(tmp_path: Path) -> None:
    model = drawn("dinov2")
    source = saved(model, tmp_path, pickled=True)
    state = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    state.pop("dinov2.encoder.layer.1.layer_scale2.lambda1")
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"missing \(1\):\n.*layer_scale2.lambda1 \[32\]"):
        load_checkpoint(source, Request())
