"""Seeded weights: the same everywhere, and logits that depend on the image."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vit_edge.checkpoints import Checkpoint, Request, load_checkpoint
from vit_edge.checkpoints.draw import drawn_tensors
from vit_edge.models.vit import parameter_shapes, vit_from_weights
from vit_edge.variants import VARIANTS, variant

requires = ("torch",)


def seeded(name: str, seed: int = 0) -> Checkpoint:
    return load_checkpoint(f"seeded:{seed}", Request(variant(name)))


def pixels_of(files: list[Path], checkpoint: Checkpoint) -> Tensor:
    """Photos, squashed to the model's size and scaled to -1..1."""
    height, width = checkpoint.architecture.image_hw
    images = [
        np.asarray(
            Image.open(file).convert("RGB").resize((width, height), Image.Resampling.BILINEAR),
            dtype=np.float32,
        )
        for file in files
    ]
    return torch.from_numpy(np.stack(images) / 127.5 - 1).permute(0, 3, 1, 2).contiguous()


def run(checkpoint: Checkpoint, files: list[Path]) -> tuple[Tensor, Tensor]:
    """Features and logits of photos; logits are empty without a head."""
    model = vit_from_weights(checkpoint.architecture, dict(checkpoint.weights))
    outputs = [model(batch) for batch in pixels_of(files, checkpoint).split(8)]
    logits = [output.logits for output in outputs if output.logits is not None]
    features = torch.cat([output.features for output in outputs])
    return features, torch.cat(logits) if logits else torch.empty(0)


@pytest.fixture(scope="module")
def files(shared_data: Path) -> list[Path]:
    found = sorted((shared_data / "images" / "imagenet").iterdir())
    assert len(found) >= 90
    return found


def assert_depends_on_the_image(logits: Tensor, classes: int) -> None:
    """The issue's three criteria."""
    top = logits.topk(2).values
    assert logits.std(dim=0).min() >= 1
    assert logits.argmax(dim=1).unique().numel() >= classes
    assert (top[:, 0] - top[:, 1]).median() >= 0.5


@pytest.mark.parametrize("seed", [0, 1, 7])
@pytest.mark.parametrize(("name", "classes"), [("testing", 4), ("vit-cifar10", 4)])
def test_logits_of_small_variants_depend_on_the_image(
    name: str, classes: int, seed: int, files: list[Path]
) -> None:
    assert_depends_on_the_image(run(seeded(name, seed), files)[1], classes)


def test_logits_of_tiny_depend_on_the_image(files: list[Path]) -> None:
    assert_depends_on_the_image(run(seeded("tiny-patch16-224"), files)[1], 20)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["base-patch16-224", "small-patch16-224-in21k", "deit-tiny-patch16-224"]
)
def test_logits_of_larger_variants_depend_on_the_image(name: str, files: list[Path]) -> None:
    assert_depends_on_the_image(run(seeded(name), files[::3])[1], 20)


@pytest.mark.slow
def test_features_of_headless_variants_depend_on_the_image(files: list[Path]) -> None:
    features, _ = run(seeded("small-patch8-224"), files[:6])
    varying = (features - features.mean(dim=0)).square().mean()
    assert varying >= 0.4 * features.square().mean()


def test_the_usual_initialisation_fails_the_criteria(files: list[Path]) -> None:
    """The check above must be able to fail."""
    checkpoint = seeded("tiny-patch16-224")
    generator = torch.Generator().manual_seed(0)
    for name, weight in checkpoint.weights.items():
        weight.normal_(0, 0.02, generator=generator)
        if "norm" in name and name.endswith("weight"):
            weight += 1
    with pytest.raises(AssertionError):
        assert_depends_on_the_image(run(checkpoint, files[:32])[1], 20)


@pytest.mark.parametrize("name", ["testing", "vit-cifar10", "tiny-patch16-224"])
def test_equal_seeds_give_equal_weights(name: str) -> None:
    one, other = seeded(name, 3), seeded(name, 3)
    assert one.weights.keys() == parameter_shapes(one.architecture).keys()
    for key, weight in one.weights.items():
        assert torch.equal(weight, other.weights[key]), key


def test_other_seeds_give_other_weights() -> None:
    one, other = seeded("testing", 0), seeded("testing", 1)
    for key, weight in one.weights.items():
        assert not torch.equal(weight, other.weights[key]), key


def test_weights_do_not_depend_on_the_order_of_reading() -> None:
    architecture = variant("testing").architecture
    forwards, backwards = drawn_tensors(architecture, 0), drawn_tensors(architecture, 0)
    found = {name: forwards[name].read() for name in forwards}
    for name in reversed(list(backwards)):
        assert torch.equal(backwards[name].read(), found[name]), name


def test_the_draw_never_changes() -> None:
    """Rounded, so that a last bit of another machine's logarithm does not matter."""
    tensors = drawn_tensors(variant("testing").architecture, 0)
    digest = hashlib.sha256()
    for name in sorted(tensors):
        rounded = np.round(tensors[name].read().double().numpy() * 1024).astype(np.int32)
        digest.update(rounded.tobytes())
    assert digest.hexdigest()[:16] == "0f0b8f1cabf533aa"


def test_no_two_tensors_are_the_same() -> None:
    weights = seeded("testing").weights
    seen = {tuple(weight.flatten()[:8].tolist()) for weight in weights.values()}
    assert len(seen) == len(weights)


def test_no_part_of_the_model_is_dead() -> None:
    """Leaving any parameter out must show in the answer, or a test with these weights is blind."""
    checkpoint = seeded("testing")
    generator = torch.Generator().manual_seed(0)
    pixels = 0.1 * torch.randn(4, 3, 64, 64, generator=generator)  # near a photo, once whitened
    expected = vit_from_weights(checkpoint.architecture, dict(checkpoint.weights))(pixels).logits
    assert expected is not None
    for name, weight in checkpoint.weights.items():
        kept = torch.ones_like(weight) if "norm" in name and "weight" in name else weight * 0
        weights = {**checkpoint.weights, name: kept}
        found = vit_from_weights(checkpoint.architecture, weights)(pixels).logits
        assert found is not None
        # 1e-3 is 100 times the bound of the fp32 parity gate.
        assert (found - expected).abs().max() > 1e-3 * expected.abs().max(), name


def test_labels_are_imagenets_for_a_thousand_classes() -> None:
    assert seeded("tiny-patch16-224").labels[281] == "tabby, tabby cat"
    assert seeded("testing").labels == tuple(f"class_{i}" for i in range(10))
    assert seeded("tiny-patch16-224-in21k").labels[:2] == ("class_00000", "class_00001")


def test_the_record_names_the_seed_and_no_file() -> None:
    record = seeded("testing", 12).record
    assert (record.source, record.sha256, record.revision) == ("seeded:12", {}, None)


def test_another_size_is_drawn_at_the_rows_size_and_interpolated() -> None:
    row = variant("testing")
    resized = load_checkpoint("seeded:0", Request(row, image_hw=(96, 32)))
    assert resized.record.position_interpolation is not None
    assert resized.preprocessing.crop_hw == resized.architecture.image_hw == (96, 32)


@pytest.mark.parametrize("row", VARIANTS.values(), ids=VARIANTS)
def test_every_parameter_of_every_variant_has_a_draw(row: object) -> None:
    architecture = variant(getattr(row, "name", "")).architecture
    tensors = drawn_tensors(architecture, 0)
    assert {name: tensor.shape for name, tensor in tensors.items()} == parameter_shapes(
        architecture
    )
