"""The limit lies between rounding and the smallest mistakes that exporters really make."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from vit_edge.checkpoints import Checkpoint, Request, load_checkpoint
from vit_edge.export.golden_set import golden_files, golden_images
from vit_edge.images.preprocess import pixels_from_resized
from vit_edge.models import layers
from vit_edge.models.vit import ViT, vit_from_weights
from vit_edge.parity.limits import limit_for

requires = ("torch", "onnx", "onnxscript", "onnxruntime")

RELATIVE = limit_for("fp32").logits.as_dict()["relative"]


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return load_checkpoint("embedded", Request())


@pytest.fixture(scope="module")
def pixels(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    folder: Path = tmp_path_factory.mktemp("scratch")
    _, resized = golden_images(
        golden_files(None), checkpoint.preprocessing, folder, lambda images: None
    )
    return torch.from_numpy(pixels_from_resized(resized, checkpoint.preprocessing)).double()


def logits(
    checkpoint: Checkpoint,
    pixels: torch.Tensor,
    change: Callable[[ViT], object] = lambda vit: None,
    eps: float | None = None,
) -> torch.Tensor:
    architecture = checkpoint.architecture
    if eps is not None:
        architecture = dataclasses.replace(architecture, layer_norm_eps=eps)
    vit = vit_from_weights(architecture, {k: v.double() for k, v in checkpoint.weights.items()})
    change(vit)
    with torch.inference_mode():
        found = vit(pixels).logits
    assert found is not None
    return found


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def drop_a_bias(vit: ViT) -> None:
    vit.get_parameter("blocks.7.mlp.fc2.bias").data.zero_()


def swap_heads(vit: ViT) -> None:
    weight = vit.get_parameter("blocks.3.attention.qkv.weight").data
    weight[:, :64], weight[:, 64:128] = weight[:, 64:128].clone(), weight[:, :64].clone()


def shift_positions(vit: ViT) -> None:
    position = vit.get_parameter("embedding.position").data
    position[:, 1:] = position[:, 1:].roll(1, dims=1)


@pytest.mark.parametrize("eps", [1e-12, 1e-5])
def test_another_layer_norm_epsilon_is_seen(
    checkpoint: Checkpoint, pixels: torch.Tensor, eps: float
) -> None:
    difference = relative(logits(checkpoint, pixels, eps=eps), logits(checkpoint, pixels))
    assert difference > 2 * RELATIVE


@pytest.mark.parametrize("fault", [drop_a_bias, swap_heads, shift_positions])
def test_a_fault_in_the_weights_is_seen(
    checkpoint: Checkpoint, pixels: torch.Tensor, fault: Callable[[ViT], None]
) -> None:
    difference = relative(logits(checkpoint, pixels, fault), logits(checkpoint, pixels))
    assert difference > 100 * RELATIVE


def test_a_tanh_gelu_is_seen(
    checkpoint: Checkpoint, pixels: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = logits(checkpoint, pixels)
    exact = functional.gelu
    monkeypatch.setattr(layers.functional, "gelu", lambda x, **_: exact(x, approximate="tanh"))
    assert relative(logits(checkpoint, pixels), expected) > 20 * RELATIVE


def test_rounding_to_float32_is_not(checkpoint: Checkpoint, pixels: torch.Tensor) -> None:
    expected = logits(checkpoint, pixels)
    vit = vit_from_weights(checkpoint.architecture, dict(checkpoint.weights))
    with torch.inference_mode():
        found = vit(pixels.float()).logits
    assert found is not None
    assert 0 < relative(found.double(), expected) < RELATIVE / 3
