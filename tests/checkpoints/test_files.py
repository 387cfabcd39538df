"""Damaged, hostile and doubled weight files."""

from __future__ import annotations

import argparse
import json
import logging
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.checkpoints.foreign import (
    SMALL,
    assert_same_weights,
    hf_tensors,
    timm_tensors,
    weights_of,
    write_hf,
    write_json,
)
from vit_edge.checkpoints import Request, load_checkpoint, pickled
from vit_edge.checkpoints.files import open_weights
from vit_edge.checkpoints.npz import open_npz
from vit_edge.checkpoints.safetensors import open_safetensors
from vit_edge.checkpoints.text import one_line
from vit_edge.errors import CheckpointError
from vit_edge.variants import variant

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
    message = refused(folder)
    assert "model.safetensors: truncated, or not a sound" in message
    assert "Download or save it again" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            safetensors_bytes({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, bytes(12)),
            "invalid offset for tensor `b`",  # it overlaps the one before
        ),
        (
            safetensors_bytes({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, bytes(12)),
            "invalid offset for tensor `b`",  # there is a hole before it
        ),
        (
            safetensors_bytes({"a": entry(0, 4, [1])}, bytes(8)),
            "file not fully covered",
        ),
        (
            safetensors_bytes({"a": entry(0, 4, [1])}, bytes(3)),
            "file not fully covered",
        ),
        (
            safetensors_bytes({"a": entry(0, 8, [1])}, bytes(8)),
            "invalid shape, data type, or offset",
        ),
        (safetensors_bytes({"a": entry(-4, 0, [1])}, bytes(8)), "integer `-4`"),
        (safetensors_bytes({"a": entry(0, 4, [-1, -1])}, bytes(4)), "integer `-1`"),
        (safetensors_bytes({"a": entry(0, 4, [1 << 62, 4])}, bytes(4)), "overflow"),
        (safetensors_bytes({"a": entry(0, 4, [1], "F99")}, bytes(4)), "unknown variant `F99`"),
        (safetensors_bytes({"a": {"shape": [1]}}), "missing field `dtype`"),
        (
            # twice the same name: a reader that takes the last sees a hole
            safetensors_bytes(
                b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
                b'"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
                bytes(8),
            ),
            "invalid offset for tensor `a`",
        ),
        (safetensors_bytes([1]), "invalid JSON"),
        (safetensors_bytes(b"{nonsense"), "invalid JSON"),
        (safetensors_bytes(b"[" * 100_000), "invalid JSON"),
        ((1 << 62).to_bytes(8, "little") + b"{}", "header too large"),
        ((100_000_001).to_bytes(8, "little") + b" " * 100_000_001, "header too large"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_hostile_safetensors_header_is_refused(
    folder: Path, content: bytes, message: str
) -> None:
    (folder / "model.safetensors").write_bytes(content)
    text = refused(folder)
    assert "model.safetensors: truncated, or not a sound safetensors file" in text
    assert message in text


def test_weights_of_a_type_that_no_model_has_are_refused(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["classifier.bias"] = tensors["classifier.bias"].to(torch.int32)
    save_file(tensors, folder / "model.safetensors")
    assert "weights of dtype I32 cannot be read; expected one of F64" in refused(folder)


def test_a_file_cut_after_it_was_opened_is_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = open_safetensors(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="truncated"):
        next(iter(tensors.values())).read()


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
        assert sum(tensor.read().numel() for tensor in open_safetensors(path).values()) <= 8
    except CheckpointError:
        return


def test_a_safetensors_file_is_read_as_the_library_reads_it_whole(folder: Path) -> None:
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


def damaged(data: bytes, generator: random.Random) -> bytes:
    """Change, drop or double a few bytes; most changes meet the headers at both ends."""
    changed = bytearray(data)
    for _ in range(generator.randint(1, 6)):
        reach = generator.choice([len(changed), min(200, len(changed))])
        position = generator.randrange(reach)
        if generator.random() < 0.5:
            position = len(changed) - 1 - position
        kind = generator.random()
        if kind < 0.8:
            changed[position] = generator.randrange(256)
        elif kind < 0.9:
            del changed[position : position + generator.randint(1, 9)]
        else:
            changed[position:position] = changed[position : position + 9]
    return bytes(changed)


def every_kind_of_weights(folder: Path) -> dict[str, bytes]:
    """Small sound files: name -> bytes."""
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2)}
    torch.save(tensors, folder / "new.pth")
    torch.save(tensors, folder / "old.pth", _use_new_zipfile_serialization=False)
    np.savez(folder / "plain.npz", a=np.arange(6.0), b=np.ones(2))
    np.savez_compressed(folder / "packed.npz", a=np.arange(6.0), b=np.ones(2))
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["new.pth", "old.pth", "plain.npz", "packed.npz"])
def test_damaged_bytes_are_read_or_refused_but_nothing_else(name: str, tmp_path: Path) -> None:
    sound = every_kind_of_weights(tmp_path)[name]
    generator, refusals = random.Random(name), []
    path = tmp_path / f"damaged-{name}"
    for _ in range(400):
        path.write_bytes(damaged(sound, generator))
        try:
            tensors = open_npz(path) if path.suffix == ".npz" else open_weights(path).tensors
            assert sum(tensor.read().numel() for tensor in tensors.values()) < 100
        except CheckpointError as error:
            refusals.append(str(error))
    assert len(refusals) > 100
    assert all(message.isprintable() for message in refusals)


def test_an_encrypted_npz_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.ones(2))
    data = bytearray((tmp_path / "x.npz").read_bytes())
    data[6] |= 1  # of the local header
    data[data.index(b"PK\x01\x02") + 8] |= 1  # of the directory
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(CheckpointError, match="encrypted"):
        open_npz(tmp_path / "x.npz")


def test_an_npz_that_promises_more_than_it_has_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive, archive.open("a.npy", "w") as member:
        header = {"descr": "<f4", "fortran_order": False, "shape": (1 << 40,)}
        np.lib.format.write_array_header_1_0(member, header)
    with pytest.raises(CheckpointError, match="less data than its shape"):
        open_npz(tmp_path / "x.npz")


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1).expand(1 << 40),
        torch.zeros(2, dtype=torch.complex64),
        torch.zeros(2).to_sparse(),
        torch.zeros(1 << 40, device="meta"),
    ],
    ids=["expanded", "complex", "sparse", "meta"],
)
def test_a_tensor_that_is_not_there_whole_is_refused(tensor: torch.Tensor, tmp_path: Path) -> None:
    torch.save({"a": tensor}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="x.pth"):
        open_weights(tmp_path / "x.pth")


def test_escapes_of_strangers_do_not_reach_the_terminal(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["\x1b[2J\x1b[31mred\nnext"] = torch.zeros(1)
    save_file(tensors, folder / "model.safetensors")
    assert "red next [1]" in refused(folder)
    assert "\x1b" not in refused(folder)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07text", "text"),
        (" a\r\n\tb\u2028c\x00 ", "a b c"),
        (
            "caf\u00e9 \u732b \U0001f469\u200d\U0001f52c",
            "caf\u00e9 \u732b \U0001f469\u200d\U0001f52c",
        ),
    ],
)
def test_text_of_strangers_becomes_one_line(text: str, expected: str) -> None:
    assert one_line(text) == expected


def trained(folder: Path, **more: Any) -> Path:
    """What timm's train.py leaves behind, cut down."""
    weights = weights_of(variant("testing").architecture)
    averaged = weights_of(variant("testing").architecture, seed=1)
    checkpoint = {
        "epoch": 7,
        "arch": "vit_tiny_patch16_224",
        "state_dict": timm_tensors(weights),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]},
        "version": 2,
        "args": argparse.Namespace(model="vit_tiny_patch16_224", lr=0.1, mean=None, amp=True),
        "state_dict_ema": timm_tensors(averaged),
        "metric": 81.2,
        **more,
    }
    torch.save(checkpoint, folder / "model_best.pth.tar")
    return folder / "model_best.pth.tar"


@pytest.mark.parametrize("prefix", ["", "timm:"])
def test_a_checkpoint_of_timms_training_is_read_and_each_choice_said_once(
    prefix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    row = variant("testing")
    with caplog.at_level(logging.INFO):
        loaded = load_checkpoint(f"{prefix}{trained(tmp_path)}", Request(row))
    assert_same_weights(loaded, weights_of(row.architecture))
    assert caplog.text.count("reading 'state_dict', not arch, args, epoch") == 1
    assert caplog.text.count("'state_dict_ema', are there and not used") == 1


def test_other_objects_than_a_namespace_are_still_refused(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    path = trained(tmp_path, args=argparse.Namespace(hidden=Canary(canary)))
    with pytest.raises(CheckpointError, match="Only tensors are loaded, never code"):
        load_checkpoint(str(path), Request(variant("testing")))
    assert not canary.exists()


def test_a_namespace_is_let_through_for_that_call_alone(tmp_path: Path) -> None:
    path = trained(tmp_path)
    load_checkpoint(str(path), Request(variant("testing")))
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


@pytest.mark.parametrize("name", ["x.pth", "x.npz", "x.safetensors", "x.pth.tar"])
def test_a_damaged_file_without_a_source_gives_the_real_reason(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04 and nothing more")
    with pytest.raises(CheckpointError, match="damaged|not a sound|not a safetensors") as caught:
        load_checkpoint(str(tmp_path / name), Request())
    assert "no checkpoint recognised" not in str(caught.value)


def test_a_directory_with_a_damaged_config_gives_the_real_reason(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        load_checkpoint(str(folder), Request())
