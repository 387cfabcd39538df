"""Damaged, hostile and doubled weight files."""

from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.checkpoints.foreign import (
    SMALL,
    assert_same_weights,
    hf_tensors,
    weights_of,
    write_hf,
    write_json,
)
from vit_edge.checkpoints import Request, load_checkpoint
from vit_edge.checkpoints import _pickled as pickled
from vit_edge.checkpoints._files import open_weights
from vit_edge.checkpoints._safetensors import open_safetensors
from vit_edge.errors import CheckpointError

requires = ("torch", "safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound Hugging Face directory."""
    return write_hf(tmp_path / "checkpoint", SMALL, weights_of(SMALL))


def refused(folder: Path) -> str:
    """The message with which a directory is refused."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(f"hf:{folder}", Request())
    return str(caught.value)


def safetensors_bytes(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize("keep", [0, 7, 8, 100, 0.5, -1])
def test_a_truncated_safetensors_file_is_refused(folder: Path, keep: float) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if 0 < keep < 1 else int(keep)])
    assert "truncated" in refused(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (safetensors_bytes({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, bytes(12)), "overlaps"),
        (safetensors_bytes({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, bytes(12)), "a hole"),
        (safetensors_bytes({"a": entry(0, 4, [1])}, bytes(8)), "trailing bytes"),
        (safetensors_bytes({"a": entry(0, 8, [1])}, bytes(8)), "do not hold F32"),
        (safetensors_bytes({"a": entry(-4, 0, [1])}, bytes(8)), "no list of sizes"),
        (safetensors_bytes({"a": entry(0, 4, [-1, -1])}, bytes(4)), "no list of sizes"),
        (safetensors_bytes({"a": entry(0, 4, [1], "F99")}, bytes(4)), "unknown dtype 'F99'"),
        (safetensors_bytes({"a": {"shape": [1]}}), "exactly dtype, shape and data_offsets"),
        (safetensors_bytes([1]), "no JSON object"),
        (safetensors_bytes(b"{nonsense"), "not JSON"),
        (safetensors_bytes(b"[" * 100_000), "not JSON"),
        ((1 << 62).to_bytes(8, "little") + b"{}", "truncated"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_hostile_safetensors_header_is_refused(
    folder: Path, content: bytes, message: str
) -> None:
    (folder / "model.safetensors").write_bytes(content)
    assert message in refused(folder)


@given(st.binary(max_size=300))
def test_random_bytes_are_no_safetensors_file(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("x") / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        open_safetensors(path)


@given(st.integers(0, 1000), st.integers(0, 255))
def test_a_changed_header_byte_is_refused_or_changes_names_only(
    tmp_path_factory: pytest.TempPathFactory, position: int, value: int
) -> None:
    path = tmp_path_factory.mktemp("x") / "model.safetensors"
    save_file({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2)}, path)
    data = bytearray(path.read_bytes())
    data[position % (len(data) - 32)] = value
    path.write_bytes(data)
    try:
        tensors = open_safetensors(path)
    except CheckpointError:
        return
    assert sum(tensor.read().numel() for tensor in tensors.values()) <= 8


def test_our_safetensors_reader_agrees_with_the_library(folder: Path) -> None:
    path = folder / "model.safetensors"
    expected = load_file(path)
    found = open_safetensors(path)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name].read(), tensor), name


def test_pickled_weights_are_read(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(hf_tensors(weights_of(SMALL)), folder / "pytorch_model.bin")
    assert_same_weights(load_checkpoint(str(folder), Request()), weights_of(SMALL))


def test_the_old_pickle_format_is_read_and_said(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    torch.save(hf_tensors(weights_of(SMALL)), path, _use_new_zipfile_serialization=False)
    with caplog.at_level(logging.INFO):
        loaded = load_checkpoint(str(folder), Request())
    assert_same_weights(loaded, weights_of(SMALL))
    assert "before 1.6" in caplog.text


@pytest.mark.parametrize("nest", ["state_dict", "model"])
def test_a_nested_state_dict_is_found(folder: Path, nest: str) -> None:
    (folder / "model.safetensors").unlink()
    tensors = {f"module.{n}": t for n, t in hf_tensors(weights_of(SMALL)).items()}
    torch.save({nest: tensors, "epoch": 3}, folder / "pytorch_model.bin")
    assert_same_weights(load_checkpoint(str(folder), Request()), weights_of(SMALL))


def test_safetensors_win_over_a_pickle_and_the_log_says_so(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(hf_tensors(weights_of(SMALL, seed=1)), folder / "pytorch_model.bin")
    with caplog.at_level(logging.INFO):
        loaded = load_checkpoint(str(folder), Request())
    assert_same_weights(loaded, weights_of(SMALL))
    assert "reading model.safetensors, not pytorch_model.bin" in caplog.text


class Canary:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("old_format", [True, False])
def test_a_pickle_that_runs_code_is_refused_and_runs_none(
    folder: Path, tmp_path: Path, old_format: bool
) -> None:
    (folder / "model.safetensors").unlink()
    canary, path = tmp_path / "canary", folder / "pytorch_model.bin"
    torch.save({"a": Canary(canary)}, path, _use_new_zipfile_serialization=not old_format)
    assert "Only tensors are loaded, never code" in refused(folder)
    assert not canary.exists()


def test_a_bare_pickle_that_runs_code_is_refused_too(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    canary = tmp_path / "canary"
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Canary(canary), protocol=2))
    assert "refused" in refused(folder)
    assert not canary.exists()


def test_the_canary_would_sing(tmp_path: Path) -> None:
    """The check above must be able to fail."""
    pickle.loads(pickle.dumps(Canary(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04garbage", b"\x80\x02garbage", b"<html>"])
def test_a_damaged_pickle_is_refused(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(content)
    assert "pytorch_model.bin" in refused(folder)


def test_an_old_torch_refuses_pickles(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(hf_tensors(weights_of(SMALL)), folder / "pytorch_model.bin")
    monkeypatch.setattr(pickled.torch, "__version__", "2.5.1+cpu")
    assert "torch >= 2.10, this is 2.5.1" in refused(folder)


@pytest.mark.parametrize("content", [[1, 2], {"a": 3}, {1: torch.zeros(1)}, torch.zeros(1)])
def test_a_pickle_of_something_else_is_refused(folder: Path, content: Any) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin")
    assert "expected" in refused(folder)


def shard(folder: Path, suffix: str = "safetensors") -> dict[str, str]:
    """Replace the weights by two shards and an index; returns its weight_map."""
    tensors = hf_tensors(weights_of(SMALL))
    (folder / "model.safetensors").unlink()
    stem, save = ("model", save_file) if suffix == "safetensors" else ("pytorch_model", torch.save)
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"{stem}-{number:05}-of-00002.{suffix}"
        save({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    write_json(folder / f"{stem}.{suffix}.index.json", {"weight_map": weight_map})
    return weight_map


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_are_put_together(folder: Path, suffix: str) -> None:
    shard(folder, suffix)
    assert_same_weights(load_checkpoint(str(folder), Request()), weights_of(SMALL))


@pytest.mark.parametrize(
    "name", ["../evil.safetensors", "/etc/passwd", "sub/x.safetensors", "..\\x", "", ".."]
)
def test_a_shard_outside_the_directory_is_refused(folder: Path, name: str) -> None:
    weight_map = shard(folder)
    weight_map["classifier.bias"] = name
    write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})
    message = refused(folder)
    assert repr(name) in message
    assert "plain file names" in message


def test_a_missing_shard_is_named(folder: Path) -> None:
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "shards are missing: model-00002-of-00002.safetensors" in refused(folder)


def test_shards_that_contradict_their_index_are_refused(folder: Path) -> None:
    weight_map = shard(folder)
    moved = weight_map.pop("classifier.bias")
    weight_map["ghost"] = moved
    write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})
    message = refused(folder)
    assert "ghost is missing" in message
    assert "classifier.bias is not in the index" in message


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": {"a": 1}}])
def test_an_index_without_a_weight_map_is_refused(folder: Path, index: object) -> None:
    shard(folder)
    write_json(folder / "model.safetensors.index.json", index)
    assert "weight_map" in refused(folder)


def test_a_directory_without_weights_lists_what_it_has(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    message = refused(folder)
    assert "expected one of model.safetensors" in message
    assert "weights.safetensors" in message


def test_an_unknown_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(CheckpointError, match="not a kind of weight file"):
        open_weights(tmp_path / "model.onnx")
