"""The original .npz files."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.checkpoints.foreign import (
    HEADLESS,
    SMALL,
    assert_same_weights,
    jax_arrays,
    weights_of,
    write_jax,
)
from vit_edge.bundle.manifest import Preprocessing
from vit_edge.checkpoints import Request, load_checkpoint
from vit_edge.errors import CheckpointError

requires = ("torch", "safetensors")

HALF = (0.5, 0.5, 0.5)


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(f"jax:{path}", Request())
    return str(caught.value)


@pytest.mark.parametrize(
    "architecture", [SMALL, HEADLESS, replace(SMALL, qkv_bias=False, pre_logits_dim=12)], ids=str
)
def test_kernels_come_into_our_layout(architecture: Any, tmp_path: Path) -> None:
    path = write_jax(tmp_path / "x.npz", architecture, weights_of(architecture))
    loaded = load_checkpoint(f"jax:{path}", Request())
    assert loaded.architecture == architecture
    assert_same_weights(loaded, weights_of(architecture))


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">f2", "<f4", "f8", "f2", "g", ">g"])
def test_every_float_of_numpy_is_read(dtype: str, tmp_path: Path) -> None:
    """Big-endian ones come from SPARC and POWER, long doubles from a careless astype."""
    arrays = jax_arrays(weights_of(SMALL), SMALL.heads)
    np.savez(tmp_path / "x.npz", **{n: np.asarray(a, dtype) for n, a in arrays.items()})
    loaded = load_checkpoint(str(tmp_path / "x.npz"), Request())
    expected = {
        n: torch.from_numpy(np.asarray(np.asarray(t.numpy(), dtype), np.float32))
        for n, t in weights_of(SMALL).items()
    }
    assert_same_weights(loaded, expected)


@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_in_either_order_is_read(order: Any, tmp_path: Path) -> None:
    arrays = jax_arrays(weights_of(SMALL), SMALL.heads)
    np.savez(tmp_path / "x.npz", **{n: np.asarray(a, ">f4", order) for n, a in arrays.items()})
    loaded = load_checkpoint(str(tmp_path / "x.npz"), Request())
    assert_same_weights(loaded, weights_of(SMALL))


@pytest.mark.parametrize("dtype", ["c8", "U3", "S3", "M8[s]"])
def test_what_is_no_number_is_refused(dtype: str, tmp_path: Path) -> None:
    arrays = jax_arrays(weights_of(SMALL), SMALL.heads)
    arrays["head/bias"] = np.zeros(5, dtype)
    np.savez(tmp_path / "x.npz", **arrays)
    assert "head/bias.npy: refused: of dtype" in refused(tmp_path / "x.npz")


@pytest.mark.parametrize("prefix", ["jax:", ""])
@pytest.mark.parametrize(
    ("rename", "message"),
    [
        (lambda name: f"opt/target/{name}", "the state of a training (opt/target/"),
        (lambda name: f"params/{name}", "the state of a training (params/"),
        (lambda name: f"optimizer/target/{name}", "the state of a training (optimizer/"),
        (
            lambda name: name.replace("embedding/", "conv_root/"),
            "a ResNet before the patches (hybrid, such as R50+ViT-B_16): conv_root/",
        ),
        (
            lambda name: name.replace("embedding/", "block1/unit1/conv1/"),
            "a ResNet before the patches (hybrid, such as R50+ViT-B_16): block1/unit1/conv1",
        ),
    ],
)
def test_other_files_of_the_same_authors_are_named(
    rename: Any, message: str, prefix: str, tmp_path: Path
) -> None:
    arrays = jax_arrays(weights_of(SMALL), SMALL.heads)
    np.savez(tmp_path / "x.npz", **{rename(name): array for name, array in arrays.items()})
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(f"{prefix}{tmp_path / 'x.npz'}", Request())
    assert message in str(caught.value)


def test_preprocessing_is_that_of_the_paper_at_the_checkpoints_size(tmp_path: Path) -> None:
    path = write_jax(tmp_path / "x.npz", SMALL, weights_of(SMALL))
    loaded = load_checkpoint(str(path), Request())
    assert loaded.preprocessing == Preprocessing(
        "squash", (32, 32), (32, 32), "bilinear", HALF, HALF
    )


def test_bfloat16_saved_as_raw_bytes_is_read_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = weights_of(SMALL)
    arrays = jax_arrays(weights, SMALL.heads)
    rounded = weights["readout.head.weight"].to(torch.bfloat16)
    arrays["head/kernel"] = rounded.view(torch.int16).numpy().view("V2")
    np.savez(tmp_path / "x.npz", **arrays)
    with caplog.at_level(logging.INFO):
        loaded = load_checkpoint(str(tmp_path / "x.npz"), Request())
    assert torch.equal(loaded.weights["readout.head.weight"], rounded.float())
    assert "bfloat16 weights are converted" in caplog.text


def test_missing_and_extra_arrays_are_listed(tmp_path: Path) -> None:
    arrays = jax_arrays(weights_of(SMALL), SMALL.heads)
    arrays["extra"] = arrays.pop("cls")
    np.savez(tmp_path / "x.npz", **arrays)
    message = refused(tmp_path / "x.npz")
    assert "missing (1):" in message
    assert "cls [1, 1, 32]" in message
    assert "extra [1, 1, 32]" in message


def test_positions_that_are_no_square_are_refused(tmp_path: Path) -> None:
    a = replace(SMALL, image_hw=(32, 24))
    path = write_jax(tmp_path / "x.npz", a, weights_of(a))
    assert "has 13 rows, expected a square grid" in refused(path)


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    arrays = jax_arrays(weights_of(SMALL), SMALL.heads)
    arrays["cls"] = np.array([{"code": "anything"}], dtype=object)
    np.savez(tmp_path / "x.npz", **arrays)
    assert "cls" in refused(tmp_path / "x.npz")


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_a_truncated_npz_is_refused(tmp_path: Path, keep: float) -> None:
    path = write_jax(tmp_path / "x.npz", SMALL, weights_of(SMALL))
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if 0 < keep < 1 else int(keep)])
    assert "not a sound .npz" in refused(path)


def test_a_flipped_byte_is_refused(tmp_path: Path) -> None:
    path = write_jax(tmp_path / "x.npz", SMALL, weights_of(SMALL))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    assert "damaged" in refused(path)


def test_another_npz_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.zeros(3))
    assert "google-research/vision_transformer" in refused(tmp_path / "x.npz")


def test_a_block_number_without_end_is_refused_at_once(tmp_path: Path) -> None:
    arrays = jax_arrays(weights_of(SMALL), SMALL.heads)
    arrays["Transformer/encoderblock_999999999/LayerNorm_0/scale"] = np.zeros(32)
    np.savez(tmp_path / "x.npz", **arrays)
    assert "depth: 1000000000 is too large; at most 1000" in refused(tmp_path / "x.npz")
