"""A zero-shot head of text embeddings: equal to CLIPModel of transformers, and strict."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.checkpoints.foreign import (
    SMALL,
    timm_config,
    timm_tensors,
    weights_of,
    write_hf,
    write_json,
)
from tests.checkpoints.test_hf_clip import drawn, ours, pixels, saved
from vit_edge.checkpoints import Checkpoint, Request, load_checkpoint
from vit_edge.errors import CheckpointError, UsageError

requires = ("torch", "safetensors", "transformers")

CLASSES, WIDTH = 7, 24
TOKENS = torch.randint(1, 48, (CLASSES, 8), generator=torch.Generator().manual_seed(0))
TOKENS[:, 0], TOKENS[:, -1] = 48, 49


def written(folder: Path, rows: Any, classes: int | None = None) -> Request:
    """A request with these embeddings and as many labels."""
    np.save(folder / "texts.npy", rows)
    count = len(rows) if classes is None else classes
    (folder / "labels.txt").write_text("".join(f"a photo of {i}\n" for i in range(count)))
    return Request(labels=folder / "labels.txt", text_embeddings=folder / "texts.npy")


def some_rows(classes: int = CLASSES, width: int = WIDTH) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).standard_normal((classes, width)).astype(np.float32)


def zero_shot(folder: Path, kind: str = "CLIPModel", **changes: Any) -> Checkpoint:
    source = saved(drawn(kind), folder / "model")
    return load_checkpoint(source, replace(written(folder, some_rows()), **changes))


def features(found: Any) -> torch.Tensor:
    """What transformers 4 returns alone, and 5 within an object."""
    tensor: torch.Tensor = getattr(found, "pooler_output", found)
    return tensor


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-9)], ids=["float32", "float64"]
)
def test_logits_are_those_per_image_of_transformers(
    dtype: torch.dtype, bound: float, tmp_path: Path
) -> None:
    """Of the texts that transformers itself embeds, in the type that it computes in."""
    model = drawn("CLIPModel")
    source = saved(model, tmp_path / "model")
    model = model.to(dtype)
    with torch.no_grad():
        texts = features(model.get_text_features(TOKENS))
        expected = model(input_ids=TOKENS, pixel_values=pixels().to(dtype)).logits_per_image
    checkpoint = load_checkpoint(source, written(tmp_path, texts.numpy()))
    found = ours(checkpoint, pixels().to(dtype)).logits
    assert found is not None
    assert float((found - expected).abs().max() / expected.abs().max()) <= bound
    assert checkpoint.labels[6] == "a photo of 6"
    assert not checkpoint.labels_invented


def test_the_head_is_recorded(tmp_path: Path) -> None:
    checkpoint = zero_shot(tmp_path)
    assert checkpoint.architecture.num_classes == CLASSES
    assert checkpoint.architecture.logit_scale == pytest.approx(float(np.exp(3.1)), rel=1e-6)
    assert "texts.npy" in checkpoint.record.sha256


@pytest.mark.parametrize("factor", [1e-6, 3.0, 1e6])
def test_the_length_of_a_row_does_not_count(factor: float, tmp_path: Path) -> None:
    rows = some_rows()
    source = saved(drawn("CLIPModel"), tmp_path / "model")
    once = ours(load_checkpoint(source, written(tmp_path, rows)), pixels()).logits
    rows[3] *= np.float32(factor)
    again = ours(load_checkpoint(source, written(tmp_path, rows)), pixels()).logits
    assert once is not None
    assert again is not None
    assert float((once - again).abs().max() / once.abs().max()) <= 1e-6


def test_a_scale_that_is_given_wins(tmp_path: Path) -> None:
    assert zero_shot(tmp_path, logit_scale=2.5).architecture.logit_scale == 2.5


def test_without_a_scale_100_is_assumed_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        checkpoint = zero_shot(tmp_path, "CLIPVisionModelWithProjection")
    assert checkpoint.architecture.logit_scale == 100
    assert "100 is assumed" in caplog.text
    caplog.clear()
    zero_shot(tmp_path / "said", "CLIPVisionModelWithProjection", logit_scale=50.0)
    assert "assumed" not in caplog.text


@pytest.mark.parametrize("dtype", ["float16", "float64", ">f4", "longdouble"])
def test_any_floating_point_type_is_read(dtype: str, tmp_path: Path) -> None:
    source = saved(drawn("CLIPModel"), tmp_path / "model")
    rows = some_rows().astype(np.float16)
    checkpoint = load_checkpoint(source, written(tmp_path, rows.astype(dtype)))
    kept = checkpoint.weights["readout.head.weight"].numpy()
    assert kept.dtype == (np.float32 if np.dtype(dtype).itemsize <= 4 else np.float64)
    np.testing.assert_array_equal(kept, rows.astype(np.float32).T)
    assert ours(checkpoint, pixels().float()).logits is not None


def with_row(value: float, row: int = 2) -> np.ndarray[Any, Any]:
    rows = some_rows()
    rows[row] = value
    return rows


def nan_in_one_place() -> np.ndarray[Any, Any]:
    rows = some_rows()
    rows[4, 3] = np.nan
    return rows


BAD_ROWS: dict[str, tuple[Any, str]] = {
    "NaN": (nan_in_one_place(), "rows 4 .*NaN"),
    "infinite": (with_row(np.inf), "rows 2 .*infinite"),
    "beyond float32": (some_rows().astype(np.float64) * 1e300, "rows 0, 1, 2, 3, 4 and 2 more"),
    "zeros": (with_row(0.0), "rows 2 .*all zeros, which is no direction"),
    "as good as zero": (with_row(1e-30), "rows 2 .*lengths of no embedding"),
    "huge": (with_row(1e20), "rows 2 .*lengths of no embedding"),
    "another width": (some_rows(width=WIDTH - 1), r"7 rows of 23 values.* have 24\. Make"),
    "transposed": (some_rows().T, "24 rows of 7 values.*transposed"),
    "one axis": (some_rows()[0], r"found float32\[24\], expected .*\[classes, width\]"),
    "three axes": (some_rows()[None], r"found float32\[1, 7, 24\]"),
    "no rows": (some_rows()[:0], r"found float32\[0, 24\]"),
    "no width": (some_rows()[:, :0], r"found float32\[7, 0\]"),
    "integers": (np.ones((CLASSES, WIDTH), np.int64), "found int64.*floating-point"),
    "booleans": (np.ones((CLASSES, WIDTH), bool), "found bool"),
    "complex": (np.ones((CLASSES, WIDTH), np.complex64), "found complex64"),
    "text": (np.full((CLASSES, WIDTH), "x"), "found <U1"),
    "objects": (np.full((CLASSES, WIDTH), None), r"cannot be read as \.npy"),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_what_is_no_array_of_embeddings_is_refused(kind: str, tmp_path: Path) -> None:
    rows, words = BAD_ROWS[kind]
    source = saved(drawn("CLIPModel"), tmp_path / "model")
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(source, written(tmp_path, rows))


def test_files_that_are_no_npy_are_refused(tmp_path: Path) -> None:
    source = saved(drawn("CLIPModel"), tmp_path / "model")
    request = written(tmp_path, some_rows())
    file = tmp_path / "texts.npy"
    whole = file.read_bytes()
    contents = {
        "nothing": b"",
        "text": b"0.1 0.2 0.3\n",
        "half": whole[: len(whole) // 2],
        "a header alone": whole[:20],
        "a pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    }
    for content in contents.values():
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"texts\.npy"):
            load_checkpoint(source, request)
    np.savez(tmp_path / "texts.npz", rows=some_rows())
    (tmp_path / "texts.npz").replace(file)
    with pytest.raises(CheckpointError, match="an archive of arrays"):
        load_checkpoint(source, request)
    file.unlink()
    with pytest.raises(CheckpointError, match="no such file"):
        load_checkpoint(source, request)
    file.mkdir()
    with pytest.raises(CheckpointError, match="no such file"):
        load_checkpoint(source, request)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_fifo_does_not_block(tmp_path: Path) -> None:
    source = saved(drawn("CLIPModel"), tmp_path / "model")
    request = written(tmp_path, some_rows())
    (tmp_path / "texts.npy").unlink()
    os.mkfifo(tmp_path / "texts.npy")
    with pytest.raises(CheckpointError, match="no such file"):
        load_checkpoint(source, request)


@pytest.mark.parametrize("classes", [CLASSES - 1, CLASSES + 1, 0])
def test_another_number_of_labels_is_refused(classes: int, tmp_path: Path) -> None:
    source = saved(drawn("CLIPModel"), tmp_path / "model")
    with pytest.raises(CheckpointError, match=f"{classes} labels, but the logits have 7"):
        load_checkpoint(source, written(tmp_path, some_rows(), classes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": None}, "--text-embeddings needs --labels"),
        ({"text_embeddings": None, "logit_scale": 5.0}, "--logit-scale is for a head"),
        ({"logit_scale": 0.0}, "--logit-scale must lie above 0"),
        ({"logit_scale": -1.0}, "--logit-scale must lie above 0"),
        ({"logit_scale": float("nan")}, "--logit-scale must lie above 0"),
        ({"logit_scale": float("inf")}, "--logit-scale must lie above 0"),
    ],
    ids=str,
)
def test_half_a_head_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        zero_shot(tmp_path, **changes)


def test_a_head_that_is_there_gives_way_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_hf(tmp_path / "vit", SMALL, weights_of(SMALL))
    request = written(tmp_path, some_rows(width=SMALL.width))
    with caplog.at_level(logging.WARNING):
        checkpoint = load_checkpoint(f"hf:{path}", request)
    assert "its head of 5 classes gives way" in caplog.text
    assert checkpoint.architecture.projection_dim is None
    assert checkpoint.architecture.num_classes == len(checkpoint.labels) == CLASSES
    assert checkpoint.scores is None


def test_the_head_that_timm_makes_of_clips_projection_is_taken_for_it(tmp_path: Path) -> None:
    """timm's own features, projected: its head answers the embedding."""
    shape = replace(SMALL, num_classes=WIDTH, norm_pre=True)
    weights = weights_of(shape)
    weights["readout.head.bias"] = torch.zeros(WIDTH)
    tensors = timm_tensors(weights)
    tensors["norm_pre.weight"], tensors["norm_pre.bias"] = (
        tensors.pop(f"embedding.norm.{leaf}") for leaf in ("weight", "bias")
    )
    folder = tmp_path / "timm"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    write_json(folder / "config.json", timm_config(shape))
    embedding = ours(load_checkpoint(f"timm:{folder}", Request()), pixels()).logits
    checkpoint = load_checkpoint(f"timm:{folder}", written(tmp_path, some_rows()))
    assert checkpoint.architecture.projection_dim == WIDTH
    found = ours(checkpoint, pixels())
    assert embedding is not None
    assert float((found.features - embedding).abs().max()) <= 1e-12
