"""The trained checkpoint in its three forms, and the copy that the package carries."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest
import torch

from tests.checkpoints.foreign import logits_of
from vit_edge.checkpoints import Request, load_checkpoint
from vit_edge.variants import variant

requires = ("torch", "safetensors")


@pytest.fixture(scope="module")
def folder(shared_data: Path) -> Path:
    return shared_data / "checkpoints" / "vit-cifar10"


def logits(source: object) -> torch.Tensor:
    checkpoint = load_checkpoint(str(source), Request())
    assert checkpoint.variant == "vit-cifar10"
    generator = torch.Generator().manual_seed(0)
    return logits_of(checkpoint, torch.randn(16, 3, 32, 32, generator=generator))


def test_the_hf_and_npz_forms_agree(folder: Path) -> None:
    hf, npz = logits(folder / "hf"), logits(folder / "jax" / "vit-cifar10.npz")
    assert (hf - npz).abs().max() <= 1e-6


def test_the_timm_form_is_the_hf_form_rounded_to_float16(folder: Path) -> None:
    hf = load_checkpoint(str(folder / "hf"), Request())
    timm = load_checkpoint(str(folder / "timm"), Request())
    for name, weight in hf.weights.items():
        assert torch.equal(timm.weights[name], weight.half().float()), name


def test_the_embedded_form_is_the_hf_form_rounded_to_float16(folder: Path) -> None:
    hf = load_checkpoint(str(folder / "hf"), Request())
    embedded = load_checkpoint("embedded", Request(variant("vit-cifar10")))
    for name, weight in hf.weights.items():
        assert torch.equal(embedded.weights[name], weight.half().float()), name
    assert (embedded.labels, embedded.preprocessing) == (hf.labels, hf.preprocessing)


def test_the_embedded_checkpoint_is_small_enough_for_a_wheel() -> None:
    data = resources.files("vit_edge") / "data" / "vit-cifar10"
    assert sum(len(file.read_bytes()) for file in data.iterdir()) < 8_000_000


def test_labels_and_source_are_recorded() -> None:
    embedded = load_checkpoint("embedded", Request())
    assert embedded.labels[3] == "cat"
    assert embedded.record.source == "embedded"
    assert set(embedded.record.sha256) == {
        "config.json",
        "preprocessor_config.json",
        "model.safetensors",
    }


def test_the_embedded_checkpoint_is_refused_for_another_variant() -> None:
    from vit_edge.errors import CheckpointError

    with pytest.raises(CheckpointError, match="is no testing"):
        load_checkpoint("embedded", Request(variant("testing")))
