"""torchvision's own state_dicts: equal to torchvision, and to what it evaluates with."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.checkpoints.foreign import logits_of
from tests.data.torchvision_cases import CASES, RESIZED_PX, pixels, state
from vit_edge.bundle.bundle import sha256_of
from vit_edge.bundle.manifest import PositionInterpolation, Preprocessing
from vit_edge.checkpoints import Checkpoint, Request, load_checkpoint
from vit_edge.checkpoints.sources import torchvision
from vit_edge.errors import CheckpointError
from vit_edge.variants import IMAGENET_MEAN, IMAGENET_STD

requires = ("torch", "safetensors")

REFERENCE = np.load(Path(__file__).parents[1] / "data" / "torchvision_reference.npz")


def saved(where: Path, tensors: dict[str, Tensor]) -> str:
    torch.save(tensors, where / "vit_b_16.pth")
    return str(where / "vit_b_16.pth")


def assert_equal_to_torchvision(case: str, side_px: int, checkpoint: Checkpoint) -> None:
    found = logits_of(checkpoint, pixels(side_px)).numpy()
    expected = REFERENCE[f"{case}/{side_px}"]
    difference = np.abs(found - expected).max() / np.abs(expected).max()
    assert difference < (1e-9 if side_px == 64 else 1e-6)  # positions are resampled in float32


@pytest.mark.parametrize("prefix", ["", "torchvision:"])
@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_of_torchvision(case: str, prefix: str, tmp_path: Path) -> None:
    loaded = load_checkpoint(f"{prefix}{saved(tmp_path, state(case))}", Request())
    assert loaded.record.source.startswith("torchvision:")
    assert_equal_to_torchvision(case, 64, loaded)


@pytest.mark.parametrize("case", CASES)
def test_positions_move_as_torchvision_moves_them(case: str, tmp_path: Path) -> None:
    path = saved(tmp_path, state(case))
    loaded = load_checkpoint(path, Request(image_hw=(RESIZED_PX, RESIZED_PX)))
    assert_equal_to_torchvision(case, RESIZED_PX, loaded)
    moved = PositionInterpolation("bicubic-corners", (4, 4), (6, 6))
    assert loaded.record.position_interpolation == moved
    other = load_checkpoint(path, Request(None, (RESIZED_PX, RESIZED_PX), "bicubic"))
    with pytest.raises(AssertionError):
        assert_equal_to_torchvision(case, RESIZED_PX, other)


def renamed(old: str, new: str) -> dict[str, Tensor]:
    tensors = {name.replace(old, new): tensor for name, tensor in state("plain").items()}
    assert tensors.keys() != state("plain").keys()
    return tensors


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("heads.head.", "heads."),  # model.heads = Linear
        ("heads.head.", "heads.0."),  # model.heads = Sequential(Linear)
        ("heads.head.", "heads.1."),  # model.heads = Sequential(Dropout, Linear)
        ("heads.head.", "heads.head.1."),  # model.heads.head = Sequential(Dropout, Linear)
        ("heads.head.", "head."),
        ("", "module."),
        ("", "_orig_mod.module."),
        ("", "model."),
        ("", "encoder."),
    ],
)
def test_fine_tuned_and_wrapped_models_are_read(old: str, new: str, tmp_path: Path) -> None:
    tensors = {new + n: t for n, t in state("plain").items()} if not old else renamed(old, new)
    assert_equal_to_torchvision("plain", 64, load_checkpoint(saved(tmp_path, tensors), Request()))


def test_names_from_before_torchvision_0_13_are_read(tmp_path: Path) -> None:
    first = renamed("mlp.0", "mlp.linear_1")
    tensors = {name.replace("mlp.3", "mlp.linear_2"): t for name, t in first.items()}
    assert_equal_to_torchvision("plain", 64, load_checkpoint(saved(tmp_path, tensors), Request()))


def test_a_checkpoint_of_the_reference_scripts_is_read(tmp_path: Path) -> None:
    averaged = {"n_averaged": torch.tensor(3)}
    averaged |= {f"module.{name}": tensor * 2 for name, tensor in state("plain").items()}
    content = {
        "model": state("plain"),
        "optimizer": {"state": {}},
        "lr_scheduler": {"_last_lr": [0.1]},
        "epoch": 299,
        "args": argparse.Namespace(model="vit_b_16"),
        "model_ema": averaged,
    }
    torch.save(content, tmp_path / "checkpoint.pth")
    loaded = load_checkpoint(str(tmp_path / "checkpoint.pth"), Request())
    assert_equal_to_torchvision("plain", 64, loaded)
    other = load_checkpoint(str(tmp_path / "checkpoint.pth"), Request(key="model_ema"))
    assert torch.equal(other.weights["readout.head.bias"], state("plain")["heads.head.bias"] * 2)


def test_a_model_without_a_head_has_features_alone(tmp_path: Path) -> None:
    tensors = {n: t for n, t in state("plain").items() if not n.startswith("heads")}
    loaded = load_checkpoint(saved(tmp_path, tensors), Request())
    assert (loaded.architecture.num_classes, loaded.labels) == (0, ())


def deeper_head(tensors: dict[str, Tensor]) -> None:
    tensors["heads.0.weight"] = torch.zeros(5, 5)


def convolutions(tensors: dict[str, Tensor]) -> None:
    del tensors["conv_proj.weight"]
    tensors["conv_proj.conv_bn_relu_0.0.weight"] = torch.zeros(5, 5)


def other_depth(tensors: dict[str, Tensor]) -> None:
    for name in [name for name in tensors if "encoder_layer_1" in name]:
        del tensors[name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (deeper_head, r"head of several layers \(heads.0, heads.head\)"),
        (convolutions, "several convolutions before the blocks: conv_proj.conv_bn_relu_0"),
        (other_depth, "number of heads is not in the tensors"),
        (lambda tensors: tensors.pop("class_token"), r"missing \(1\):\n.*class_token"),
        (lambda tensors: tensors.pop("encoder.ln.bias"), r"missing \(1\):\n.*encoder.ln.bias"),
    ],
)
def test_other_models_are_refused_by_what_they_have(
    change: Callable[[dict[str, Tensor]], object], message: str, tmp_path: Path
) -> None:
    tensors = state("plain")
    change(tensors)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(saved(tmp_path, tensors), Request())


def steps(resize_px: int, interpolation: str) -> Preprocessing:
    hw = (resize_px, resize_px)
    return Preprocessing("cover", hw, (64, 64), interpolation, IMAGENET_MEAN, IMAGENET_STD)  # type: ignore[arg-type]


def test_published_weights_are_known_by_their_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """ViT_L_16 resizes to 242 for 224, SWAG's bicubically to the crop, the others to 256."""
    path = saved(tmp_path, state("plain"))
    published = sha256_of(Path(path))[:8]
    monkeypatch.setattr(torchvision, "_SWAG", (published,))
    assert load_checkpoint(path, Request()).preprocessing == steps(64, "bicubic")
    monkeypatch.setattr(torchvision, "_SWAG", ())
    monkeypatch.setitem(torchvision._RESIZED_PX, published, 242)
    assert load_checkpoint(path, Request()).preprocessing == steps(69, "bilinear")
    assert "keeps no preprocessing" not in caplog.text
    monkeypatch.delitem(torchvision._RESIZED_PX, published)
    assert load_checkpoint(path, Request()).preprocessing == steps(73, "bilinear")
    assert "taken: that of its reference scripts" in caplog.text
